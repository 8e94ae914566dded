"""An index in a real Milvus: built, brought up to date, filtered and searched as one in a folder is."""

import json
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
from PIL import Image

from hf_cots import ImageIndex, load_encoder
from hf_cots.search import milvus, update
from hf_cots.search.disk_index import select_images
from hf_cots.search.gallery import SourceOptions
from tests.support.cli import call, error_of, succeed
from tests.support.clip_files import BLUE, write_mixed_folder
from tests.support.kills import run_killed
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.sources import check_images_follow_the_data_set
from tests.support.worlds import write_broken_images, write_json_lines


pytestmark = pytest.mark.milvus


def counts(index):
    """The numbers of the last update that are not 0, without those that are as before."""
    return {name: count for name, count in index.summary.counts().items() if count and name != "unchanged"}


class Both:
    """The same source indexed in a folder and in Milvus."""

    def __init__(self, source, folder, uri, **options):
        self.arguments = (source, folder, uri, options)
        self.encoders = PixelEncoder(), PixelEncoder()
        self.build()

    def build(self):
        """Bring both up to date; returns what was done."""
        source, folder, uri, options = self.arguments
        self.disk, self.milvus = (
            ImageIndex.build(encoder, source, to, batch_size=4, **options)
            for encoder, to in zip(self.encoders, (folder, uri))
        )
        assert self.milvus.summary.counts() == self.disk.summary.counts()
        assert list(map(str, self.milvus.summary.broken)) == list(map(str, self.disk.summary.broken))
        assert self.encoders[0].encoded == self.encoders[1].encoded
        return counts(self.milvus)

    def check(self, query="red", k=1000, **options):
        """Compare the answers, and return them."""
        found = self.milvus.search(query, k, **options)
        assert found == self.disk.search(query, k, **options)  # paths and scores, to the last bit
        assert [match.columns for match in found] == [m.columns for m in self.disk.search(query, k, **options)]
        return found


# ---------------------------------------------------------------------- equal to the index in a folder


def test_it_finds_what_an_index_in_a_folder_finds(photos, tmp_path, uri):
    both = Both(photos, tmp_path / "index", uri)
    assert len(both.milvus) == 30
    assert both.milvus.paths == both.disk.paths
    opened = ImageIndex.open(uri, PixelEncoder())
    for query in ("red", photos / "007.png"):
        for k in (1, 5, 100):
            assert opened.search(query, k) == both.check(query, k)
    both.check("red", 5, minus="blue", image=photos / "003.png")
    both.check("red", 5, where="path glob '00*'")
    assert Image.open(opened.search("red", 1)[0].path).size == opened.read_image(opened.paths[0]).size


def test_equal_scores_are_in_the_order_of_the_paths(tmp_path, uri):
    for i in random.Random(0).sample(range(90), 90):  # more than the first candidates
        write_image(tmp_path / "photos" / f"{i:02d}.png", seed=i // 80)
    both = Both(tmp_path / "photos", tmp_path / "index", uri)
    assert both.encoders[1].encoded == 2
    for k in (1, 3, 50, 85):
        names = [match.path.name for match in both.check(tmp_path / "photos" / "00.png", k)]
        assert names == [f"{i:02d}.png" for i in range(k)]


def test_only_new_contents_are_encoded(photos, tmp_path, uri, monkeypatch):
    monkeypatch.setattr(update, "COMMIT_VECTORS", 7)
    both = Both(photos, tmp_path / "index", uri)
    assert both.build() == {}
    (photos / "moved").mkdir()
    for i in range(10):
        os.rename(photos / f"{i:03d}.png", photos / "moved" / f"{i:03d}.png")
    write_image(photos / "new.png", 100)
    write_image(photos / "010.png", 101, age=1800)
    (photos / "011.png").unlink()
    (photos / "copy.png").write_bytes((photos / "012.png").read_bytes())
    assert both.build() == {"added": 2, "changed": 1, "moved": 10, "deleted": 1, "encoded": 2}
    both.check()
    assert both.milvus.paths == both.disk.paths
    assert both.milvus.update().counts() == both.disk.update().counts()


def test_files_that_trade_names_are_not_encoded_again(tmp_path, uri, monkeypatch):
    """Each new name takes the entity that holds the only copy of another file's vector, batches before it is read."""
    photos = write_folder(tmp_path / "photos", 12)
    both = Both(photos, tmp_path / "index", uri)
    monkeypatch.setattr(update, "COMMIT_IMAGES", 4)
    monkeypatch.setattr(milvus, "ROWS_AT_ONCE", 3)
    order = random.Random(1).sample(range(12), 12)
    for i in range(12):
        os.rename(photos / f"{i:03d}.png", photos / f"{order[i]:03d}.tmp")
    for path in photos.glob("*.tmp"):
        os.utime(path, (1e9 + int(path.stem), 1e9))
        path.rename(path.with_suffix(".png"))
    assert both.build()["changed"] > 8
    assert both.encoders[1].encoded == 12
    both.check()
    for path in both.milvus.paths:
        assert both.milvus.search(path, 1)[0].path == path


def test_broken_images_are_counted_named_and_not_read_again(photos, tmp_path, uri, monkeypatch):
    write_broken_images(photos)
    Image.new("RGB", (4, 4), (7, 7, 7)).save(photos / "nan.png")
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))
    both = Both(photos, tmp_path / "index", uri)
    assert len(both.milvus.summary.broken) > 3
    assert list(map(str, both.milvus.broken)) == list(map(str, both.disk.broken))
    assert len(both.check()) == 30
    monkeypatch.setattr("hf_cots.search.gallery.read_file", None)  # would be a TypeError
    both.build()
    monkeypatch.undo()
    write_image(photos / "nan.png", 99)
    assert both.build() == {"changed": 1, "encoded": 1, "broken": len(both.milvus.broken)}
    assert len(both.check()) == 31


def test_names_of_all_kinds(tmp_path, uri):
    photos = tmp_path / "photos"
    names = ["ünï 猫.png", "a'b\"c.png", "x" * 251 + ".png", "%s {0} ; -- #.png", "back\\slash.png", "a\nb.png"]
    for i, name in enumerate(names):
        write_image(photos / name, i)
    both = Both(photos, tmp_path / "index", uri)
    assert {match.path.name for match in both.check()} == set(names)
    for name in names[:-2]:
        quoted = name.replace("'", "''")
        assert [match.path.name for match in both.check(where=f"path = '{quoted}'")] == [name]
    for name in names:
        os.rename(photos / name, photos / f"_{name[-200:]}")
    assert both.build() == {"moved": len(names)}
    assert len(both.check()) == len(names)


# ---------------------------------------------------------------------- columns and filters


ROWS = [
    {"image": "000.png", "license": "MIT", "width": "9", "tags": ["a", "b"], "flag": True, "big": 2**53 + 1},
    {"image": "001.png", "license": "O'Reilly", "width": "10", "tags": [], "flag": False, "big": -(2**60)},
    {"image": "002.png", "license": "mit", "width": "100.5", "na\"me'": "x\\y", "ratio": 1e-7},
    {"image": "003.png", "license": '猫 "q"', "width": "-3", "ratio": 2.0},
    {"image": "004.png", "license": "", "ratio": 0.1},
    {"image": "000.png", "license": "second", "width": "1"},
]
LATER = [
    {"image": "005.png", "license": 12, "width": "wide", "ratio": "a"},
    {"image": "006.png", "license": "MIT\nX", "width": "1e3", "ratio": 3},
]


@pytest.fixture
def table(photos):
    return write_json_lines(photos / "rows.jsonl", ROWS)


def test_columns_of_a_table_follow_it(table, tmp_path, uri):
    both = Both(table, tmp_path / "index", uri)
    assert both.milvus.columns == both.disk.columns
    both.check()
    reader = ImageIndex.open(uri, PixelEncoder())
    write_json_lines(table, [{**ROWS[0], "license": "GPL", "author": "me"}, *ROWS[1:], *LATER])
    assert both.build() == {"added": 2, "changed": 1, "encoded": 2}
    assert both.milvus.columns == both.disk.columns
    both.check()
    assert [match.path.name for match in both.check(where="author = 'me'")] == ["000.png"]
    assert reader.search("red", where="author = 'me'") == both.check(where="author = 'me'")
    assert reader.search("red")[0].columns.keys() == both.check()[0].columns.keys()


LITERALS = [
    "'MIT'",
    "9",
    "10.0",
    "'9'",
    "'wide'",
    "100.5",
    "-3",
    "1e-7",
    "'O''Reilly'",
    "'猫 \"q\"'",
    "''",
    "'12'",
    "12",
]
LITERALS += [".1", "2", "'x\\y'", "9007199254740991", "1", "'z'", '\'["a", "b"]\'', "1000", "' 9 '", "'a'", "-0.5"]
NAMES = ["license", "WIDTH", '"tags"', "[flag]", "big", '"na""me\'"', "`ratio`", "path"]


def draw_expression(draw, depth=0):
    kind = draw.choice(["compare"] * 4 + ["mirrored", "in", "between", "null", "glob", "not", "and", "or", "()"])
    name, literal = draw.choice(NAMES), draw.choice(LITERALS)
    negated = draw.choice(["", "", " NOT"])
    if depth < 3 and kind in ("and", "or"):
        return f"{draw_expression(draw, depth + 1)} {kind} {draw_expression(draw, depth + 1)}"
    if depth < 3 and kind in ("not", "()"):
        return f"{kind[:-2] if kind == '()' else 'not '}({draw_expression(draw, depth + 1)})"
    if kind == "mirrored":
        return f"{literal}{draw.choice(['=', '<', '>='])}{name}"
    if kind == "in":
        return f"{name}{negated} in ({', '.join(draw.sample(LITERALS, draw.randrange(1, 5)))})"
    if kind == "between":
        return f"{name}{negated} Between {literal} and {draw.choice(LITERALS)}"
    if kind == "null":
        return f"{name} {draw.choice(['is null', 'is not null', 'isnull', 'notnull', 'NOT NULL'])}"
    if kind == "glob":
        pattern = draw.choice(["00*", "M*", "000.png", "*", "O''*", "猫*"])
        return f"{draw.choice(['license', 'path', 'tags'])}{negated} glob '{pattern}'"
    return f"{draw.choice(['', 'not '])}{name} {draw.choice(['=', '==', '<>', '!=', '<', '<=', '>', '>='])} {literal}"


def test_filters_mean_what_they_mean_in_a_folder(table, tmp_path, uri):
    both = Both(table, tmp_path / "index", uri)
    write_json_lines(table, ROWS + LATER)
    both.build()
    collection, draw, sizes = both.milvus.collection, random.Random(0), []
    for _ in range(120):
        where = draw_expression(draw)
        condition = both.milvus._translate(where)
        found = sorted(entity["path"] for entity in collection.query(condition, ["path"]))
        chosen = select_images(both.disk.columns, where)
        expected = both.disk.store.database.execute(f'SELECT "hf_cots path" {chosen} ORDER BY 1').fetchall()
        assert found == [path for (path,) in expected], (where, condition)
        sizes.append(len(found))
    assert {0, 1, 2, 3, 7} <= set(sizes)


def test_a_wrong_filter_is_named_before_anything_is_encoded(table, tmp_path, uri, monkeypatch):
    index = ImageIndex.build(PixelEncoder(), table, uri)
    monkeypatch.setattr(index.encoder, "encode_texts", None)
    with pytest.raises(ValueError, match="no column 'licence'; the index has license, width"):
        index.search("red", where="licence = 'MIT'")
    with pytest.raises(ValueError, match=r"at 'lower': an index in Milvus compares columns with values"):
        index.search("red", where="lower(license) = 'mit'")


def test_what_milvus_cannot_keep_is_named(photos, uri):
    table = write_json_lines(photos / "rows.jsonl", [{"image": "000.png", "text": "x" * 70_000}])
    with pytest.raises(ValueError, match=r"000\.png: its columns have more than 65535 bytes"):
        ImageIndex.build(PixelEncoder(), table, uri)
    with pytest.raises(ValueError, match="only stores float32 vectors, not int8"):
        ImageIndex.build(PixelEncoder(), photos, uri, dtype="int8")


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_images_within_a_data_set(world, tmp_path, uri, kind):
    options = SourceOptions(image_column="png" if kind == "tars" else "image")
    both = Both(getattr(world, kind), tmp_path / "index", uri, options=options)
    match = both.check()[0]
    assert both.milvus.read_image(match.path).size == (32, 32)
    assert both.build() == {}


def test_images_within_a_data_set_that_changes(tmp_path, uri):
    check_images_follow_the_data_set(tmp_path, uri)


# ---------------------------------------------------------------------- the model, and kills


def test_another_model_or_source_is_refused_by_name(photos, tmp_path, uri):
    ImageIndex.build(PixelEncoder(), photos, uri)
    for call_with in (lambda model: ImageIndex.build(model, photos, uri), lambda model: ImageIndex.open(uri, model)):
        with pytest.raises(
            ValueError, match=f"the index {uri} was built with pixels, but pixels differs in its weights"
        ):
            call_with(PixelEncoder(weights="1"))
    with pytest.raises(ValueError, match=r"was built from .*photos, not from .*other: choose another index with --to"):
        ImageIndex.build(PixelEncoder(), write_folder(tmp_path / "other", 2), uri)


def build_in_small_batches(source, uri):
    update.COMMIT_VECTORS, milvus.ROWS_AT_ONCE = 6, 4
    ImageIndex.build(PixelEncoder(), source, uri, batch_size=3)


def change(photos, step):
    """Remove, rename and add."""
    files = sorted(photos.iterdir())
    for path in files[:8]:
        path.unlink()
    for i, path in enumerate(files[8:16]):
        path.rename(photos / f"moved-{step}-{i}.png")
    for i in range(15):
        write_image(photos / f"{step:03d}-{i}.png", 1000 * step + i)


def check_whole(photos, uri, folder):
    """The answers are those of an index in a folder that nothing has interrupted."""
    index = ImageIndex.build(PixelEncoder(), photos, uri, batch_size=3)
    assert len(index) == len(list(photos.iterdir()))
    assert index.search("red", 1000) == ImageIndex.build(PixelEncoder(), photos, folder).search("red", 1000)


def try_kills(tmp_path, uri, times):
    """Kill builds and updates so many times each."""
    fresh = multiprocessing.get_context("forkserver")  # gRPC does not live through a fork
    fresh.set_forkserver_preload(["tests.milvus.test_milvus_index", "hf_cots.search.index", "pymilvus"])
    photos, draw, folder, step = write_folder(tmp_path / "photos", 24), random.Random(0), tmp_path / "index", 0
    files = ("search/milvus.py", "search/update.py")
    client = milvus.Collection(uri).client
    for stage in ("build", "update"):
        if stage == "update":
            change(photos, step := step + 1)
        code, lines = run_killed(fresh, files, build_in_small_batches, photos, f"{uri}_whole")
        assert code == 0
        kills = 0
        while kills < times:
            killed = draw.randrange(1, lines)
            code, _ = run_killed(fresh, files, build_in_small_batches, photos, uri, lines=killed)
            if code == 0:  # those before had done most of it
                check_whole(photos, uri, folder)
                if stage == "build":
                    client.drop_collection(uri.rpartition("/")[2])
                else:
                    change(photos, step := step + 1)
                continue
            assert code == -signal.SIGKILL
            kills += 1
            try:
                index = ImageIndex.open(uri, PixelEncoder())
            except FileNotFoundError:  # killed before anything was there
                assert stage == "build"
                continue
            assert len(index.search("red", 1000)) == len(index)
            for path in index.paths[:2]:
                assert not path.is_file() or index.search(path, 1)[0].score == pytest.approx(1, abs=1e-5)
        check_whole(photos, uri, folder)
    client.drop_collection(f"{uri}_whole".rpartition("/")[2])


@pytest.mark.timeout(300)
def test_a_kill_loses_at_most_a_batch(tmp_path, uri):
    try_kills(tmp_path, uri, times=2)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_kills_lose_at_most_a_batch(tmp_path, uri):
    try_kills(tmp_path, uri, times=10)


def test_what_was_committed_is_not_encoded_again(photos, uri, monkeypatch):
    monkeypatch.setattr(update, "COMMIT_VECTORS", 6)

    class Failing(PixelEncoder):
        def encode_images(self, images, batch_size=64, total=None):
            if self.encoded >= 18:
                raise KeyboardInterrupt
            return super().encode_images(images)

    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(Failing(), photos, uri, batch_size=3)
    assert len(ImageIndex.open(uri, PixelEncoder())) == 18
    encoder = PixelEncoder()
    assert len(ImageIndex.build(encoder, photos, uri, batch_size=3)) == 30
    assert encoder.encoded == 12


def test_a_vector_that_another_process_has_changed_is_not_taken(photos, uri):
    index = ImageIndex.build(PixelEncoder(), photos, uri)
    store = milvus.MilvusStore(uri, index.encoder.dim)
    row = index.collection.query('path == "000.png"', ["*"])[0]
    row["row"]["hash"] = "another"
    index.collection.upsert([row])
    with (
        pytest.raises(OSError, match="another process is writing the index: try again when it has finished"),
        store.transaction() as database,
    ):
        database.execute("UPDATE images SET path = 'new.png' WHERE path = '000.png'")
    store.close()
    assert ImageIndex.build(PixelEncoder(), photos, uri).summary.unchanged == 30


# ---------------------------------------------------------------------- the command line


def test_the_command_line(world, tmp_path, uri):
    table = write_json_lines(
        tmp_path / "rows.jsonl",
        [
            {"image": str(path), "license": "MIT" if i % 2 else "GPL"}
            for i, path in enumerate(sorted(world.imagefolder.glob("*.png")))
        ],
    )
    to = tmp_path / "index"
    for index in (uri, to):
        first = json.loads(succeed("index", world.model, table, "--to", index, "--json").stdout)
        assert first["added"] == 40
    assert "40 unchanged" in succeed("index", world.model, table, "--to", uri).stdout
    arguments = ("a red circle", "--minus", "a square", "--where", "license = 'MIT'", "-k", 3, "--json")
    found, expected = (json.loads(succeed("search", index, *arguments).stdout) for index in (uri, to))
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], atol=1e-5)
    assert {row["license"] for row in found} == {"MIT"}
    image = sorted(world.imagefolder.glob("*.png"))[5]
    alone = succeed("search", uri, "--image", image, "-k", 1, "--sheet", tmp_path / "sheet.png").stdout
    assert alone.split()[1] == str(image)
    assert (tmp_path / "sheet.png").is_file()
    assert load_encoder(world.model).dim == int(ImageIndex.open(uri).meta["dim"])


def test_errors_are_one_line(world, server, uri):
    assert f"no index at {uri}: create one with `hf-cots index MODEL SOURCE --to {uri}`" in error_of(
        call("search", uri, "red")
    )
    line = error_of(call("search", "http://127.0.0.1:1/images", "red"))
    assert "http://127.0.0.1:1/images: " in line
    assert "is server and collection" in error_of(call("search", server, "red"))
    assert f"no index at {uri}" in error_of(call("serve", uri, "--port", 0))
    line = error_of(call("index", world.model, world.imagefolder, "--to", uri, "--dtype", "float16"))
    assert "only stores float32 vectors" in line


def test_clips_are_found_as_in_a_folder(encoder, uri, tmp_path):
    folder = write_mixed_folder(tmp_path / "mixed")
    disk, remote = ImageIndex.build(encoder, folder, tmp_path / "index"), ImageIndex.build(encoder, folder, uri)
    query = Image.new("RGB", (8, 8), BLUE)

    def found(index):
        return [(match.path, match.moment, match.duration, match.times) for match in index.search(query)]

    assert found(remote) == found(disk)
    assert remote.count_clips() == disk.count_clips() == 3
    (folder / "film.mp4").rename(folder / "renamed.mp4")
    (folder / "moving.webp").unlink()
    for index in (disk, remote):
        counts = index.update().counts()
        assert (counts["moved"], counts["deleted"], counts["encoded"]) == (1, 1, 0)
    assert found(remote) == found(disk)
    assert remote.count_clips() == 2
