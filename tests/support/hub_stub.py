"""A Hugging Face Hub on this machine's loopback: as much of its interface as uploads and downloads of models need.

Large files go the way of git-lfs, without Xet's own protocol: clients run with [`Hub.variables`]. As on the Hub, they
are served from another host ("localhost" beside "127.0.0.1"), which refuses the user's token.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_test"
LARGE = (".safetensors", ".png", ".bin")  # what .gitattributes sends to git-lfs
API = re.compile(
    r"/api/(?:models/)?(?P<name>(?:datasets/)?[^/]+/[^/]+)(/(?P<what>[a-z-]+)(/(?P<revision>[^/]+)(/(?P<path>.+))?)?)?$"
)
FILE = re.compile(r"/(?P<name>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)$")
PINNED = re.compile(
    r"/api/resolve-cache/(?:models/)?(?P<name>(?:datasets/)?[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)$"
)


@dataclass
class Fault:
    """What is wrong with some requests.

    Args:
        where: regular expression that is searched in "METHOD /path".
        status: is answered in place of what was asked for; 0 closes the connection without an answer.
        code, message: in the Hub's error headers.
        keep: so many bytes of the body are sent, then the connection is cut.
        body: is sent in place of the file's content.
        times: how many requests; then the fault is over. None for all.
    """

    where: str
    status: int | None = None
    code: str | None = None
    message: str | None = None
    keep: int | None = None
    body: bytes | None = None
    times: int | None = None


@dataclass
class Repository:
    """Commits, each a mapping of paths to contents, and the names of some of them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit that holds just these files; returns its id."""
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.names[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """The id of a commit, by branch, tag or id."""
        return self.names.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        oid = self.resolve(revision)
        return {} if oid is None else self.commits[oid]


class Hub:
    """The state of the Hub: what tests put in, and what they look at.

    Attributes:
        repositories: by "org/name".
        objects: large files by sha256: uploaded ones, and those of commits once they were asked for.
        faults: in the order in which they are tried.
        log: (method, path, Range header) of all requests.
        token: what the user must be known by to write, and to read private repositories; None if any will do.
    """

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.cdn = f"http://localhost:{port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, str | None]] = []
        self.token: str | None = TOKEN

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        return self.repositories[name].files(revision)

    def add(self, name: str, folder: Path, **replaced: bytes) -> Repository:
        """A new repository that holds a folder's files."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        repository = self.repositories[name] = Repository()
        repository.commit({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} | replaced)
        return repository

    def variables(self, home: Path | str) -> dict[str, str]:
        """The environment variables of a client whose cache is in `home`."""
        here = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return here | online | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}

    def take_fault(self, request: str) -> Fault | None:
        """The fault of a request, which is then counted."""
        for fault in self.faults:
            if fault.times != 0 and re.search(fault.where, request):
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve a Hub of its own while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def describe(path: str, content: bytes) -> dict:
    """A file as the interface lists it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry | ({"lfs": lfs} if is_large(path) else {})


class Handler(BaseHTTPRequestHandler):
    """One connection; `self.hub` is the state that all share."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *args):
        pass

    # ------------------------------------------------------------------ answers

    def send(self, body: bytes, status: int = 200, headers: dict[str, object] | None = None, keep: int | None = None):
        """Send an answer, or only the first `keep` bytes of its body before the connection is cut."""
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:keep])
            self.close_connection = self.close_connection or keep is not None

    def send_json(self, value: object, status: int = 200, **headers: str) -> None:
        fields = {name.replace("_", "-"): text for name, text in headers.items()}
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | fields)

    def refuse(self, status: int, code: str | None = None, message: str | None = None, **headers: str) -> None:
        """Answer with an error, as the Hub names it."""
        named = {"X_Error_Code": code, "X_Error_Message": message} | headers
        text = message or code or "error"
        self.send_json({"error": text}, status, **{name: text for name, text in named.items() if text is not None})

    def send_content(self, content: bytes, headers: dict[str, object], fault: Fault | None) -> None:
        """A file, or the range of it that was asked for."""
        if fault is not None and fault.body is not None and self.command == "GET":
            content = fault.body
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | headers
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        keep = None if fault is None else fault.keep
        if wanted is None:
            return self.send(content, 200, headers, keep)
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        if first >= len(content):
            return self.send(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
        part = content[first : last + 1]
        keep = None if keep is None else max(keep - first, 0)
        headers |= {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        return self.send(part, 206, headers, keep)

    # ------------------------------------------------------------------ requests

    def answer(self) -> None:
        """Answer any request: by a fault, or by what serves its path."""
        path = urlsplit(self.path).path
        body = self.read_body()
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        fault = self.hub.take_fault(f"{self.command} {path}")
        if fault is not None and fault.status == 0:
            self.close_connection = True
        elif fault is not None and fault.status is not None:
            self.refuse(fault.status, fault.code, fault.message)
        elif self.command in ("POST", "PUT"):
            self.write(path, body)
        elif found := FILE.match(path) or PINNED.match(path):
            self.resolve(found, is_pinned=path.startswith("/api"), fault=fault)
        elif path.startswith("/cdn/"):
            self.serve_large(path.removeprefix("/cdn/"), fault)
        elif path.startswith("/api/whoami"):
            is_known = self.hub.token in (None, self.bearer())
            self.send_json({"type": "user", "name": "org", "orgs": []}) if is_known else self.refuse(401)
        elif found := API.match(path):
            self.inform(found, parse_qs(urlsplit(self.path).query))
        else:
            self.refuse(404)

    do_HEAD = do_GET = do_POST = do_PUT = answer

    def bearer(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """A repository and the id of a commit; None after the request was refused."""
        repository = self.hub.repositories.get(name)
        is_known = self.hub.token in (None, self.bearer())
        if repository is None or (repository.private and not is_known):
            self.refuse(404 if is_known else 401, "RepoNotFound", "Repository not found")
            return None
        oid = repository.resolve(unquote(revision))
        if oid is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, oid

    def resolve(self, found: re.Match, is_pinned: bool, fault: Fault | None) -> None:
        """A file of a commit: its content, or where that is."""
        path = unquote(found["path"])
        place = self.find(found["name"], found["revision"])
        if place is None:
            return
        repository, oid = place
        content = repository.commits[oid].get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{git_oid(content)}"'}
        if is_large(path):
            digest = sha256(content)
            self.hub.objects[digest] = content
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": len(content)}
            return self.send(b"", 302, headers | {"Location": f"{self.hub.cdn}/cdn/{digest}"})
        if not is_pinned:
            kind = "" if found["name"].startswith("datasets/") else "models/"
            location = f"/api/resolve-cache/{kind}{found['name']}/{oid}/{found['path']}"
            return self.send(b"", 307, headers | {"Location": location})
        return self.send_content(content, headers, fault)

    def serve_large(self, digest: str, fault: Fault | None) -> None:
        """A large file, from a host that must not get the user's token."""
        if self.bearer() is not None:
            return self.refuse(400, message="Only one auth mechanism allowed")
        content = self.hub.objects.get(digest)
        return self.refuse(404) if content is None else self.send_content(content, {"ETag": f'"{digest}"'}, fault)

    def inform(self, found: re.Match, query: dict[str, list[str]]) -> None:
        """What is known of a repository, or its list of files."""
        place = self.find(found["name"], found["revision"] or "main")
        if place is None:
            return
        repository, oid = place
        files = repository.commits[oid]
        if found["what"] == "tree":
            folder = f"{unquote(found['path'])}/" if found["path"] else ""
            entries = [describe(path, content) for path, content in files.items() if path.startswith(folder)]
            self.send_json(entries)
        elif found["what"] == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.names.items()]
            self.send_json({"branches": branches, "tags": [], "converts": []})
        elif found["what"] in (None, "revision"):
            siblings = [{"rfilename": path} for path in files]
            self.send_json({"id": found["name"], "sha": oid, "siblings": siblings, "tags": [], "private": False})
        else:
            self.refuse(404)

    # ------------------------------------------------------------------ uploads

    def write(self, path: str, body: bytes) -> None:
        """Anything that changes the Hub, and the checks before it."""
        if path.startswith("/lfs/"):
            digest = path.removeprefix("/lfs/")
            if sha256(body) != digest:
                return self.refuse(400, message="the content has another hash")
            self.hub.objects[digest] = body
            return self.send(b"")
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if self.hub.token not in (None, self.bearer()):
            return self.refuse(401, message="Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            objects = [self.offer(entry) for entry in json.loads(body)["objects"]]
            return self.send_json({"transfer": "basic", "objects": objects})
        found = API.match(path)
        if found is None or found["what"] not in ("preupload", "commit"):
            return self.refuse(404)
        if self.find(found["name"], "main") is None:
            return None
        if found["what"] == "commit":
            return self.commit(found, body)
        repository = self.hub.repositories[found["name"]]
        modes = [self.choose_mode(repository, entry["path"]) for entry in json.loads(body)["files"]]
        return self.send_json({"files": modes})

    def create(self, request: dict) -> None:
        name = f"{request.get('organization') or 'org'}/{request['name'].split('/')[-1]}"
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            return self.send_json(url | {"error": "You already created this model repo"}, 409)
        self.hub.repositories[name] = Repository(private=request.get("visibility") == "private")
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.send_json(url)

    @staticmethod
    def choose_mode(repository: Repository, path: str) -> dict:
        content = repository.files().get(path)
        oid = None if content is None else sha256(content) if is_large(path) else git_oid(content)
        return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": oid}

    def offer(self, entry: dict) -> dict:
        """Where to put a large file, if it is not there yet."""
        if entry["oid"] in self.hub.objects:
            return entry
        return entry | {"actions": {"upload": {"href": f"{self.hub.cdn}/lfs/{entry['oid']}", "header": {}}}}

    def commit(self, found: re.Match, body: bytes) -> None:
        """All of a commit, or nothing of it."""
        repository = self.hub.repositories[found["name"]]
        branch = unquote(found["revision"])
        files = dict(repository.files(branch))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.refuse(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"])
        oid = repository.commit(files, branch)
        url = f"{self.hub.endpoint}/{found['name']}/commit/{oid}"
        return self.send_json({"success": True, "commitOid": oid, "commitUrl": url})
