"""What all parquet sets share."""

from hf_cots.data.sets.parquet import finished_report


def test_only_a_set_of_the_same_settings_is_finished(tmp_path):
    """The report of another one is removed: a set that is cut off while it is made anew has none."""
    report = tmp_path / "report.json"
    assert finished_report(report, {"seed": 0}) is None
    report.write_text('{"settings": {"seed": 0}, "pairs": {"train": 3}}')
    assert finished_report(report, {"seed": 0}) == {"settings": {"seed": 0}, "pairs": {"train": 3}}
    assert finished_report(report, {"seed": 1}) is None
    assert not report.exists()
