"""The openclipart set from a handful of SVGs: what is skipped, and what stays on one side of the split."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hf_cots.cli import app
from hf_cots.data.sets import openclipart
from hf_cots.data.sets.openclipart import (
    clean_title,
    find_clusters,
    find_recorded_clusters,
    find_series,
    largest_similarity,
    read_title,
    write_openclipart_parquet,
    write_openclipart_set,
)
from hf_cots.data.sources import load_pairs
from tests.support.worlds import noise


pytest.importorskip("resvg_py")

RDF = (
    '<metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">{}<dc:publisher><cc:Agent>'
    "<dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher></cc:Work></rdf:RDF></metadata>"
)


def svg(title, *shapes):
    rdf = RDF.format("" if title is None else f"<dc:title>{title}</dc:title>")
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100">{rdf}{"".join(shapes)}</svg>'


def different(seed):
    """Shapes that look like those of no other seed."""
    centers = np.random.default_rng(seed).integers(10, 90, (6, 2))
    colors = np.random.default_rng(seed + 1000).integers(0, 256, (6, 3))
    return [
        f'<circle cx="{x}" cy="{y}" r="14" fill="rgb({r},{g},{b})"/>' for (x, y), (r, g, b) in zip(centers, colors)
    ]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    root = tmp_path_factory.mktemp("svg")
    files = {f"animals/{name}.svg": svg(f"{name} drawing", *different(i)) for i, name in enumerate(NAMES)}
    files |= {
        "animals/same_a.svg": svg("one name", *different(100)),
        "animals/same_b.svg": svg("another name", *different(100)),
        "plants/one_title.svg": svg("Oak Tree", *different(101)),
        "plants/no_series.svg": svg("oak tree", *different(102)),
        "plants/rose_01.svg": svg("a rose", *different(103)),
        "plants/rose_02.svg": svg("the other rose", *different(104)),
        "signs/flags/freedonia.svg": svg("Freedonia", *different(105)),
        "shapes/star.svg": svg("gramastar", *different(106)),
        "games/cards/ace.svg": svg("ace of spades", *different(107)),
        "icons/lemon-theme/disk.svg": svg("disk icon", *different(108)),
        "food/blank.svg": svg("nothing at all"),
        "food/nameless.svg": svg(None, *different(109)),
        "food/number.svg": svg("12_04.svg", *different(110)),
        "food/torn.svg": "<svg",
        "food/unit.svg": svg("without a size", *different(111)).replace('width="100" height="100"', 'width="0"'),
    }
    files |= {f"many/item{chr(97 + i)}.svg": svg("Various Cliparts", *different(200 + i)) for i in range(9)}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


NAMES = [f"{a}{b}" for a in ("cat", "dog", "owl", "bee", "elk") for b in ("fish", "bird", "horse", "snail")]


@pytest.fixture(scope="module")
def written(drawings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "openclipart"
    counts = write_openclipart_set(folder, drawings, size=32, test_fraction=0.4)
    rows = {
        side: [json.loads(line) for line in (folder / side / "metadata.jsonl").read_text().splitlines()]
        for side in ("train", "test")
    }
    return folder, counts, rows


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Clipart by Nicu Buculei - w_cloud", "w cloud"),
        ("mountain - RPG map elements", "mountain"),
        ("Crawfish (B and W)", "Crawfish"),
        ("svg_globe_green", "globe green"),
        ("arrow08_4", "arrow"),
        ("2 dead frogs", "2 dead frogs"),
        ("direction à suivre", "direction à suivre"),
        ("IO", None),
        ("12_04.svg", None),
    ],
)
def test_titles_say_what_is_shown_or_nothing(title, clean):
    assert clean_title(title) == clean


def test_the_title_is_the_works_own_not_its_publishers(drawings):
    assert read_title(drawings / "plants/rose_01.svg") == "a rose"
    assert read_title(drawings / "food/nameless.svg") is None
    assert read_title(drawings / "food/torn.svg") is None


def test_what_shows_or_says_nothing_is_skipped(written):
    folder, counts, rows = written
    sources = {row["source"] for side in rows.values() for row in side}
    assert sources == {f"animals/{name}.svg" for name in (*NAMES, "same_a", "same_b")} | {
        "plants/one_title.svg",
        "plants/no_series.svg",
        "plants/rose_01.svg",
        "plants/rose_02.svg",
        "signs/flags/freedonia.svg",
    }
    assert counts == {side: len(rows[side]) for side in rows}
    assert min(counts.values()) > 3
    report = json.loads((folder / "openclipart.json").read_text())
    assert sorted(line.split(":")[0] for line in report["not_rendered"]) == ["food/blank.svg", "food/unit.svg"]
    assert report["flags"] == 1
    assert report["distinct_titles"] == len(sources) - 1


def test_relatives_stay_together(written):
    _, _, rows = written
    groups = {row["source"]: (side, row["cluster"]) for side in rows for row in rows[side]}
    for one, other in (
        ("animals/same_a.svg", "animals/same_b.svg"),
        ("plants/one_title.svg", "plants/no_series.svg"),
        ("plants/rose_01.svg", "plants/rose_02.svg"),
    ):
        assert groups[one] == groups[other]
    train, test = ({row["cluster"] for row in rows[side]} for side in ("train", "test"))
    assert not train & test
    assert len(train | test) == len(groups) - 3


def test_the_set_loads_as_pairs(written):
    folder, counts, rows = written
    pairs = load_pairs(str(folder / "train"), image_id_column="text")
    assert len(pairs) == counts["train"]
    assert pairs[0]["image"].size == (32, 32)
    assert {pairs.caption(i) for i in range(len(pairs))} == {row["text"] for row in rows["train"]}


def test_a_complete_set_is_kept_and_another_seed_gives_another_split(written, drawings, monkeypatch):
    folder, counts, _ = written
    with monkeypatch.context() as patch:
        patch.setattr(openclipart, "_render", lambda *_: pytest.fail("it was made again"))
        assert write_openclipart_set(folder, drawings, size=32, test_fraction=0.4) == counts
    other = folder.parent / "other"
    assert sum(write_openclipart_set(other, drawings, size=32, test_fraction=0.4, seed=3).values()) == sum(
        counts.values()
    )
    assert {path.name for path in (other / "test").iterdir()} != {path.name for path in (folder / "test").iterdir()}


def test_near_duplicates_are_joined_by_chains():
    """An image, the same with one pixel changed, the same much brighter; and three that have nothing in common."""
    images = [noise(8, 8, seed).resize((64, 64), Image.Resampling.BICUBIC) for seed in range(4)]
    changed, brighter = images[0].copy(), images[0].point(lambda value: value // 2 + 127)
    changed.putpixel((0, 0), (0, 0, 0))
    names = [str(i) for i in range(6)]
    assert find_clusters([*images, changed, brighter], names, names) == [0, 1, 2, 3, 0, 0]
    assert find_clusters(images, ["a", "b", "B", "c"], ["s", "t", "u", "s"]) == [0, 1, 1, 0]
    found = largest_similarity(images[:2], [changed])
    assert found["cosine"] > 0.99
    assert found["hash_distance"] <= 2


def test_series_ignore_numbers(tmp_path):
    assert find_series(tmp_path / "a" / "baloon1_04.svg") == find_series(tmp_path / "a" / "Baloon2_01.svg")
    assert find_series(tmp_path / "a" / "x_1.svg") != find_series(tmp_path / "b" / "x_1.svg")


def packaged(folder, drawings, name="openclipart-svg_1_all.deb"):
    """A .deb as Debian's, of our drawings."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: openclipart-svg\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
    )
    target = tree / openclipart.DRAWINGS
    target.parent.mkdir(parents=True)
    shutil.copytree(drawings, target)
    subprocess.run(["dpkg-deb", "-b", tree, folder / name], check=True, capture_output=True)
    return folder / name


def test_the_command_takes_a_package(drawings, tmp_path):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    package = packaged(tmp_path, drawings)
    result = CliRunner().invoke(app, ["openclipart", str(tmp_path / "out"), "--deb", str(package), "--size", "32"])
    assert result.exit_code == 0, result.output
    assert "training pairs" in result.stdout
    assert (tmp_path / "out" / "test" / "metadata.jsonl").is_file()


@pytest.mark.parametrize(
    ("what", "message"), [("missing", "no such file"), ("text", "cannot be unpacked"), ("folder", "no SVG file in")]
)
def test_what_is_no_package_is_one_line(what, message, tmp_path):
    source = tmp_path / "x.deb"
    if what == "text":
        source.write_text("not a package")
    elif what == "folder":
        source.mkdir()
    result = CliRunner().invoke(app, ["openclipart", str(tmp_path / "out"), "--deb", str(source)])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_clusters_are_closed_and_those_of_recorded_results_are_not():
    """Against flooding from each drawing; found by chance, in series of links that the old code cut."""
    draw = np.random.default_rng(0)
    differ = 0
    for _ in range(60):
        images = [Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(12)]
        texts, series = (draw.integers(0, 7, 12).astype(str).tolist() for _ in range(2))
        expected = []
        for i in range(12):
            found, before = {i}, set()
            while found != before:
                before = set(found)
                found |= {j for j in range(12) for k in before if texts[j] == texts[k] or series[j] == series[k]}
            expected.append(min(found))
        assert find_clusters(images, texts, series) == expected
        differ += find_recorded_clusters(images, texts, series) != expected
    assert 0 < differ < 60


def test_the_parquet_form_has_the_same_drawings(written, drawings, tmp_path):
    folder, counts, _ = written
    written_counts = write_openclipart_parquet(tmp_path, drawings, size=32, test_fraction=0.4)
    assert sum(written_counts.values()) == sum(counts.values())
    for side in ("train", "test"):
        pairs = load_pairs(str(tmp_path / f"{side}.parquet"))
        assert len(pairs) == written_counts[side]
        for i in range(len(pairs)):
            name = pairs.image_name(i)
            file = next(path for path in folder.rglob("*.png") if path.name == name)
            assert Image.open(file).convert("RGB").tobytes() == pairs[i]["image"].tobytes()
    assert json.loads((tmp_path / "report.json").read_text())["pairs"] == written_counts
    before = (tmp_path / "train.parquet").stat().st_mtime_ns
    assert write_openclipart_parquet(tmp_path, drawings, size=32, test_fraction=0.4) == written_counts
    assert (tmp_path / "train.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("program", "message"), [("apt-get", "apt-get is not installed"), ("failing", "Unable to locate")]
)
def test_without_apt_the_error_says_what_to_do(program, message, tmp_path, monkeypatch):
    def run(command, **_):
        if program == "apt-get":
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package openclipart-svg\n")

    monkeypatch.setattr(openclipart.subprocess, "run", run)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        write_openclipart_set(tmp_path / "out")
    assert "name the file with --deb" in str(caught.value)
    assert openclipart.PAGE in str(caught.value)
