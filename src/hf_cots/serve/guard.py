"""Middleware that checks the origin and size of every request before the application sees it."""

import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# No remote or inline content, no frames, and pages of other sites cannot read or embed what is served.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Refuses requests for other hosts, from other sites' pages, and with too large bodies; adds security headers.

    Args:
        app: the application.
        hosts: the host names, without port, that requests may use; this defends against DNS rebinding, where a page
            makes its own host name resolve to this machine. None allows all.
        max_body: maximum size of a body in bytes.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, max_body: int):
        self.app, self.hosts, self.max_body = app, hosts, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = self._refuse(scope)
        if refused is not None:
            await answer_error(send_with_headers, *refused)
            return
        await self.app(scope, self._counted(receive), send_with_headers)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        """Check the headers of a request; returns status and reason if it is refused, else None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and without_port(host) not in self.hosts:
            return 421, f"this server answers for {', '.join(self.hosts)} only; --host makes it answer for others"
        origin = headers.get("origin")
        if origin is not None and host_of(origin) != host.lower():
            return 403, "requests of other sites' pages are refused"
        mode = headers.get("sec-fetch-mode", "navigate")
        if mode != "navigate" and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "requests of other sites' pages are refused"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "the header Content-Length is not a number"
        if len(length) > 18 or int(length) > self.max_body:
            return 413, f"the request is larger than {self.max_body:,} bytes"
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Wrap `receive` such that a body without a Content-Length is refused when it becomes too large."""
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.max_body:
                raise HTTPException(413, f"the request is larger than {self.max_body:,} bytes")
            return message

        return counted


def without_port(host: str) -> str:
    """Return the host name of a Host header, in lower case."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def host_of(origin: str) -> str | None:
    """Return host and port of an Origin header; None if it has none."""
    try:
        return urlsplit(origin.lower()).netloc or None
    except ValueError:
        return None


async def answer_error(send: Send, status: int, reason: str) -> None:
    """Respond with a JSON object that says what was wrong."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
