"""A local HTTP server with ranges, and with the failures of real ones."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Files by path, and how the server treats those who ask.

    ``cuts``: for each coming answer, the bytes after which the connection breaks; None is a whole answer.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tag: str | None = '"v1"'
        self.ranges = True
        self.cuts: list[int | None] = []
        self.status: list[int] = []
        self.asked: list[str | None] = []
        self.url = ""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append(wanted)
            body = site.files.get(self.path)
            if site.status:
                return self.send_error(site.status.pop(0))
            if body is None:
                return self.send_error(404)
            start = 0
            same = self.headers.get("If-Range", site.tag) == site.tag
            if wanted and site.ranges and same:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            if site.tag:
                self.send_header("ETag", site.tag)
            self.end_headers()
            cut = site.cuts.pop(0) if site.cuts else None
            self.wfile.write(body[start:] if cut is None else body[start : start + cut])
            if cut is not None:
                self.close_connection = True
                self.wfile.flush()
                self.connection.close()

        def log_message(self, *args: object) -> None:
            """Quiet."""

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
