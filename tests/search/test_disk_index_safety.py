"""An index on disk that is killed, damaged, shared, or may not be written."""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from hf_cots import ImageIndex
from hf_cots.search import gallery, update
from hf_cots.search.store import IndexStore
from tests.support.cli import call, error_of
from tests.support.kills import run_killed
from tests.support.pixel_encoder import DIM, PixelEncoder, write_folder, write_image


FORK = multiprocessing.get_context("fork")  # which needs no imports
ROW = DIM * 4  # bytes


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(update, "COMMIT_VECTORS", 6)
    monkeypatch.setattr(update, "COMPACT_HOLES", 4)


def build(source, to, encoder=None, **options):
    return ImageIndex.build(encoder or PixelEncoder(), source, to, batch_size=3, **options)


def content(index):
    """All that an index answers with, whatever the slots are."""
    return [(match.path.name, round(match.score, 12)) for match in index.search("red", 1000)]


def run(source, to, **options):
    """Build in a process of its own, killed after so many `lines` of the code that writes."""
    return run_killed(FORK, ("search/store.py", "search/update.py"), build, source, to, **options)


def change(photos):
    """Rename, remove, change and add."""
    for i in range(0, 8):
        (photos / f"{i:03d}.png").unlink()
    for i in range(8, 12):
        os.rename(photos / f"{i:03d}.png", photos / f"moved{i}.png")
    write_image(photos / "012.png", 200, age=1800)
    for i in range(300, 315):
        write_image(photos / f"{i}.png", i)


def try_kills(tmp_path, times, seed):
    photos = write_folder(tmp_path / "photos", 24)
    reference, to, draws = tmp_path / "reference", tmp_path / "index", random.Random(seed)
    for stage in ("build", "update"):
        if stage == "update":
            change(photos)
        before = tmp_path / f"before-{stage}"
        if to.is_dir():
            shutil.copytree(to, before)
        code, lines = run(photos, reference)
        assert code == 0
        whole = content(ImageIndex.open(reference, PixelEncoder()))
        for _ in range(times):
            shutil.rmtree(to, ignore_errors=True)
            if before.is_dir():
                shutil.copytree(before, to)
            held = 0
            while run(photos, to, lines=draws.randrange(1, lines))[0] == -signal.SIGKILL:
                if (to / "index.sqlite").is_file():
                    index = ImageIndex.open(to, PixelEncoder())  # opens
                    held, least = check_whole_batches(index), held
                    assert stage == "update" or held >= least  # nothing committed is lost
                    index.store.close()
            assert content(build(photos, to)) == whole
            assert len(list(to.glob("vectors-*.bin"))) == 1


def check_whole_batches(index):
    """Every image that is there is found, and finds itself; returns how many there are."""
    store = index.store
    slots = {slot for (slot,) in store.database.execute("SELECT slot FROM images WHERE slot IS NOT NULL")}
    assert slots <= {slot for (slot,) in store.database.execute("SELECT slot FROM contents")}
    assert len(index.search("red", 1000)) == len(index)
    for path in index.paths[:3]:
        if path.is_file() and len(index):
            assert index.search(Image.open(path), 1)[0].score == pytest.approx(1, abs=1e-5)
    return len(index)


@pytest.mark.timeout(120)
def test_a_kill_at_any_line_loses_at_most_a_batch(tmp_path):
    try_kills(tmp_path, times=2, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_kills_lose_at_most_a_batch(tmp_path, seed):
    try_kills(tmp_path, times=10, seed=seed)


def test_a_batch_that_was_not_committed_is_cut_off(tmp_path):
    photos, to = write_folder(tmp_path / "photos", 10), tmp_path / "index"
    index = build(photos, to)
    with open(to / "vectors-0.bin", "ab") as file:
        file.write(b"half a batch")
    assert content(ImageIndex.open(to, PixelEncoder())) == content(index)
    build(photos, to)
    assert (to / "vectors-0.bin").stat().st_size == 10 * ROW


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["zeros", "truncated", "one bit", "missing"])
def test_a_damaged_tail_is_named_and_repaired(tmp_path, caplog, damage):
    photos, to = write_folder(tmp_path / "photos", 20), tmp_path / "index"
    whole = content(build(photos, to))
    path = to / "vectors-0.bin"
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[13 * ROW :] = bytes(len(data) - 13 * ROW)
    elif damage == "truncated":
        del data[13 * ROW :]
    elif damage == "one bit":
        data[-1] ^= 1
    path.write_bytes(data) if damage != "missing" else path.unlink()
    lost = {"one bit": 2, "missing": 20}.get(damage, 8)
    with pytest.raises(
        ValueError, match=rf"vectors-0\.bin is damaged: \d batches of {lost} vectors: run `hf-cots index"
    ):
        ImageIndex.open(to, PixelEncoder())
    encoder = PixelEncoder()
    repaired = build(photos, to, encoder)
    assert f"{lost} vectors are discarded and their images will be encoded again" in caplog.text
    assert encoder.encoded == repaired.summary.encoded == lost
    assert repaired.summary.unchanged == 20
    assert content(repaired) == whole


def test_damage_in_the_middle_is_repaired(tmp_path):
    photos, to = write_folder(tmp_path / "photos", 20), tmp_path / "index"
    whole = content(build(photos, to))
    data = bytearray((to / "vectors-0.bin").read_bytes())
    data[7 * ROW] ^= 1
    (to / "vectors-0.bin").write_bytes(data)
    encoder = PixelEncoder()
    assert content(build(photos, to, encoder)) == whole
    assert encoder.encoded == 6


def test_a_damaged_database_is_named(tmp_path):
    photos, to = write_folder(tmp_path / "photos", 3), tmp_path / "index"
    build(photos, to).store.close()
    (to / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=r"index\.sqlite is damaged .*delete the folder and index again"):
        ImageIndex.open(to, PixelEncoder())


# ---------------------------------------------------------------------- several at once


def read_for(to, seconds, queue):
    index = ImageIndex.open(to, PixelEncoder())
    end, sizes, reads = time.monotonic() + seconds, [], 0
    while time.monotonic() < end or reads < 250:
        found = index.search("red", 1000)
        scores = [match.score for match in found]
        assert scores == sorted(scores, reverse=True)
        sizes.append(len(found))
        reads += 1
    queue.put((reads, sizes))


def test_two_readers_read_while_one_writes(tmp_path):
    photos, to = write_folder(tmp_path / "photos", 20), tmp_path / "index"
    build(photos, to).store.close()
    queue = FORK.Queue()
    readers = [FORK.Process(target=read_for, args=(to, 1.5, queue)) for _ in range(2)]
    for reader in readers:
        reader.start()
    sizes = {20}
    for i in range(12):  # batches, deletions and compactions
        for j in range(8):
            write_image(photos / f"new{j}.png", 1000 + 10 * i + j, age=3600 - i)
        sizes.add(len(build(photos, to)))
    results = [queue.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join(30)
        assert reader.exitcode == 0
    assert sum(reads for reads, _ in results) >= 500
    assert all(20 <= size <= 28 for _, seen in results for size in seen)
    assert any(len(set(seen)) > 1 for _, seen in results)  # they see what is committed


def test_threads_share_an_index(tmp_path):
    index = build(write_folder(tmp_path / "photos", 20), tmp_path / "index")
    expected, failures = content(index), []

    def search():
        for _ in range(20):
            if content(index) != expected:
                failures.append(1)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_second_writer_is_refused_in_one_line(tmp_path, world):
    photos, to = write_folder(tmp_path / "photos", 3), tmp_path / "index"
    build(photos, to)
    writer = IndexStore(to, writable=True)
    with pytest.raises(OSError, match="is being written by another process: wait until it has finished"):
        build(photos, to)
    assert "is being written by another process" in error_of(call("index", world.model, photos, "--to", to))
    writer.close()
    assert build(photos, to).summary.unchanged == 3


def test_a_folder_that_may_not_be_written_is_searched_all_the_same(tmp_path, monkeypatch):
    photos, to = write_folder(tmp_path / "photos", 5), tmp_path / "index"
    whole = build(photos, to)
    expected = content(whole)
    whole.store.close()
    for name in ("index.sqlite-shm", "index.sqlite-wal"):
        (to / name).unlink(missing_ok=True)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))  # root may all
    index = ImageIndex.open(to, PixelEncoder())
    assert content(index) == expected
    assert not list(to.glob("*-shm"))


def test_an_index_that_cannot_be_made_is_one_line(tmp_path, world):
    (tmp_path / "file").write_text("")
    photos = write_folder(tmp_path / "photos", 1)
    line = error_of(call("index", world.model, photos, "--to", tmp_path / "file" / "index"))
    assert "cannot create the index" in line
    line = error_of(call("index", world.model, photos, "--to", photos))
    assert "is not an index and contains other files, such as 000.png: choose a new folder with --to" in line
    assert [path.name for path in photos.iterdir()] == ["000.png"]


# ---------------------------------------------------------------------- a source that moves


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    """What is indexed is what was read, and the next update reads it again."""
    photos, to = write_folder(tmp_path / "photos", 6), tmp_path / "index"
    read = gallery.read_file

    def change_after(path):
        data = read(path)
        if path.name == "003.png":
            write_image(path, 999, age=100)
        return data

    monkeypatch.setattr(gallery, "read_file", change_after)
    index = build(photos, to)
    monkeypatch.undo()
    assert len(index) == 6
    assert build(photos, to).summary.changed == 1
    assert index.search(photos / "003.png", 1)[0].score == pytest.approx(1)


def test_a_file_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    photos, to = write_folder(tmp_path / "photos", 6), tmp_path / "index"
    read = gallery.read_file

    def vanish(path):
        path.unlink() if path.name == "003.png" else None
        return read(path)

    monkeypatch.setattr(gallery, "read_file", vanish)
    index = build(photos, to)
    assert [str(image) for image in index.summary.broken] == [f"{photos / '003.png'}: no such file"]
    assert index.update().deleted == 1


def test_an_error_of_the_model_keeps_what_is_committed(tmp_path):
    photos, to = write_folder(tmp_path / "photos", 20), tmp_path / "index"

    class Failing(PixelEncoder):
        def encode_images(self, images, batch_size=64, total=None):
            if self.encoded >= 12:
                raise KeyboardInterrupt
            return super().encode_images(images)

    with pytest.raises(KeyboardInterrupt):
        build(photos, to, Failing())
    assert len(ImageIndex.open(to, PixelEncoder())) == 12
    encoder = PixelEncoder()
    assert len(build(photos, to, encoder)) == 20
    assert encoder.encoded == 8
    assert np.isfinite(build(photos, to).embeds).all()
