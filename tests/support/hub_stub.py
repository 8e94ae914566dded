"""As much of the Hugging Face Hub's HTTP interface as an upload needs, on this machine's loopback."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def hub():
    """Yield the endpoint and the uploaded files by repository: `{"org/name": {"path": bytes}}`."""
    uploaded: dict[str, dict[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def repository(self):
            parts = self.path.split("?")[0].split("/")
            return "/".join(parts[3:5]) if parts[1:2] == ["api"] else ""

        def read_body(self):
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def do_HEAD(self):
            self.reply({"error": "not found"}, 404)

        def do_GET(self):
            if "/api/whoami" in self.path:
                self.reply({"type": "user", "name": "org", "orgs": []})
            elif self.repository() in uploaded:
                self.reply({"id": self.repository(), "sha": "0" * 40, "siblings": [], "tags": []})
            else:
                self.reply({"error": "not found"}, 404)

        def do_POST(self):
            body = self.read_body()
            if "/repos/create" in self.path:
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'org'}/{wanted['name'].split('/')[-1]}"
                uploaded.setdefault(name, {})
                self.reply({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self.reply({"files": modes})
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        uploaded[self.repository()][entry["value"]["path"]] = content
                url = f"http://{self.headers['Host']}/{self.repository()}/commit/{'0' * 40}"
                self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": url})
            else:  # the check of a model card's metadata
                self.reply({"errors": [], "warnings": []})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", uploaded
    finally:
        server.shutdown()
        server.server_close()
