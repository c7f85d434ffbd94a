"""As much of W&B's server as its client needs to resume a run and to stream its history. Nothing of it is W&B's code.

Lines are kept where the client says they belong, as the real one does: a client that begins too early overwrites, one that
begins too late leaves a gap. Both are seen.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeWandb:
    """`history`: JSON lines by place, at most `takes` of them. `refuses`: answer everything with this status."""

    def __init__(self) -> None:
        self.history: dict[int, str] = {}
        self.overwritten = 0
        self.upserts: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.keys: set[str] = set()
        self.refuses: int | None = None
        self.takes = 1 << 30
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.history.items())]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, received: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            self._stream(json.loads(received))
        return self._resolve(json.loads(received)) if path == "/graphql" else {}

    def _resolve(self, body: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "cognate", "entity": {"id": "e", "name": "lab"}}
        match body.get("operationName"):
            case "RunResumeStatus":
                return {"data": {"model": {**project, "bucket": self._known() if self.upserts else None}}}
            case "UpsertBucket":
                self.upserts.append(body["variables"])
                name = body["variables"]["name"]
                bucket = {"id": "r", "name": name, "displayName": name, "config": "{}", "historyLineCount": len(self.history)}
                return {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": len(self.upserts) == 1}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/storage"} for name in body["variables"]["files"]]
                return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
            case "Viewer":
                return {"data": {"viewer": {"id": "v", "entity": "lab", "username": "u", "flags": "{}", "teams": {"edges": []}}}}
        return {"data": {}}

    def _known(self) -> dict[str, Any]:
        tail = json.dumps([self.history[max(self.history)]] if self.history else [])
        counts = {"historyLineCount": len(self.history), "logLineCount": 0, "eventsLineCount": 0}
        texts = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": '{"t": 1}', "historyTail": tail, "eventsTail": "[]"}
        return {"id": "r", "name": self.upserts[0]["name"], **counts, **texts}

    def _stream(self, body: dict[str, Any]) -> None:
        history = body.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for place, line in enumerate(history["content"], history["offset"]):
            self.overwritten += place in self.history
            if len(self.history) < self.takes:
                self.history[place] = line
        if body.get("complete"):
            self.exit_codes.append(body["exitcode"])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                received = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.keys.add(self.headers.get("Authorization") or "")
                found = fake.answer(self.path, received)
                answer = json.dumps(found).encode()
                self.send_response(fake.refuses or 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
