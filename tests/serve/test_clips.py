"""Clips over the JSON interface: their frames, sheets and files, and only if they are what was indexed."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_cots import ImageIndex
from hf_cots.data.clips import read_clip
from hf_cots.serve import clips as clips_module
from hf_cots.serve import images as images_module
from tests.serve.conftest import client_of
from tests.serve.test_app import data_url, error, paths
from tests.support.clip_files import BLUE, GREEN, RED, SIDE, scenes, write_animation, write_film, write_mixed_folder
from tests.support.pixel_encoder import PixelEncoder
from tests.support.worlds import encoded


@pytest.fixture
def folder(tmp_path):
    return write_mixed_folder(tmp_path / "mixed")


@pytest.fixture
def clip_index(folder):
    return ImageIndex.build(PixelEncoder(), folder, folder.parent / "index")


@pytest.fixture
def clip_client(clip_index):
    return client_of(clip_index)


def color_of(data):
    """The mean color of an encoded image."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64).mean(axis=(0, 1))


def search(client, color, k=9):
    """The results for an image of one color, by path."""
    data = encoded(Image.new("RGB", (8, 8), color))
    answer = client.post("/api/search", json={"image": data_url(data), "k": k})
    assert answer.status_code == 200, answer.text
    return {result["path"]: result for result in answer.json()["results"]}


def test_results_tell_moment_frames_and_media_type(clip_client, clip_index):
    found = search(clip_client, BLUE)
    expected = clip_index.search(Image.new("RGB", (8, 8), BLUE))
    assert {path: result["clip"] and result["clip"]["moment"] for path, result in found.items()} == {
        str(match.path.relative_to(clip_index.root)): match.moment for match in expected
    }
    clip = found["film.mp4"]["clip"]
    assert (clip["duration"], clip["media_type"], len(clip["times"])) == (2.0, "video/mp4", 4)
    assert found["moving.webp"]["clip"]["media_type"] == "image/webp"
    assert found["sub/moving.gif"]["clip"]["media_type"] == "image/gif"
    assert found["a.png"]["clip"] is None
    info = clip_client.get("/api/info").json()
    assert (info["images"], info["clips"]) == (6, 3)


def test_the_thumbnail_is_the_frame_of_the_moment(clip_client):
    for color in (BLUE, RED):
        for result in search(clip_client, color).values():
            if result["clip"] and result["path"] != "sub/moving.gif":
                answer = clip_client.get(result["thumbnail"])
                assert answer.headers["content-type"] == "image/webp"
                assert np.abs(color_of(answer.content) - color).max() < 16
                again = clip_client.get(result["thumbnail"], headers={"if-none-match": answer.headers["etag"]})
                assert again.status_code == 304
    film = search(clip_client, BLUE)["film.mp4"]
    asked = [clip_client.get(f"/thumbnail/{film['id']}", params={"at": at}) for at in (1.9, 1e9, 0)]
    assert np.abs(color_of(asked[0].content) - BLUE).max() < 16
    assert asked[1].content == asked[0].content  # the nearest
    assert np.abs(color_of(asked[2].content) - GREEN).max() < 16
    assert clip_client.get(f"/thumbnail/{film['id']}").status_code == 200
    for wrong in ("-1", "nan", "inf", "x"):
        error(clip_client.get(f"/thumbnail/{film['id']}", params={"at": wrong}), 422)


def test_the_sheet_has_the_frames_side_by_side(clip_client, folder):
    found = search(clip_client, BLUE)
    clip = found["film.mp4"]["clip"]
    sheet = Image.open(io.BytesIO(clip_client.get(clip["sheet"]).content))
    side = clips_module.SHEET_SIDE
    assert sheet.size == (side * len(clip["times"]), side)
    frames = read_clip(folder / "film.mp4", times=clip["times"])
    for number, frame in enumerate(frames.frames):
        left = number * side + (side - SIDE) // 2
        top = (side - SIDE) // 2
        shown = np.asarray(sheet.convert("RGB").crop((left, top, left + SIDE, top + SIDE)), dtype=float)
        assert np.abs(shown.mean(axis=(0, 1)) - np.asarray(frame, dtype=float).mean(axis=(0, 1))).max() < 12
    assert "is not a clip" in error(clip_client.get(f"/sheet/{found['a.png']['id']}"), 404)
    error(clip_client.get("/sheet/999"), 404)


def test_a_sheet_of_many_frames_is_not_too_wide(folder):
    data = clips_module.draw_sheet(folder / "film.mp4", "x", np.linspace(0, 1.9, 300).tolist())
    assert Image.open(io.BytesIO(data)).size == (53 * 300, 53)


def test_a_player_gets_the_parts_that_it_asks_for(clip_client, folder):
    result = search(clip_client, BLUE)["film.mp4"]
    whole = (folder / "film.mp4").read_bytes()
    answer = clip_client.get(result["image"])
    assert (answer.content, answer.headers["content-type"]) == (whole, "video/mp4")
    assert answer.headers["accept-ranges"] == "bytes"
    part = clip_client.get(result["image"], headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    last = clip_client.get(result["image"], headers={"range": "bytes=-7"})
    assert (last.status_code, last.content) == (206, whole[-7:])
    beyond = clip_client.get(result["image"], headers={"range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416
    other = clip_client.get(result["image"], headers={"range": "bytes=0-9", "if-range": '"another"'})
    assert (other.status_code, other.content) == (200, whole)
    same = clip_client.get(result["image"], headers={"range": "bytes=0-9", "if-range": answer.headers["etag"]})
    assert (same.status_code, same.content) == (206, whole[:10])
    assert clip_client.get(result["image"], headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    for name in ("moving.webp", "sub/moving.gif"):
        result = search(clip_client, BLUE)[name]
        assert clip_client.get(result["image"]).content == (folder / name).read_bytes()


def test_a_clip_that_has_changed_is_not_given_out(clip_client, folder, monkeypatch):
    read, digest = [], clips_module.digest_source
    monkeypatch.setattr(clips_module, "digest_source", lambda source: read.append(source) or digest(source))
    result = search(clip_client, BLUE)["film.mp4"]
    for _ in range(3):
        assert clip_client.get(result["image"], headers={"range": "bytes=0-9"}).status_code == 206
    assert len(read) == 1  # hashed once, not for each part
    write_film(folder / "film.mp4", (RED, RED))
    for address in (result["image"], result["thumbnail"], result["clip"]["sheet"]):
        assert "changed" in error(clip_client.get(address), 410)
    (folder / "film.mp4").unlink()
    error(clip_client.get(result["image"]), 410)


def test_an_update_with_clips_is_seen(clip_client, clip_index, folder):
    write_animation(folder / "new.gif", (GREEN, BLUE))
    clip_index.update()
    assert search(clip_client, GREEN)["new.gif"]["clip"] is not None
    assert clip_client.get("/api/info").json()["clips"] == 4


def test_clips_within_a_data_set(folder, tmp_path):
    import datasets

    rows = [{"image": {"bytes": (folder / name).read_bytes(), "path": None}} for name in ("film.mp4", "moving.webp")]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "held.parquet")
    client = client_of(ImageIndex.build(PixelEncoder(), str(tmp_path / "held.parquet"), tmp_path / "inside"))
    found = search(client, BLUE)
    assert len(found) == 2
    answers = {client.get(result["image"]).headers["content-type"] for result in found.values()}
    assert answers == {"video/mp4", "image/webp"}
    for result in found.values():
        for address in (result["thumbnail"], result["clip"]["sheet"]):
            assert client.get(address).status_code == 200


@pytest.mark.parametrize("name", ["film.mp4", "moving.webp", "sub/moving.gif"])
def test_a_clip_is_searched_for(clip_client, clip_index, folder, name):
    data = (folder / name).read_bytes()
    expected = [str(match.path.relative_to(clip_index.root)) for match in clip_index.search(folder / name)]
    assert paths(clip_client.post("/api/search", files={"image": ("x", data, "video/mp4")})) == expected
    url = data_url(data).replace("image/png", "video/mp4")
    assert paths(clip_client.post("/api/search", json={"image": url})) == expected
    similar = clip_client.post("/api/similar", json={"id": clip_index.search(folder / name, 1)[0].id})
    assert paths(similar) == expected[1:]


def test_clips_of_a_query_that_are_refused(clip_client, monkeypatch):
    def refused(data, status):
        return error(clip_client.post("/api/search", files={"image": ("x", data, "video/mp4")}), status)

    film = b"\0\0\0\x18ftypmp42" + b"\0" * 100
    assert refused(film, 422).startswith("image: ")
    assert refused(b"\x1aE\xdf\xa3 and no more", 422).startswith("image: ")
    assert "cannot be read" in refused(b"#EXTM3U\nhttp://localhost/x.ts", 422)
    first, *others = scenes((RED, GREEN, BLUE))
    animation = encoded(first, "GIF", save_all=True, append_images=others)
    monkeypatch.setattr(images_module, "MAX_CLIP_PIXELS", 3 * SIDE * SIDE - 1)
    assert "3,072 pixels in all frames" in refused(animation, 413)
    monkeypatch.setattr(images_module, "MAX_CLIP_PIXELS", 3 * SIDE * SIDE)
    assert clip_client.post("/api/search", files={"image": ("x", animation, "image/gif")}).status_code == 200
