"""A stand-in for huggingface.co: the few answers that the `datasets` library asks for, over HTTP.

A repository is its files at one commit. Whatever else is asked for is 404.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Repositories = Mapping[str, tuple[str, Mapping[str, bytes]]]  # (commit, files) by id


@contextmanager
def serve(repositories: Repositories) -> Iterator[tuple[str, list[str]]]:
    """Its address, and every request that was made of it, as "GET /path"."""
    asked: list[str] = []

    class Handler(_Handler):
        hub = repositories
        requests = asked

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Repositories
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(self.rfile.read(length))

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        for name, (commit, files) in self.hub.items():
            for revision in (commit, "main"):
                if path == f"/api/datasets/{name}/revision/{revision}":
                    return self._json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
                if path.startswith(f"/api/datasets/{name}/tree/{revision}"):
                    folder = path.removeprefix(f"/api/datasets/{name}/tree/{revision}").strip("/")
                    return self._tree(files, folder)
                if path == f"/api/datasets/{name}/paths-info/{revision}":
                    return self._paths(files, body)
                if path.startswith(prefix := f"/datasets/{name}/resolve/{revision}/") and path.removeprefix(prefix) in files:
                    return self._file(files[path.removeprefix(prefix)], commit)
            if path == f"/api/datasets/{name}":
                return self._json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
            if path.startswith(f"/datasets/{name}/resolve/"):
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            if path.startswith(f"/api/datasets/{name}/"):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _tree(self, files: Mapping[str, bytes], folder: str) -> None:
        inside = {name: content for name, content in files.items() if name.startswith(f"{folder}/" if folder else "")}
        entries = [_entry(name, content) for name, content in inside.items()]
        folders = {name.rpartition("/")[0] for name in inside} - {"", folder}
        self._json([*({"type": "directory", "path": each, "oid": "0" * 40} for each in sorted(folders)), *entries])

    def _paths(self, files: Mapping[str, bytes], body: bytes) -> None:
        wanted = json.loads(body)["paths"]
        found = [_entry(name, files[name]) for name in wanted if name in files]
        found += [
            {"type": "directory", "path": name, "oid": "0" * 40}
            for name in wanted
            if name not in files and any(file.startswith(f"{name}/") for file in files)
        ]
        self._json(found)

    def _file(self, content: bytes, commit: str) -> None:
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self._send(200, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
