"""A local hub: the part of the Hugging Face API that uploads and downloads of a model take."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_tokenOfTheTest"


class Hub:
    """Repositories by ``owner/name``: ``private``, and commits, each a dict of files by path."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""

    def head(self, repo: str) -> str:
        """The newest commit."""
        return next(reversed(self.commits[repo]))

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """One more commit, whose id follows from what is in it."""
        digest = hashlib.sha1(repr((len(self.commits[repo]), sorted(files.items()))).encode()).hexdigest()
        self.commits[repo][digest] = files
        return digest


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, document: object = None, **headers: str) -> None:
            body = json.dumps(document or {}).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _route(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            body = self._body()
            path = self.path.partition("?")[0]
            if self.command in ("GET", "HEAD") and (
                found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
            ):
                return self._resolve(*found.groups())
            if path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if self.command == "PUT" and path.startswith("/lfs/"):
                hub.blobs[path.removeprefix("/lfs/")] = body
                return self._send(200)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._send(401, {"error": "Invalid credentials"})
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
                repo = found[1]
                if repo not in hub.commits:
                    return self._send(404, X_Error_Code="RepoNotFound")
                about = {"id": repo, "private": hub.private[repo], "siblings": [], "tags": [], "downloads": 0}
                return self._send(200, about | {"sha": hub.head(repo)})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {True: "lfs", False: "regular"}
                files = [
                    {"path": n, "uploadMode": modes[n.endswith(".safetensors")], "shouldIgnore": False}
                    for n in names
                ]
                return self._send(200, {"files": files})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    each | {"actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                return self._send(200, {"transfer": "basic", "objects": objects})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
            self._send(404, {"error": "not found"})

        do_GET = do_HEAD = do_POST = do_PUT = _route

        def _create(self, wanted: dict[str, object]) -> None:
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo.startswith("foreign/"):
                return self._send(403, {"error": "You have no right to create a model there"})
            if repo in hub.commits:
                return self._send(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            hub.private[repo], hub.commits[repo] = private, {}
            hub.commit(repo, {})
            self._send(200, {"url": f"{hub.url}/{repo}", "name": repo})

        def _commit(self, repo: str, lines: list[dict]) -> None:
            files = dict(hub.commits[repo][hub.head(repo)])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = hub.blobs[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    files[value["path"]] = content
            done = hub.commit(repo, files)
            url = f"{hub.url}/{repo}/commit/{done}"
            self._send(200, {"success": True, "commitOid": done, "commitUrl": url})

        def _resolve(self, repo: str, revision: str, name: str) -> None:
            if repo not in hub.commits:
                return self._send(404, X_Error_Code="RepoNotFound")
            commit = hub.head(repo) if revision == "main" else revision
            if commit not in hub.commits[repo]:
                return self._send(404, X_Error_Code="RevisionNotFound")
            content = hub.commits[repo][commit].get(name)
            if content is None:
                return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    return Handler


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub of this process, until the block ends."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
