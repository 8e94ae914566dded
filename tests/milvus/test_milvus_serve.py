"""The search page's JSON interface over an index in Milvus gives what it gives over one in a folder."""

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from hf_cots import ImageIndex, RerankedIndex, load_encoder
from hf_cots.cli import serve as command
from hf_cots.search.gallery import SourceOptions
from hf_cots.serve import milvus_catalog
from tests.serve.conftest import BASE, STYLES, client_of
from tests.support.cli import succeed
from tests.support.clip_files import write_mixed_folder
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.simla_world import simla_folder
from tests.support.worlds import noise, write_json_lines, write_parquet


pytestmark = pytest.mark.milvus


@pytest.fixture
def photos(tmp_path):
    folder = write_folder(tmp_path / "photos", 30)
    rows = [{"file_name": f"{i:03d}.png", "style": STYLES[i % 4], "size": i % 3} for i in range(30)]
    write_json_lines(folder / "metadata.jsonl", rows)
    return folder


@pytest.fixture
def clients(photos, tmp_path, uri):
    """Of an index in Milvus, and of one in a folder."""
    return [client_of(ImageIndex.build(PixelEncoder(), photos, to)) for to in (uri, tmp_path / "index")]


def found(answer):
    """The results without their numbers."""
    assert answer.status_code == 200, answer.text
    own = ("id", "image", "thumbnail")
    return [{name: cell for name, cell in result.items() if name not in own} for result in answer.json()["results"]]


def error(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_it_answers_as_over_a_folder(clients, photos, uri):
    milvus, _ = clients
    upload = {"image": ("x.png", (photos / "003.png").read_bytes(), "image/png")}
    for fields in (
        {"text": "a red circle"},
        {"text": "a", "minus": "b", "k": 7},
        {"text": "a", "filters": {"style": ["O'Neil's", None], "size": [0, 1]}},
        {"text": "a", "where": "size >= 1 and style is not null", "filters": {"style": ["flat"]}},
        {"text": "a", "where": "size > 5"},
    ):
        answers = [found(client.post("/api/search", json=fields)) for client in clients]
        assert answers[0] == answers[1]
    answers = [found(client.post("/api/search", data={"text": "a"}, files=upload)) for client in clients]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 30
    infos = [client.get("/api/info").json() for client in clients]
    assert infos[0] | {"name": "index", "keywords": infos[1]["keywords"]} == infos[1]
    assert (infos[0]["name"], infos[0]["keywords"]) == (uri.rpartition("/")[2], [])
    assert [facet["column"] for facet in infos[0]["facets"]] == ["style", "size"]
    assert "hybrid: keyword search is not supported for an index in Milvus" in error(
        milvus.post("/api/search", json={"text": "a", "hybrid": ["style"]}), 400
    )
    assert "an index in Milvus compares columns with values" in error(
        milvus.get("/api/search", params={"text": "a", "where": "lower(style) = 'flat'"}), 400
    )
    assert "no column 'nope'" in error(milvus.post("/api/search", json={"text": "a", "filters": {"nope": [1]}}), 400)


def test_images_are_those_that_were_answered(clients, photos):
    milvus, disk = clients
    results = milvus.get("/api/search", params={"text": "a", "k": 3}).json()["results"]
    for result in results:
        answer = milvus.get(result["image"])
        assert answer.content == (photos / result["path"]).read_bytes()
        assert milvus.get(result["image"], headers={"if-none-match": answer.headers["etag"]}).status_code == 304
        assert Image.open(io.BytesIO(milvus.get(result["thumbnail"]).content)).size == (6, 6)
        assert 0 <= result["id"] < 2**53  # which browsers compute with
    same = disk.get("/api/search", params={"text": "a", "k": 1}).json()["results"][0]
    similar = [
        client.get("/api/similar", params={"id": id, "k": 9})
        for client, id in ((milvus, results[0]["id"]), (disk, same["id"]))
    ]
    assert found(similar[0]) == found(similar[1])
    assert len(found(similar[0])) == 9
    others = [id for id in range(40) if id not in {result["id"] for result in results}]
    assert {milvus.get(f"/image/{id}").status_code for id in others} == {404}
    assert "the index has no image 1" in error(milvus.get("/api/similar", params={"id": 1}), 404)
    changed, gone = (photos / result["path"] for result in results[:2])
    write_image(changed, 77)
    gone.unlink()  # or on another machine
    for result in results[:2]:
        assert "can no longer be read, or has changed" in error(milvus.get(result["image"]), 410)


def test_updates_by_others_are_seen(clients, photos, uri, monkeypatch):
    milvus, _ = clients
    monkeypatch.setattr(milvus_catalog, "CHECK_SECONDS", 0)
    before = milvus.get("/api/search", params={"text": "a", "k": 1}).json()["results"][0]
    rows = [{"file_name": f"{i:03d}.png", "kind": "ab"[i % 2]} for i in range(30)]
    write_json_lines(photos / "metadata.jsonl", rows)
    (photos / before["path"]).unlink()
    ImageIndex.build(PixelEncoder(), photos, uri)
    assert milvus.get(before["image"]).status_code in (404, 410)
    info = milvus.get("/api/info").json()
    assert (info["images"], [facet["column"] for facet in info["facets"]]) == (29, ["kind"])
    assert {result["columns"]["kind"] for result in found(milvus.post("/api/search", json={"text": "a"}))} == {
        "a",
        "b",
    }
    assert len(found(milvus.post("/api/search", json={"text": "a", "filters": {"kind": ["a"]}}))) in (14, 15)
    moved = photos.rename(photos.parent / "elsewhere")
    ImageIndex.build(PixelEncoder(), moved, uri)
    result = milvus.get("/api/search", params={"text": "a", "k": 1}).json()["results"][0]
    assert milvus.get(result["image"]).content == (moved / result["path"]).read_bytes()


def test_a_data_set_that_is_not_on_this_machine(tmp_path, uri):
    table = write_parquet(
        tmp_path / "pairs.parquet", [("a.png", noise(6, 6, 1), "one"), ("b.png", noise(6, 6, 2), "two")]
    )
    client = client_of(ImageIndex.build(PixelEncoder(), table, uri, options=SourceOptions()))
    result = client.get("/api/search", params={"text": "a", "k": 1}).json()["results"][0]
    assert client.get(result["image"]).status_code == 200
    table.rename(tmp_path / "elsewhere.parquet")
    client = client_of(ImageIndex.open(uri, PixelEncoder()))
    result = client.get("/api/search", params={"text": "a", "k": 1}).json()["results"][0]
    assert "can no longer be read" in error(client.get(result["image"]), 410)


def test_the_command_and_the_re_ranker(world, uri, monkeypatch):
    apps = []
    monkeypatch.setattr(command, "run", lambda app, listener: (apps.append(app), listener.close()))
    ImageIndex.build(str(world.model), world.imagefolder, uri)
    assert (
        "40 images at http://localhost:" in succeed("serve", uri, "--port", 0, "--rerank", simla_folder(world)).stdout
    )
    answer = TestClient(apps[0], base_url=BASE).get(
        "/api/search", params={"text": "a red circle", "k": 5, "rerank": True}
    )
    index = ImageIndex.open(uri, load_encoder(world.model))
    expected = RerankedIndex.from_index(index, str(simla_folder(world))).search("a red circle", 5)
    assert [result["path"] for result in answer.json()["results"]] == [match.path.name for match in expected]


def test_clips(tmp_path, uri):
    folder = write_mixed_folder(tmp_path / "mixed")
    given = []
    for to in (uri, tmp_path / "index"):
        client = client_of(ImageIndex.build(PixelEncoder(), folder, to))
        results = client.get("/api/search", params={"text": "a"}).json()["results"]
        films = [result for result in results if result["path"] == "film.mp4"]
        clip = films[0]["clip"]
        addresses = (films[0]["image"], films[0]["thumbnail"], clip["sheet"])
        given.append([client.get("/api/info").json()["clips"], clip["moment"], clip["times"]])
        given[-1] += [client.get(address).content for address in addresses]
    assert given[0] == given[1]
    assert given[0][0] == 3
