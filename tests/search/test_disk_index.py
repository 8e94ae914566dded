"""An index in a folder: built, brought up to date, searched, filtered and exported."""

import json
import os
import sqlite3

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_cots import ImageIndex, load_encoder
from hf_cots.search import update
from hf_cots.search.gallery import SourceOptions
from tests.support.cli import call, error_of, succeed
from tests.support.clip import make_clip
from tests.support.embeddings import assert_close
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.sources import check_images_follow_the_data_set
from tests.support.worlds import encoded, noise, write_broken_images, write_json_lines


@pytest.fixture
def encoder():
    return PixelEncoder()


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos", 30)


def build(encoder, source, to, **options):
    return ImageIndex.build(encoder, source, to, **options)


def counts(index):
    """The numbers of the last update that are not 0, without those that are as before."""
    return {name: count for name, count in index.summary.counts().items() if count and name != "unchanged"}


def answers(index, query="red", k=10, **options):
    return [(match.path.name, round(match.score, 12)) for match in index.search(query, k, **options)]


# ---------------------------------------------------------------------- equal to the index in memory


def test_it_finds_what_an_index_in_memory_finds(encoder, photos, tmp_path):
    memory, disk = ImageIndex(encoder, sorted(photos.glob("*.png"))), build(encoder, photos, tmp_path / "index")
    assert disk.paths == memory.paths
    assert len(disk) == len(memory) == 30
    assert_close(disk.embeds, memory.embeds, rtol=0, atol=0)
    for query in ("red", "blue", photos / "007.png"):
        for k in (1, 5, 100):
            found, expected = disk.search(query, k), memory.search(query, k)
            assert [match.path for match in found] == [match.path for match in expected]
            assert [match.score for match in found] == pytest.approx([m.score for m in expected], abs=1e-6)


@pytest.mark.parametrize("kind", ["cots", "clip"])
def test_a_model_gives_the_embeddings_that_it_gives_in_memory(world, tmp_path, kind):
    """Each image is prepared alone, in a thread: by the same steps as in a batch."""
    if kind == "clip":
        make_clip(tmp_path / "model")
    model = world.model if kind == "cots" else tmp_path / "model"
    memory = ImageIndex.from_folder(model, world.imagefolder, batch_size=8)
    disk = ImageIndex.build(str(model), world.imagefolder, tmp_path / "index", batch_size=8)
    assert disk.paths == memory.paths
    assert_close(disk.embeds, memory.embeds, rtol=0, atol=1e-6)
    opened = ImageIndex.open(tmp_path / "index")
    assert opened.search("a red circle", 5) == disk.search("a red circle", 5)


def test_equal_scores_are_in_the_order_of_the_paths(encoder, tmp_path):
    for name in ("b", "a", "d", "c"):
        write_image(tmp_path / "photos" / f"{name}.png", seed=1)
    index = build(encoder, tmp_path / "photos", tmp_path / "index")
    assert [name for name, _ in answers(index, k=3)] == ["a.png", "b.png", "c.png"]
    assert encoder.encoded == 1  # equal files go through the model once


@pytest.mark.parametrize(("dtype", "most"), [("float16", 1e-3), ("int8", 2e-2)])
def test_smaller_vectors_have_a_measured_error(encoder, photos, tmp_path, dtype, most):
    exact = {match.path: match.score for match in ImageIndex(encoder, photos.glob("*.png")).search("red", 30)}
    index = build(encoder, photos, tmp_path / "index", dtype=dtype)
    error = float(index.store.meta["error"])
    assert 0 < error < most
    assert max(abs(match.score - exact[match.path]) for match in index.search("red", 30)) <= error + 1e-6
    with pytest.raises(ValueError, match=f"stores {dtype} vectors, not float32"):
        build(encoder, photos, tmp_path / "index", dtype="float32")


# ---------------------------------------------------------------------- up to date


def test_only_new_contents_are_encoded(encoder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "COMMIT_VECTORS", 7)
    index = build(encoder, photos, tmp_path / "index", batch_size=4)
    assert counts(index) == {"added": 30, "encoded": 30}
    before = answers(index, k=30)
    assert build(encoder, photos, tmp_path / "index").summary.counts()["unchanged"] == 30
    for i in range(10):  # into another folder
        (photos / "moved").mkdir(exist_ok=True)
        os.rename(photos / f"{i:03d}.png", photos / "moved" / f"{i:03d}.png")
    write_image(photos / "new.png", 100)
    write_image(photos / "010.png", 101, age=1800)
    (photos / "011.png").unlink()
    (photos / "copy.png").write_bytes((photos / "012.png").read_bytes())
    index = build(encoder, photos, tmp_path / "index", batch_size=4)
    assert counts(index) == {"added": 2, "changed": 1, "moved": 10, "deleted": 1, "encoded": 2}
    assert encoder.encoded == 32
    fresh = build(PixelEncoder(), photos, tmp_path / "fresh")
    assert answers(index, k=50) == answers(fresh, k=50) != before
    assert index.paths == fresh.paths
    assert counts(index) != {}
    assert index.update().counts()["unchanged"] == 31


def test_files_that_are_unchanged_are_not_read_again(encoder, photos, tmp_path, monkeypatch):
    build(encoder, photos, tmp_path / "index")
    monkeypatch.setattr("hf_cots.search.gallery.read_file", None)  # would be a TypeError
    assert build(encoder, photos, tmp_path / "index").summary.unchanged == 30
    os.utime(photos / "000.png")
    with pytest.raises(TypeError):
        build(encoder, photos, tmp_path / "index")


def test_a_file_that_changes_again_under_the_same_time_and_size_is_noticed(encoder, tmp_path):
    photos = write_folder(tmp_path / "photos", 2)
    path = photos / "000.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(path, "BMP")
    stat = path.stat()
    index = build(encoder, photos, tmp_path / "index")
    Image.new("RGB", (4, 4), (0, 255, 0)).save(path, "BMP")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert build(encoder, photos, tmp_path / "index").summary.changed == 1
    assert index.search(path, 1)[0].score == pytest.approx(1)


def test_a_folder_that_was_moved_is_the_same_source(encoder, photos, tmp_path):
    build(encoder, photos, tmp_path / "index")
    write_folder(tmp_path / "other", 2)
    with pytest.raises(ValueError, match=r"was built from .*photos, not from .*other: choose another index with --to"):
        build(encoder, tmp_path / "other", tmp_path / "index")
    moved = photos.rename(tmp_path / "moved")
    index = build(encoder, moved, tmp_path / "index")
    assert (index.summary.unchanged, encoder.encoded) == (30, 30)
    assert index.search("red", 1)[0].path.parent == moved


def test_an_empty_or_missing_source_leaves_the_index_alone(encoder, photos, tmp_path):
    index = build(encoder, photos, tmp_path / "index")
    for path in photos.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no image"):
        build(encoder, photos, tmp_path / "index")
    photos.rmdir()
    with pytest.raises(FileNotFoundError, match="photos"):
        build(encoder, photos, tmp_path / "index")
    assert len(index) == 30


def test_holes_are_removed_and_readers_go_on(encoder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(update, "COMPACT_HOLES", 5)
    index = build(encoder, photos, tmp_path / "index")
    assert len(answers(index, k=50)) == 30
    for i in range(0, 30, 2):
        (photos / f"{i:03d}.png").unlink()
    build(encoder, photos, tmp_path / "index")
    assert answers(index, k=50) == answers(build(PixelEncoder(), photos, tmp_path / "fresh"), k=50)
    assert [path.name for path in (tmp_path / "index").glob("*.bin")] == ["vectors-1.bin"]
    assert (tmp_path / "index" / "vectors-1.bin").stat().st_size == 15 * 12 * 4
    assert build(encoder, photos, tmp_path / "index").summary.unchanged == 15


def test_holes_that_stay_are_never_found(encoder, photos, tmp_path):
    index = build(encoder, photos, tmp_path / "index")
    best = index.search("red", 30)[:20]
    for match in best:
        match.path.unlink()
    index.update()
    assert len(index.search("red", 30)) == 10
    assert not {match.path for match in index.search("red", 30)} & {match.path for match in best}


def test_another_model_is_refused_by_name(encoder, photos, tmp_path, world):
    build(encoder, photos, tmp_path / "index")
    with pytest.raises(ValueError, match="was built with pixels, but pixels differs in its weights"):
        build(PixelEncoder(weights="1"), photos, tmp_path / "index")
    ImageIndex.build(str(world.model), world.imagefolder, tmp_path / "cots")
    other = load_encoder(world.model)
    other.processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(ValueError, match=r"built with .*model, but .* differs in its image processor"):
        ImageIndex.open(tmp_path / "cots", other)


# ---------------------------------------------------------------------- what cannot be used


def test_broken_images_are_counted_named_and_not_read_again(encoder, photos, tmp_path, monkeypatch):
    (photos / "empty.png").write_bytes(b"")
    broken = write_broken_images(photos)
    Image.new("RGB", (4, 4), (7, 7, 7)).save(photos / "nan.png")
    for path in photos.iterdir():
        os.utime(path, (1e9, 1e9))
    index = build(encoder, photos, tmp_path / "index")
    expected = {name: reason for name, reason in broken.items() if name not in ("missing.png", "folder.png")}
    expected |= {"nan.png": "its embedding is not finite"}
    found = {os.path.basename(image.name): image.reason for image in index.summary.broken}
    assert found.keys() == expected.keys()
    assert all(expected[name] in found[name] for name in expected)
    assert len(index) == 30
    assert np.isfinite(index.embeds).all()
    monkeypatch.setattr("hf_cots.search.gallery.read_file", None)
    again = build(encoder, photos, tmp_path / "index")
    assert {os.path.basename(image.name): image.reason for image in again.broken} == found
    assert (again.summary.unchanged, len(again.summary.broken)) == (30, len(expected))
    monkeypatch.undo()
    write_image(photos / "nan.png", 99)
    assert counts(build(encoder, photos, tmp_path / "index"))["changed"] == 1


def test_a_folder_of_broken_images_is_refused(encoder, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 image files can be read; .*a\.png"):
        build(encoder, tmp_path / "photos", tmp_path / "index")


def test_names_of_all_kinds(encoder, tmp_path):
    photos = tmp_path / "photos"
    names = ["ünï 猫.png", "a'b\"c.png", "x" * 251 + ".png", "%s {0} ; -- #.png"]
    for i, name in enumerate(names):
        write_image(photos / name, i)
    write_image(tmp_path / "elsewhere" / "deep" / "d.png", 10)
    (photos / "link.png").symlink_to(photos / names[0])
    (photos / "folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "nowhere.png").symlink_to(tmp_path / "nothing")
    undecodable = os.fsdecode(os.fsencode(photos) + b"/bad\xff.png")
    write_image(photos / "t.png", 11)
    os.rename(photos / "t.png", undecodable)
    index = build(encoder, photos, tmp_path / "index")
    assert {str(path.relative_to(photos)) for path in index.paths} == {*names, "link.png", "folder/deep/d.png"}
    reasons = {os.path.basename(image.name).strip("'"): image.reason for image in index.summary.broken}
    assert reasons == {"nowhere.png": "no such file", "bad\\udcff.png": "its name is not valid Unicode: rename it"}
    assert encoder.encoded == 5  # the link is one of them


# ---------------------------------------------------------------------- data sets and their columns


ROWS = [
    {"image": "000.png", "license": "MIT", "width": "9", "tags": ["a", "b"]},
    {"image": "001.png", "license": "O'Reilly", "width": "10", "tags": []},
    {"image": "002.png", "license": "MIT", "width": "100.5"},
    {"image": "000.png", "license": "second", "width": "1"},
]


@pytest.fixture
def table(photos):
    return write_json_lines(photos / "rows.jsonl", ROWS)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("license = 'MIT'", "000 002"),
        ("license = 'O''Reilly'", "001"),
        ("width > 9.5", "001 002"),
        ("width = '9' or \"width\" = 10", "000 001"),
        ("tags like '%\"a\"%'", "000"),
        ("tags is null", "002"),
        ("path like '00%' and lower(license) in ('mit')", "000 002"),
        ("LICENSE = 'nothing'", ""),
        ("license = '1) or (1=1; -- /*'", ""),
    ],
)
def test_filters_are_exact(encoder, table, tmp_path, where, names):
    index = build(encoder, table, tmp_path / "index")
    for k in (1, 10):
        found = [match.path.name[:3] for match in index.search("red", k, where=where)]
        assert sorted(found) == names.split()[: len(found)] if k == 10 else len(found) == min(1, len(names.split()))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("licence = 'MIT'", "no column 'licence'; the index has license, width, tags"),
        ('license = "MIT"', "no column 'MIT'.*Put texts in single quotes: 'MIT'"),
        ("1) or (1", "unmatched closing parenthesis"),
        ("(1", "unclosed parenthesis"),
        ("1; drop table images", "; is not allowed"),
        ("1 -- comment", "-- is not allowed"),
        ("exists (select 1 from meta)", "select is not allowed"),
        ("license = 'MIT", "' is not allowed outside quotes, or a quote is not closed"),
        ("license = ?", r"\? is not allowed"),
        ("load_extension('x')", "not authorized"),
        ("randomblob(1000000000) is null", "not authorized"),
        ("license =", "incomplete input|syntax error"),
        ("  ", "is empty"),
        ("license = 'a\0'", "null character"),
    ],
)
def test_a_wrong_filter_is_named_before_anything_is_encoded(encoder, table, tmp_path, monkeypatch, where, message):
    index = build(encoder, table, tmp_path / "index")
    monkeypatch.setattr(encoder, "encode_texts", None)
    with pytest.raises(ValueError, match=f"(?s)--where.*({message})"):
        index.search("red", where=where)
    monkeypatch.undo()
    assert len(index.search("red")) == 3


def test_columns_of_a_table_follow_it(encoder, table, photos, tmp_path):
    index = build(encoder, table, tmp_path / "index")
    first = index.search(photos / "000.png", 1)[0]
    assert first.columns == {"license": "MIT", "width": 9, "tags": '["a", "b"]'}
    assert index.columns == ["license", "width", "tags"]
    write_json_lines(table, [{**ROWS[0], "license": "GPL", "author": "me"}, *ROWS[1:]])
    index = build(encoder, table, tmp_path / "index")
    assert counts(index) == {"changed": 1}
    assert [match.path.name for match in index.search("red", where="author = 'me'")] == ["000.png"]
    assert index.summary.encoded == 0


def test_columns_that_differ_in_case_only_are_refused(encoder, photos, tmp_path):
    table = write_json_lines(photos / "rows.jsonl", [{"image": "000.png", "Tag": "a", "tag": "b"}])
    with pytest.raises(ValueError, match="columns 'Tag' and 'tag' differ only in case"):
        build(encoder, table, tmp_path / "index")


def test_sidecars_and_labels_of_a_folder_are_columns(encoder, tmp_path):
    photos = tmp_path / "photos"
    write_image(photos / "cats" / "1.png", 1)
    write_image(photos / "train" / "2.png", 2)  # no split: a folder is indexed with all that is in it
    (photos / "cats" / "1.txt").write_text("a cat")
    index = build(encoder, photos, tmp_path / "index")
    assert [match.path.name for match in index.search("x", where="txt = 'a cat' and label = 'cats'")] == ["1.png"]
    assert len(index) == 2
    write_json_lines(photos / "metadata.jsonl", [{"file_name": "train/2.png", "name": "two"}])
    index = build(encoder, photos, tmp_path / "index")
    assert [match.path.name for match in index.search("x", where="name = 'two'")] == ["2.png"]
    assert len(index) == 2


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_images_within_a_data_set(encoder, world, tmp_path, kind):
    options = SourceOptions(image_column="png" if kind == "tars" else "image")
    index = build(encoder, getattr(world, kind), tmp_path / "index", options=options)
    distinct = index.summary.encoded
    assert index.summary.added == 40
    column = "txt" if kind == "tars" else "caption"
    match = index.search("red", 1, where=f"{column} = 'red circle left'")[0]
    assert match.path.name.startswith("p")
    assert index.read_image(match.path).size == (32, 32)
    again = build(encoder, getattr(world, kind), tmp_path / "index", options=options)
    assert (again.summary.unchanged, encoder.encoded) == (40, distinct)


def test_images_within_a_data_set_that_changes(tmp_path):
    check_images_follow_the_data_set(tmp_path, tmp_path / "index")


# ---------------------------------------------------------------------- queries and exports


def test_queries_of_several_parts(encoder, photos, tmp_path):
    index = build(encoder, photos, tmp_path / "index")
    text, image = encoder.encode_texts(["red"])[0], index.search(photos / "003.png", 1)[0]
    assert image.score == pytest.approx(1)
    other = encoder.encode_texts(["blue"])[0]
    own = index.embeds[index.paths.index(photos / "003.png")]
    for options, vector in (
        ({"image": str(photos / "003.png")}, text + own),
        ({"minus": "blue"}, text - other),
        ({"image": photos / "003.png", "minus": "blue"}, text + own - other),
    ):
        scores = index.embeds @ (vector / np.linalg.norm(vector))
        found = index.search("red", 5, **options)
        assert [match.score for match in found] == pytest.approx(np.sort(scores)[:-6:-1].tolist(), abs=1e-6)
    with pytest.raises(ValueError, match="the query is missing"):
        index.search(None, minus="blue")
    with pytest.raises(ValueError, match="cancel each other"):
        index.search("red", minus="red")


def test_exports(encoder, table, tmp_path):
    index = build(encoder, table, tmp_path / "index", dtype="float16")
    index.to_parquet(tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in index.paths]
    assert [row["license"] for row in rows] == ["MIT", "O'Reilly", "MIT"]
    np.testing.assert_array_equal([row["embedding"] for row in rows], index.embeds)
    faiss = pytest.importorskip("faiss")
    index.to_faiss(tmp_path / "out.faiss")
    flat = faiss.read_index(str(tmp_path / "out.faiss"))
    scores, ids = flat.search(encoder.encode_texts(["red"]), 3)
    found = index.search("red", 3)
    assert [index.paths[i] for i in ids[0]] == [match.path for match in found]
    assert scores[0].tolist() == pytest.approx([match.score for match in found], abs=1e-6)


# ---------------------------------------------------------------------- the command line


def test_the_command_line(world, tmp_path, monkeypatch):
    to = tmp_path / "index"
    table = write_json_lines(
        tmp_path / "rows.jsonl",
        [
            {"image": str(path), "license": "MIT" if i % 2 else "GPL"}
            for i, path in enumerate(sorted(world.imagefolder.glob("*.png")))
        ],
    )
    first = json.loads(succeed("index", world.model, table, "--to", to, "--json", "--dtype", "int8").stdout)
    assert first["added"] == 40
    assert "40 unchanged" in succeed("index", world.model, table, "--to", to).stdout
    found = json.loads(succeed("search", to, "a red circle", "--where", "license = 'MIT'", "-k", 3, "--json").stdout)
    assert len(found) == 3
    assert {row["license"] for row in found} == {"MIT"}
    assert all(row.keys() >= {"path", "score"} for row in found)
    image = sorted(world.imagefolder.glob("*.png"))[5]
    alone = succeed("search", to, "--image", image, "-k", 1, "--sheet", tmp_path / "sheet.png").stdout
    # In int8 an untrained model may take another image for nearly the same.
    best = ImageIndex.open(to).search(image=str(image), k=1)[0]
    assert alone.split()[:2] == [f"{best.score:.4f}", str(best.path)]
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
    both = succeed("search", to, "a red circle", "--image", image, "--minus", "black", "-k", 2)
    assert len(both.stdout.splitlines()) == 2
    assert "no column 'licence'" in error_of(call("search", to, "red", "--where", "licence = 1"))
    assert "give one text after it, in quotes" in error_of(call("search", to, "red", "circle"))
    assert "is not an index" in error_of(call("search", tmp_path / "nothing", "red"))
    line = error_of(call("search", world.model, world.imagefolder, "red", "--where", "path = 'a'"))
    assert "--where needs an index" in line


def test_a_folder_is_searched_through_an_index_in_the_cache(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        (photos / f"{i}.png").write_bytes(encoded(noise(32, 32, i)))
    expected = [
        f"{match.score:.4f}  {match.path}" for match in ImageIndex.from_folder(world.model, photos).search("red")
    ]
    assert succeed("search", world.model, photos, "red").stdout.splitlines() == expected
    (photos / "5.png").unlink()
    monkeypatch.setattr("hf_cots.search.torch_encoders.embed_images", None)  # nothing is encoded again
    after = succeed("search", world.model, photos, "red").stdout.splitlines()
    assert after == [line for line in expected if not line.endswith("5.png")]
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "file"))
    result = succeed("search", world.model, world.imagefolder, "red", "-k", 3)
    assert len(result.stdout.splitlines()) == 3


def test_a_newer_format_is_refused(encoder, photos, tmp_path):
    build(encoder, photos, tmp_path / "index")
    with sqlite3.connect(tmp_path / "index" / "index.sqlite") as database:
        database.execute("UPDATE meta SET value = '3' WHERE key = 'format'")
    for action in (
        lambda: ImageIndex.open(tmp_path / "index", encoder),
        lambda: build(encoder, photos, tmp_path / "index"),
    ):
        with pytest.raises(
            ValueError, match="has format 3, but this version of hf_cots only reads formats up to 2: upgrade"
        ):
            action()
