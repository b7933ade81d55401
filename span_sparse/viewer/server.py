"""How are slides of patients shown in a browser without showing them to anyone else?

* The server listens on 127.0.0.1 alone. On a shared machine other users reach that, too, so every address begins with
  a random token, which is compared in constant time. It is in the path and not in a cookie: cookies are sent to every
  port of a host, so another user's server would be handed the token.
* A page of another site can make a browser ask this address, and point its own name at 127.0.0.1 (DNS rebinding).
  So the `Host` must be a name of this machine, and requests the browser marks as cross-site are refused.
* Addresses are matched as they come, not decoded, against a fixed list; slides, scores and tiles are numbers, and the
  page's own files are in memory. No part of a request is ever part of a file's path.
* Only GET and HEAD, no bodies, no queries. Everything else is answered by 4xx without a word about the request.
* The page may load from this server alone and run only its own scripts (Content-Security-Policy); nothing is kept by
  the browser after it is closed (no-store), and nothing is written to a log.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from span_sparse.errors import SpanError
from span_sparse.viewer.content import ViewerContent

LOOPBACK: Final = "127.0.0.1"
HOST: Final = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", re.IGNORECASE)
"""Names of this machine. Any port: a tunnel (`ssh -L 8000:127.0.0.1:PORT`) has another one on the reader's side."""

STATIC: Final = Path(__file__).parent / "static"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
FILES: Final = {
    "": "index.html",
    "favicon.svg": "favicon.svg",
    "viewer.css": "viewer.css",
    "viewer.js": "viewer.js",
    "overlay.js": "overlay.js",
    "cohort.js": "cohort.js",
    "openseadragon.min.js": "openseadragon/openseadragon.min.js",
    "openseadragon-licence.txt": "openseadragon/LICENSE.txt",
}
"""Last part of the address, and the file of the package."""

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_HEADER_BYTES: Final = 16_384
REQUEST_TIMEOUT_S: Final = 30.0
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"

_NUMBER: Final = "(0|[1-9][0-9]{0,8})"
_ROUTES: Final[tuple[tuple[re.Pattern[str], str, str], ...]] = tuple(
    (re.compile(pattern), answer, kind)
    for pattern, answer, kind in (
        ("cohort.json", "cohort", JSON),
        (f"slides/{_NUMBER}.json", "slide", JSON),
        (f"slides/{_NUMBER}/corners", "corners", BYTES),
        (f"slides/{_NUMBER}/scores/{_NUMBER}", "score", BYTES),
        (f"slides/{_NUMBER}/patches/{_NUMBER}.json", "patch", JSON),
        (f"slides/{_NUMBER}/tiles/{_NUMBER}/{_NUMBER}_{_NUMBER}.jpg", "tile", "image/jpeg"),
    )
)
"""Pattern of the address behind the token, method of `ViewerContent` with the numbers as arguments, type of answer."""


class ViewerServer(ThreadingHTTPServer):
    """The viewer's server; `serve_forever` answers until `shutdown`.

    Args:
        content: what it answers.
        port: 0 for a free one.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, content: ViewerContent, port: int = 0) -> None:
        self.content = content
        self.token = secrets.token_urlsafe(32)
        self.files = {name: ((STATIC / path).read_bytes(), TYPES[Path(path).suffix]) for name, path in FILES.items()}
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def address(self) -> str:
        """What to open in a browser; whoever has it sees the slides."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/{self.token}/"

    def server_close(self) -> None:
        """Releases port and slides."""
        super().server_close()
        self.content.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error; nothing is logged."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_TIMEOUT_S
    server: ViewerServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse_request(self) -> bool:
        """Refuses early what no browser that shows the page would send."""
        if not super().parse_request():
            return False
        status = self._refusal()
        if status is not None:
            self.send_error(status)
        return status is None

    def do_GET(self) -> None:
        """Answers with content."""
        prefix = f"/{self.server.token}/"
        given = self.path[: len(prefix)]
        # as bytes: the comparison of texts refuses letters beyond ASCII
        if not secrets.compare_digest(given.encode("utf-8", "replace"), prefix.encode()):
            self.send_error(404)
            return
        try:
            answer = self._answer(self.path[len(prefix) :])
        except SpanError as error:
            self._send(422, str(error).encode("utf-8", "replace"), TYPES[".txt"])
            return
        if answer is None:
            self.send_error(404)
        else:
            self._send(200, *answer)

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One word; the request is not repeated, and the connection ends."""
        self.close_connection = True
        self.request_version = self.protocol_version  # an answer to HTTP/0.9 would have no status
        # the base class has 501 for an unknown method and 505 for an unknown version: both are the client's doing
        self._send({501: 405, 505: 400}.get(code, code), b"refused\n", TYPES[".txt"])

    def version_string(self) -> str:
        """Not the version of Python."""
        return "span-view"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses hold the token."""

    def _refusal(self) -> int | None:
        """Status for a request that is not answered; None when it may be."""
        if self.command not in ("GET", "HEAD"):
            return 405
        if len(self.headers.get_all("Host") or ()) != 1 or sum(map(len, self.headers.values())) > MAX_HEADER_BYTES:
            return 400
        if not HOST.fullmatch(self.headers["Host"]):
            return 421
        # `none`: typed, or opened from elsewhere than a page; a page may only be left for this one (a link in a
        # terminal that is itself a page), not load parts of it
        is_opened = (self.headers.get("Sec-Fetch-Mode"), self.headers.get("Sec-Fetch-Dest")) == ("navigate", "document")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not is_opened:
            return 403
        has_body = self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0"
        return 413 if has_body else None

    def _answer(self, name: str) -> tuple[bytes, str] | None:
        """Content and type of an address behind the token."""
        if name in self.server.files:
            return self.server.files[name]
        for pattern, method, kind in _ROUTES:
            match = pattern.fullmatch(name)
            if match:
                answer: Callable[..., bytes | None] = getattr(self.server.content, method)
                content = answer(*map(int, match.groups()))
                return None if content is None else (content, kind)
        return None

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(content)
