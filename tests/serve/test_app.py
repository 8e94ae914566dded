"""The JSON interface: what it finds, what it gives out, and what it refuses."""

import base64
import io
import random
import string
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from hf_cots import ImageIndex, RerankedIndex, load_encoder
from hf_cots.data.images import read_image
from hf_cots.serve import engine as engine_module
from hf_cots.serve import images as images_module
from hf_cots.serve.guard import HEADERS
from hf_cots.serve.images import ImageFiles
from tests.serve.conftest import BASE, client_of
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.simla_world import simla_folder
from tests.support.worlds import encoded, noise, write_json_lines


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [result["id"] for result in answer.json()["results"]]


def paths(answer):
    assert answer.status_code == 200, answer.text
    return [result["path"] for result in answer.json()["results"]]


def names(matches):
    return [match.path.name for match in matches]


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert "Traceback" not in answer.text
    return answer.json()["error"]


def data_url(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


# ---------------------------------------------------------------------- what is found


def test_a_text_finds_what_the_index_finds(client, index):
    expected = index.search("a red circle", 7)
    answer = client.get("/api/search", params={"text": "a red circle", "k": 7})
    assert paths(answer) == names(expected)
    found = answer.json()["results"]
    assert [result["score"] for result in found] == [match.score for match in expected]
    assert [result["columns"] for result in found] == [match.columns for match in expected]
    assert [result["id"] for result in found] == [match.id for match in expected]
    assert answer.json()["timings"].keys() == {"encode", "search", "rerank", "total"}
    assert client.post("/api/search", json={"text": "a red circle", "k": 7}).json()["results"] == found


@pytest.mark.parametrize("text", [None, "a text"])
@pytest.mark.parametrize("minus", [None, "another"])
def test_an_image_is_an_upload_or_a_data_url(client, index, photos, text, minus):
    data = (photos / "003.png").read_bytes()
    expected = names(index.search(text, 5, image=photos / "003.png", minus=minus))
    fields = {name: value for name, value in {"text": text, "minus": minus, "k": 5}.items() if value is not None}
    uploaded = client.post("/api/search", data=fields, files={"image": ("x.png", data, "image/png")})
    assert paths(uploaded) == expected
    assert paths(client.post("/api/search", json=fields | {"image": data_url(data)})) == expected


def test_filters_and_where(client, index):
    def found(**fields):
        return paths(client.post("/api/search", json={"text": "a", "k": 30} | fields))

    def expected(where):
        return names(index.search("a", 30, where=where))

    assert found(filters={"style": ["O'Neil's", None]}) == expected("style = 'O''Neil''s' or style is null")
    assert found(filters={"style": ["flat"], "size": [4, 8]}, where="size < 8 or 1") == expected("size in (4, 8)")
    assert found(filters={"style": ["flat"]}, where="size < 3 or size > 20") == expected(
        "style = 'flat' and (size < 3 or size > 20)"
    )
    assert found(filters={"style": ["' or 1 --"]}) == []
    by_address = client.get("/api/search", params={"text": "a", "k": 30, "filters": '{"style": ["flat"]}'})
    assert paths(by_address) == expected("style = 'flat'")


def test_words_of_columns(client, index):
    expected = index.search("number 7", 9, hybrid=["title", "path"])
    fields = {"text": "number 7", "k": 9, "hybrid": ["title", "path"]}
    by_json = client.post("/api/search", json=fields)
    assert paths(by_json) == names(expected)
    assert expected[0].columns["title"] == "number 7"
    found = by_json.json()["results"]
    assert [result["score"] for result in found] == [match.score for match in expected]
    assert [result["similarity"] for result in found] == [match.similarity for match in expected]
    assert client.get("/api/search", params=fields).json()["results"] == found
    form = [
        (name, (None, str(each))) for name in fields for each in ([fields[name]] if name != "hybrid" else fields[name])
    ]
    assert client.post("/api/search", files=form).json()["results"] == found
    fields |= {"where": "size < 20", "filters": {"style": ["line"]}}
    expected = index.search("number 7", 9, where="size < 20 and style = 'line'", hybrid=["title", "path"])
    assert paths(client.post("/api/search", json=fields)) == names(expected)
    plain = client.post("/api/search", json={"text": "number 7", "hybrid": []}).json()["results"]
    assert [result["similarity"] for result in plain] == [None] * 30
    assert client.get("/api/info").json()["keywords"] == ["style", "title", "path"]


def test_the_recall_of_an_approximate_search_is_told(approximate_index, client):
    """That of the kind of queries for which it is lower, and only where it is not exact."""
    asked = client_of(approximate_index)

    def told(kind="search", **fields):
        answer = asked.post(f"/api/{kind}", json=({"text": "a"} if kind == "search" else {"id": 1}) | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["approximate"]

    of_10, of_100 = {"results": 10, "recall": 0.75}, {"results": 100, "recall": 0.99239}
    assert told(k=10) == asked.get("/api/search", params={"text": "a", "k": 5}).json()["approximate"] == of_10
    assert told(k=11) == told(k=100) == of_100
    assert told("similar", k=9) == of_10
    assert told("similar", k=10) == told("similar", k=99) == of_100  # one more, since it finds itself
    assert told("similar", k=100) is None
    assert [told(**each) for each in ({"k": 101}, {"where": "1"}, {"hybrid": ["path"]})] == [None] * 3
    assert client.post("/api/search", json={"text": "a"}).json()["approximate"] is None


def test_similar_images_are_the_nearest_without_the_image(client, index, photos):
    match = index.search("a", 1)[0]
    expected = [name for name in names(index.search(match.path, 30)) if name != match.path.name]
    assert paths(client.get("/api/similar", params={"id": match.id, "k": 9})) == expected[:9]
    assert paths(client.post("/api/similar", json={"id": match.id, "k": 500})) == expected
    assert "no image 999" in error(client.get("/api/similar", params={"id": 999}), 404)


def test_info_offers_columns_with_few_values(client):
    info = client.get("/api/info").json()
    assert (info["name"], info["model"], info["images"], info["rerank"]) == ("index", "pixels", 30, False)
    assert info["columns"] == ["style", "size", "title"]
    assert [facet["column"] for facet in info["facets"]] == ["style"]
    counts = {value["value"]: value["count"] for value in info["facets"][0]["values"]}
    assert counts == {"flat": 8, "line": 8, "O'Neil's": 7, None: 7}


def test_columns_may_have_the_names_of_the_index_s_own(tmp_path):
    photos, names = write_folder(tmp_path / "photos", 8), ["id", "path", "slot", "size", "mtime", "reason", "hash"]
    rows = [{"file_name": f"{i:03d}.png"} | {name: f"{name}{i % 2}" for name in names} for i in range(8)]
    write_json_lines(photos / "metadata.jsonl", rows)
    client = client_of(ImageIndex.build(PixelEncoder(), photos, tmp_path / "index"))
    info = client.get("/api/info").json()
    assert {facet["column"]: [each["value"] for each in facet["values"]] for facet in info["facets"]} == {
        name: [f"{name}0", f"{name}1"] for name in names
    }
    for name in names:
        answer = client.post("/api/search", json={"text": "a", "filters": {name: [f"{name}1"]}, "hybrid": [name]})
        assert sorted(paths(answer)) == ["001.png", "003.png", "005.png", "007.png"]


def test_reranking(world, tmp_path):
    index = ImageIndex.build(load_encoder(world.model), world.imagefolder, tmp_path / "index")
    reranked = RerankedIndex.from_index(index, str(simla_folder(world)))
    client = client_of(index, reranker=reranked)
    assert client.get("/api/info").json()["rerank"] is True
    answer = client.get("/api/search", params={"text": "a red circle", "k": 5, "rerank": True})
    assert paths(answer) == names(reranked.search("a red circle", 5)) != names(index.search("a red circle", 5))
    assert answer.json()["timings"]["rerank"] > 0
    image = {"image": ("x.png", encoded(noise(8, 8, 1)), "image/png")}
    assert "needs a text" in error(client.post("/api/search", data={"rerank": "true"}, files=image), 400)


# ---------------------------------------------------------------------- images


def test_images_by_id(client, index):
    for match in index.search("a", 3):
        answer = client.get(f"/image/{match.id}")
        assert answer.content == match.path.read_bytes()
        assert answer.headers["content-type"] == "image/png"
        small = client.get(f"/thumbnail/{match.id}")
        assert Image.open(io.BytesIO(small.content)).convert("RGB").tobytes() == read_image(match.path).tobytes()
        again = client.get(f"/thumbnail/{match.id}", headers={"if-none-match": small.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_images_within_a_table(world, tmp_path):
    index = ImageIndex.build(PixelEncoder(), world.parquet, tmp_path / "index")
    client = client_of(index)
    for match in index.search("a", 3):
        assert client.get(f"/image/{match.id}").content == index.read_bytes(match.path)
        assert client.get(f"/thumbnail/{match.id}").status_code == 200


def test_a_large_image_has_a_small_thumbnail_and_other_formats_are_converted(tmp_path):
    write_folder(tmp_path / "photos", 2)
    noise(900, 600, 5).save(tmp_path / "photos" / "large.tiff")
    index = ImageIndex.build(PixelEncoder(), tmp_path / "photos", tmp_path / "index")
    client = client_of(index)
    (large,) = [match for match in index.search("a") if match.path.name == "large.tiff"]
    assert Image.open(io.BytesIO(client.get(f"/thumbnail/{large.id}").content)).size == (320, 213)
    answer = client.get(f"/image/{large.id}")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).tobytes() == read_image(large.path).tobytes()


def test_a_file_that_is_no_longer_what_was_indexed_is_not_given_out(tmp_path):
    photos = write_folder(tmp_path / "photos", 3)
    index = ImageIndex.build(PixelEncoder(), photos, tmp_path / "index")
    client = client_of(index)
    of_name = {match.path.name: match.id for match in index.search("a")}
    secret = tmp_path / "secret.png"
    write_image(secret, 99)
    (photos / "000.png").unlink()
    (photos / "000.png").symlink_to(secret)
    (photos / "001.png").unlink()
    for address in ("image", "thumbnail"):
        assert "changed" in error(client.get(f"/{address}/{of_name['000.png']}"), 410)
        assert error(client.get(f"/{address}/{of_name['001.png']}"), 410)
        assert client.get(f"/{address}/{of_name['002.png']}").status_code == 200


PATHS = (
    "../metadata.jsonl",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "-1",
    "1.5",
    "9" * 30,
    "000.png",
    "%00",
    "1;2",
    "",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("folder", ["image", "thumbnail", "static"])
def test_nothing_else_is_given_out(client, folder, path):
    answer = client.get(f"{BASE}/{folder}/{path}")
    assert answer.status_code in (404, 422)
    assert answer.json().keys() == {"error"}


def test_thumbnails_in_memory_are_bounded(monkeypatch, photos):
    monkeypatch.setattr(images_module, "THUMBNAIL_BYTES", 500)
    kept = ImageFiles()
    for path in sorted(photos.glob("*.png")):
        data = path.read_bytes()
        digest = images_module.hex_digest([data])
        made = kept.thumbnail(data, digest, path.name)
        assert kept.kept_thumbnail(digest) == made
    assert 0 < kept._size == sum(map(len, kept._thumbnails.values())) <= 500


# ---------------------------------------------------------------------- uploads


def bomb(width, height):
    """A PNG of a few bytes that decodes to as many pixels as one likes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8000, 8000), (10_000, 10_000), (60_000, 60_000), (2**30, 2**30)])
def test_decompression_bombs_are_refused(client, size):
    upload = client.post("/api/search", files={"image": ("bomb.png", bomb(*size), "image/png")})
    assert "pixels" in error(upload, 413)


def test_uploads_are_limited_in_bytes(index):
    client = client_of(index, max_upload_bytes=50_000)
    assert "larger" in error(client.post("/api/search", content=b"x" * 200_000), 413)
    chunks = (b"x" * 1000 for _ in range(1_000_000))  # without a length: reading it stops early
    unannounced = client.post("/api/search", content=chunks, headers={"content-type": "application/json"})
    assert "larger" in error(unannounced, 413)
    large = encoded(noise(160, 160, 1))
    assert 50_000 < len(large) < 100_000
    assert "bytes" in error(client.post("/api/search", files={"image": ("x.png", large)}), 413)
    assert error(client.post("/api/search", json={"image": data_url(large)}), 413)
    fits = encoded(noise(100, 100, 1))
    assert client.post("/api/search", json={"image": data_url(fits)}).status_code == 200


@pytest.mark.parametrize(
    "image",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.png",
        "https://example.com/x.png",
        "data:image/png,abc",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,%%%",
        "AAAA",
        "",
        "data:image/png;base64,",
    ],
)
def test_an_image_is_never_a_path_or_an_address(client, image):
    assert error(client.post("/api/search", json={"image": image}), 422)
    assert error(client.post("/api/search", data={"image": image}, files={"x": b""}), 422)


@pytest.mark.parametrize("name", ["x.eps", "x.svg", "x.png", "x.pdf"])
def test_what_is_no_image_is_refused(client, name):
    data = {"x.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x.svg": b"<svg/>", "x.pdf": b"%PDF-1.4"}
    assert "cannot be read" in error(client.post("/api/search", files={"image": (name, data.get(name, b"PNG"))}), 422)


# ---------------------------------------------------------------------- wrong requests

WRONG = [
    ({}, 400, "give a text or an image"),
    ({"text": "  "}, 400, "give a text or an image"),
    ({"text": 5}, 422, "text"),
    ({"text": ["a"]}, 422, "text"),
    ({"text": "a" * 2001}, 422, "text"),
    ({"text": "a", "k": 0}, 422, "k"),
    ({"text": "a", "k": 10**30}, 422, "k"),
    ({"text": "a", "k": 1.5}, 422, "k"),
    ({"text": "a", "k": "many"}, 422, "k"),
    ({"text": "a", "rerank": True}, 400, "--rerank"),
    ({"text": "a", "path": "/etc/passwd"}, 422, "path"),
    ({"text": "a", "where": "nope = 1"}, 400, "no column 'nope'"),
    ({"text": "a", "where": "1; DROP TABLE images"}, 400, "not allowed"),
    ({"text": "a", "where": "size IN (SELECT 1)"}, 400, "not allowed"),
    ({"text": "a", "where": "1) OR (1"}, 400, "parenthesis"),
    ({"text": "a", "where": "load_extension('x')"}, 400, "where"),
    ({"text": "a", "where": "randomblob(1000000000)"}, 400, "where"),
    ({"text": "a", "where": "\0"}, 400, "null character"),
    ({"text": "a", "where": "(" * 1990}, 400, "parenthesis"),
    ({"text": "a", "where": "-" * 1 + "+-" * 999}, 400, "where"),
    ({"text": "a", "hybrid": ["nope"]}, 400, "hybrid: no column 'nope'; the index has style, size, title, path"),
    ({"text": "a", "hybrid": "title"}, 422, "hybrid"),
    ({"text": "a", "hybrid": [5]}, 422, "hybrid"),
    ({"text": "a", "hybrid": ["title"] * 51}, 422, "hybrid"),
    ({"text": "a", "filters": {"nope": [1]}}, 400, "no column 'nope'"),
    ({"text": "a", "filters": {'x" OR 1': [1]}}, 400, "no column"),
    ({"text": "a", "filters": {"style": "flat"}}, 422, "filters"),
    ({"text": "a", "filters": {"style": [{}]}}, 422, "filters"),
]


@pytest.mark.parametrize(("fields", "status", "words"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(client, fields, status, words):
    assert words in error(client.post("/api/search", json=fields), status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'{"text": "a", "k": NaN}',
        b'{"text": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100000,
        b'{"k": 1e999, "text": "a"}',
        b'{"text": "a", "filters": {"size": [NaN]}}',
    ],
)
def test_wrong_json(client, body):
    for address in ("search", "similar"):
        assert error(client.post(f"/api/{address}", content=body, headers={"content-type": "application/json"}), 422)


def test_other_bodies_and_methods(client):
    assert "Content-Type" in error(client.post("/api/search", content=b"text=a"), 415)
    wrong = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/api/search", content=b"no form", headers=wrong).status_code in (400, 422)
    assert error(client.post("/api/search", content=b"", headers={"content-type": "multipart/form-data"}), 400)
    assert error(client.put("/api/search"), 405)
    assert error(client.get("/nothing"), 404)
    two = [("image", ("a.png", b"a")), ("image", ("b.png", b"b"))]
    assert error(client.post("/api/search", files=two), 400)
    assert error(client.get("/api/search", params={"text": "a", "filters": "{"}), 422)
    assert error(client.get("/api/search", params={"text": "a", "filters": '{}, "k": 1'}), 422)


def test_unicode_is_found_and_told(client):
    for text in ("円", "🦊" * 100, "\u202eabc", "é\u0301", "a\0b"):
        assert len(ids(client.post("/api/search", json={"text": text, "k": 2}))) == 2
    assert "円" in error(client.post("/api/search", json={"text": "a", "where": "円 = 1"}), 400)


def test_random_requests_never_break_the_server(client):
    """Seeded: bytes, JSON of random kinds, and addresses."""
    chooser = random.Random(0)
    atoms = [None, True, -1, 0, 3, 2**70, 1.5, "", "a", "\0", "'", '"', "--", "é" * 50, [], {}, ["a"], {"a": [1]}]
    fields = ("text", "image", "minus", "where", "filters", "k", "rerank", "hybrid", "id", "x")
    for _ in range(150):
        kind = chooser.randrange(4)
        if kind == 0:
            content = chooser.randbytes(chooser.randrange(200))
            media = chooser.choice(["application/json", "multipart/form-data; boundary=a", "text/plain", "a\\b"])
            answer = client.post("/api/search", content=content, headers={"content-type": media})
        elif kind == 1:
            body = {chooser.choice(fields): chooser.choice(atoms) for _ in range(4)}
            answer = client.post(chooser.choice(["/api/search", "/api/similar"]), json=body)
        elif kind == 2:
            params = {chooser.choice(fields): "".join(chooser.choices(string.printable, k=9)) for _ in range(3)}
            answer = client.get(chooser.choice(["/api/search", "/api/similar", "/api/info"]), params=params)
        else:
            answer = client.post("/api/search", files={"image": ("x", b"\x89PNG\r\n\x1a\n" + chooser.randbytes(60))})
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
        assert answer.status_code == 200 or answer.json().keys() == {"error"}


def test_a_bug_leaks_nothing(index, monkeypatch):
    def fail(*_):
        raise RuntimeError("a secret")

    client = client_of(index)
    monkeypatch.setattr(index.encoder, "encode_texts", fail, raising=False)
    answer = client.get("/api/search", params={"text": "a"})
    assert "secret" not in error(answer, 500)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_filter_that_takes_too_long_is_stopped(index, monkeypatch):
    monkeypatch.setattr(engine_module, "STEPS", 50)
    monkeypatch.setattr(engine_module, "FILTER_SECONDS", -1.0)
    client = client_of(ImageIndex.open(index.folder, index.encoder))
    slow = " or ".join(["length(path || title) + size < 0"] * 50)
    assert "longer than" in error(client.post("/api/search", json={"text": "a", "where": slow}), 400)
    monkeypatch.undo()
    assert ids(client.post("/api/search", json={"text": "a", "where": slow})) == []


def test_words_of_a_large_index_are_read_to_the_end(index, monkeypatch):
    monkeypatch.setattr(engine_module, "STEPS", 200)
    monkeypatch.setattr(engine_module, "FILTER_SECONDS", -1.0)
    opened = ImageIndex.open(index.folder, index.encoder)
    answer = client_of(opened).post("/api/search", json={"text": "a", "hybrid": ["title"]})
    assert "longer than" in error(answer, 400)  # what comes after that is a search as any other
    assert list(opened._keywords._tables) == [("title",)]


# ---------------------------------------------------------------------- who may ask


def test_other_hosts_and_other_sites_are_refused(client, index):
    def status(**headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get("/api/info", headers=named).status_code

    assert [status(host=host) for host in ("localhost:8000", "127.0.0.1", "LOCALHOST", "[::1]:80")] == [200] * 4
    wrong = ("evil.com", "evil.com:8000", "127.0.0.1.evil.com", "", "localhost.", "0.0.0.0")
    assert [status(host=host) for host in wrong] == [421] * 6
    assert status(origin=BASE) == 200
    assert [status(origin=origin) for origin in ("http://evil.com", "null", "http://[", f"{BASE}:9")] == [403] * 4
    assert status(sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
    assert status(sec_fetch_site="same-origin", sec_fetch_mode="cors") == 200
    assert client_of(index, hosts=None).get("/api/info", headers={"host": "photos.lan"}).status_code == 200
    assert client.post("/api/search", headers={"content-length": "x"}).status_code in (400, 413)


def test_pages_load_nothing_from_elsewhere(client):
    for address in ("/", "/docs", "/static/app.js", "/static/app.css", "/static/docs.js", "/favicon.ico"):
        answer = client.get(address)
        assert answer.status_code == 200
        assert HEADERS.items() <= dict(answer.headers).items()
        assert not {"https://", "http://", "//cdn"} & set(
            answer.text.replace("http://www.w3.org/2000/svg", "").split('"')
        )
    assert "access-control-allow-origin" not in client.get("/api/info", headers={"origin": BASE}).headers
    schema = client.get("/openapi.json").json()
    images = {"/image/{id}", "/thumbnail/{id}", "/sheet/{id}"}
    assert {"/api/search", "/api/info", "/api/similar"} | images == schema["paths"].keys()
    assert "multipart/form-data" in schema["paths"]["/api/search"]["post"]["requestBody"]["content"]


# ---------------------------------------------------------------------- many at once, and updates


def test_concurrent_searches_agree_and_too_many_are_told_to_wait(photos, tmp_path, monkeypatch):
    class SlowEncoder(PixelEncoder):
        at_once, most, release = 0, 0, threading.Event()

        def encode_texts(self, texts, batch_size=256):
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.release.wait(10)
            self.at_once -= 1
            return super().encode_texts(texts, batch_size)

    monkeypatch.setattr(engine_module, "QUEUE", 3)
    encoder = SlowEncoder()
    index = ImageIndex.build(encoder, photos, tmp_path / "index")
    client = client_of(index)
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(client.get, "/api/search", params={"text": f"text {i}", "k": 4}) for i in range(12)]
        while sum(answer.done() for answer in answers) < 8:
            pass
        assert client.get("/api/info").status_code == 200  # not behind the searches
        encoder.release.set()
        answers = [answer.result() for answer in answers]
    served = [(i, answer) for i, answer in enumerate(answers) if answer.status_code == 200]
    assert (len(served), encoder.most) == (4, 1)
    assert all(paths(answer) == names(index.search(f"text {i}", 4)) for i, answer in served)
    busy = next(answer for answer in answers if answer.status_code != 200)
    assert error(busy, 503)
    assert int(busy.headers["retry-after"]) > 0


def test_updates_and_replacements_are_followed(tmp_path):
    photos = write_folder(tmp_path / "photos", 3)
    encoder = PixelEncoder()
    client = client_of(ImageIndex.build(encoder, photos, tmp_path / "index"))
    write_image(photos / "new.png", 77)
    ImageIndex.build(encoder, photos, tmp_path / "index")
    answer = client.get("/api/search", params={"text": "a"})
    assert "new.png" in paths(answer)
    assert all(client.get(result["image"]).status_code == 200 for result in answer.json()["results"])
    assert client.get("/api/info").json()["images"] == 4

    (tmp_path / "index").rename(tmp_path / "old")
    others = write_folder(tmp_path / "others", 2)
    ImageIndex.build(encoder, others, tmp_path / "index")
    answer = client.get("/api/search", params={"text": "a"})
    assert sorted(paths(answer)) == ["000.png", "001.png"]
    assert all(client.get(result["image"]).status_code == 200 for result in answer.json()["results"])

    (tmp_path / "index" / "index.sqlite").unlink()
    assert "cannot be read" in error(client.get("/api/search", params={"text": "a"}), 503)
