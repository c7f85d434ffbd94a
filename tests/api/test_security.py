"""The gate: each row is an attack that worked on a comparable service, and must not work here."""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import Response
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from app.api import security, tally
from tests.api.test_stream import event_source
from tests.service import URL, Server, connect, serving, until

TOKEN = "a-token-for-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Open, on loopback, as `make run` serves it."""
    with serving(tmp_path_factory.mktemp("open")) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """With a token, on every address, as the container serves it."""
    with serving(tmp_path_factory.mktemp("guarded"), host="0.0.0.0", token=TOKEN) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "10.evil.example",
        "192.168.evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "evil.example/127.0.0.1",
        "evil.example#localhost",
        "localhost:port",
        "[::1",
        "",
    ],
)
def test_a_foreign_host_is_refused_over_http_and_websocket(client: TestClient, host: str) -> None:
    """DNS rebinding: the browser believes it talks to the attacker's own site (Ray CVE-2025-62593)."""
    answer = client.get("/v1/runs", headers={"Host": host})
    assert answer.status_code == 421
    with pytest.raises(WebSocketDisconnect), connect(client, "/v1/stream", headers={"Host": host}):
        pass


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:9"])
def test_our_own_names_are_served(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://127.0.0.1:8000.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_foreign_page_can_change_nothing(client: TestClient, headers: dict[str, str]) -> None:
    """A POST without a body is a "simple" request: no browser asks before it sends one (Gradio CVE-2024-1727)."""
    answer = client.post(f"/v1/runs/run_{'0' * 36}/stop", headers=headers)
    assert answer.status_code == 403
    with pytest.raises(WebSocketDisconnect), connect(client, "/v1/stream", headers=headers):
        pass


@pytest.mark.parametrize("path", ["/v1/datasets", f"/v1/runs/run_{'0' * 36}/report", f"/v1/groups/group_{'0' * 36}/report"])
def test_a_foreign_page_can_set_nothing_to_work(client: TestClient, path: str) -> None:
    """A GET that begins a job where there is nothing yet. A person who follows a link is no page."""
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}
    before = {job["id"] for job in client.get("/v1/jobs").json()["data"]}
    assert client.get(path, headers=foreign).json()["type"] == "/v1/problems/forbidden_origin"
    assert {job["id"] for job in client.get("/v1/jobs").json()["data"]} == before
    assert client.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-User": "?1"}).status_code != 403


@pytest.mark.parametrize("name", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"])
def test_without_a_token_nothing_is_answered_through_a_proxy(client: TestClient, guarded: TestClient, name: str) -> None:
    """One on the same machine comes from loopback, and brings whoever reaches it."""
    came = {name: "203.0.113.7"}
    for path in ("/", "/healthz", "/v1/runs"):
        answer = client.get(path, headers=came)
        assert (answer.status_code, answer.json()["type"]) == (403, "/v1/problems/proxied")
        assert "set COGNATE_TOKEN" in answer.json()["detail"]
    with pytest.raises(WebSocketDenialResponse) as refused, connect(client, "/v1/stream", headers=came):
        pass
    assert refused.value.json()["type"] == "/v1/problems/proxied"
    assert guarded.get("/v1/runs", headers={**BEARER, **came}).status_code == 200


def test_our_own_page_can(client: TestClient) -> None:
    ours = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post(f"/v1/runs/run_{'0' * 36}/stop", headers=ours).status_code == 404
    with connect(client, "/v1/stream", headers=ours) as socket:
        assert socket.receive_json()["type"] == "hello"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_body_that_is_not_json_is_refused(client: TestClient, media_type: str) -> None:
    answer = client.post("/v1/runs", content='{"preset": "quickstart"}', headers={"Content-Type": media_type})
    assert answer.status_code == 415


def test_a_large_body_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/runs", content=b" " * 65537, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "/v1/problems/body_too_large")


@pytest.mark.parametrize("endless", [b"X-Filler: " + b"a" * 1000 + b"\r\n", b"a"], ids=["headers", "one header"])
def test_an_endless_head_is_cut_off(tmp_path: Path, endless: bytes) -> None:
    """It is read before any token is asked for, and was kept in memory as long as it went on."""
    server = Server(tmp_path / "home", COGNATE_DATA_DIR="")
    server.start("--no-quickstart")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-First: ")
            client.sendall(b"a\r\n" if endless != b"a" else b"")
            client.sendall(endless * (60_000 // len(endless)))
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):  # as much is no reason to end it
                client.recv(100)
            client.settimeout(30)
            client.sendall(endless * (10_000 // len(endless)))
            assert client.recv(100).startswith(b"HTTP/1.1 431 ")
        assert server.client.get("/healthz").status_code == 200
    finally:
        server.client.close()
        server.interrupt()


def test_with_a_token_every_route_but_the_page_and_the_probes_asks_for_it(guarded: TestClient) -> None:
    """Walks the routes, so that one added tomorrow is covered too (MLflow CVE-2026-2652)."""
    paths = guarded.get("/openapi.json", headers=BEARER).json()["paths"]
    checked = 0
    for path, operations in paths.items():
        concrete = path.replace("{run_id}", f"run_{'0' * 36}").replace("{name}", "x")
        for method in operations:
            status = guarded.request(method, concrete).status_code
            if path in ("/healthz", "/readyz"):
                assert status == 200
            else:
                assert status == 401, f"{method} {path}"
                checked += 1
    assert checked > 15
    assert guarded.get("/openapi.json").status_code == 401
    assert guarded.get("/").status_code == 200


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}])
def test_a_wrong_token_opens_nothing(guarded: TestClient, header: dict[str, str]) -> None:
    answer = guarded.get("/v1/runs", headers=header)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(WebSocketDenialResponse) as refused, connect(guarded, "/v1/stream", headers=header):
        pass
    assert refused.value.status_code == 401


def test_a_websocket_is_refused_with_the_reason(tmp_path: Path) -> None:
    """As every other request, by the real server: a client of a bare 403 could not tell a wrong token from a wrong name."""
    server = Server(tmp_path / "home", COGNATE_DATA_DIR="", COGNATE_TOKEN=TOKEN)
    server.start("--no-quickstart")
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "A" * 22 + "==", "Sec-WebSocket-Version": "13"}
    try:
        for headers, status, problem in (
            ({}, 401, "unauthorized"),
            ({"Authorization": "Bearer wrong"}, 401, "unauthorized"),
            ({**BEARER, "Origin": "http://evil.example"}, 403, "forbidden_origin"),
            ({**BEARER, "Host": "evil.example"}, 421, "misdirected"),
        ):
            answer = server.client.get("/v1/stream", headers={**asked, **headers})
            assert (answer.status_code, answer.json()["type"]) == (status, f"/v1/problems/{problem}")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
            assert_kept_in_its_place(answer)
        assert "ERROR" not in (tmp_path / "server.log").read_text()
    finally:
        server.client.close()
        server.interrupt()


def test_the_token_opens_http_and_websocket(guarded: TestClient) -> None:
    assert guarded.get("/v1/runs", headers=BEARER).status_code == 200
    with connect(guarded, "/v1/stream", headers=BEARER) as socket:
        assert socket.receive_json()["type"] == "hello"


def test_a_ticket_opens_one_websocket_and_no_second(guarded: TestClient) -> None:
    """Browsers cannot send headers with a websocket, and a token in a URL ends up in logs."""
    ticket = guarded.post("/v1/stream/ticket", headers=BEARER).json()["ticket"]
    offered = ["cognate.v1", f"ticket.{ticket}"]
    with connect(guarded, "/v1/stream", subprotocols=offered) as socket:
        assert socket.accepted_subprotocol == "cognate.v1"
    with pytest.raises(WebSocketDisconnect), connect(guarded, "/v1/stream", subprotocols=offered):
        pass


def test_a_ticket_in_the_address_opens_one_event_source_and_no_second(guarded: TestClient) -> None:
    """An EventSource can send nothing but its address; what is left of that in a log opens nothing."""
    path = f"/v1/stream?ticket={guarded.post('/v1/stream/ticket', headers=BEARER).json()['ticket']}&topics=event"
    with event_source(guarded, path) as source:
        assert source.receive_json()["type"] == "hello"
    assert guarded.get(path).status_code == 401


@pytest.mark.parametrize("wrong", ["?ticket=", "?ticket=x", "?after=now"])
def test_an_address_without_its_ticket_opens_nothing(guarded: TestClient, wrong: str) -> None:
    guarded.post("/v1/stream/ticket", headers=BEARER)
    assert guarded.get(f"/v1/stream{wrong}").status_code == 401


def test_a_ticket_does_not_last(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "TICKET_S", 0.0)
    ticket = guarded.post("/v1/stream/ticket", headers=BEARER).json()["ticket"]
    assert guarded.get(f"/v1/stream?ticket={ticket}").status_code == 401


def test_a_ticket_opens_nothing_but_a_stream(guarded: TestClient) -> None:
    ticket = guarded.post("/v1/stream/ticket", headers=BEARER).json()["ticket"]
    assert guarded.get("/v1/runs", headers={"Sec-WebSocket-Protocol": f"ticket.{ticket}"}).status_code == 401
    for path in ("/v1/runs", f"/v1/runs/run_{'0' * 36}", "/v1/stream/ticket"):
        assert guarded.get(f"{path}?ticket={ticket}").status_code == 401
    assert guarded.post(f"/v1/stream?ticket={ticket}").status_code == 401


def test_a_token_is_made_when_the_service_is_reachable_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown once, kept hashed, for the owner's eyes only."""
    with serving(tmp_path, host="0.0.0.0") as client:
        shown = capsys.readouterr().out.split()
        token = next(word for word in shown if len(word) == 43)
        assert client.get("/v1/runs").status_code == 401
        assert client.get("/v1/runs", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    kept = tmp_path / "token.sha256"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert token not in kept.read_text()
    with serving(tmp_path, host="0.0.0.0") as client:
        assert token not in capsys.readouterr().out
        assert client.get("/v1/runs", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    kept.write_text("")  # a disk that was full: nobody has the token of nothing
    with serving(tmp_path, host="0.0.0.0") as client:
        token = next(word for word in capsys.readouterr().out.split() if len(word) == 43)
        assert client.get("/v1/runs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"COGNATE_TOKEN": "choose-one"}, "has 10 characters; where others can reach the service it needs 16 or more"),
        ({"COGNATE_TOKEN_FILE": "short"}, "has 5 characters"),
        ({"COGNATE_TOKEN_FILE": "empty"}, "empty is empty"),
        ({"COGNATE_TOKEN_FILE": "missing"}, "missing: No such file"),
        ({"COGNATE_TOKEN_FILE": "binary"}, "binary: it is no text"),
        ({"COGNATE_TOKEN_FILE": "accented"}, "a header cannot carry all of it"),
        ({"COGNATE_TOKEN_FILE": "lines"}, "a header cannot carry all of it"),
        ({"COGNATE_TOKEN_FILE": "short", "COGNATE_TOKEN": TOKEN}, "are both set"),
    ],
)
def test_a_token_that_guards_nothing_is_refused_at_the_start(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    for name, text in (
        ("short", b"12345\n"),
        ("empty", b"\n"),
        ("binary", b"\xff\xfe" * 20),
        ("accented", "clé".encode() * 9),
        ("lines", b"12345678\n12345678"),
    ):
        (tmp_path / name).write_bytes(text)
    everything = {**os.environ, "COGNATE_HOME": "home", "COGNATE_HOST": "0.0.0.0", "COGNATE_PORT": "0", **environment}
    done = subprocess.run([sys.executable, "-m", "app"], cwd=tmp_path, env=everything, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cognate: COGNATE_TOKEN")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_on_loopback_a_token_may_be_short(tmp_path: Path) -> None:
    with serving(tmp_path, token="short") as client:
        assert client.get("/v1/runs", headers={"Authorization": "Bearer short"}).status_code == 200


def test_a_token_comes_from_a_file_too(tmp_path: Path) -> None:
    """As Docker hands out secrets: in the environment, `docker inspect` shows it."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving(tmp_path / "home", host="0.0.0.0", token_file=tmp_path / "token") as client:
        assert client.get("/v1/runs").status_code == 401
        assert client.get("/v1/runs", headers=BEARER).status_code == 200


def test_wrong_tokens_are_counted_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Who guesses is seen, by address, and cannot fill the disk."""
    monkeypatch.setattr(tally, "QUIET_S", 0.5)
    with serving(tmp_path, token=TOKEN) as client:
        client.get("/v1/runs")  # none is no wrong one: a page asks once before it has one
        for _ in range(20):
            client.get("/v1/runs", headers={"Authorization": "Bearer a-wrong-guess"})
        until(lambda: sum(times(record) for record in caplog.records) == 20)
    told = [record for record in caplog.records if times(record)]
    assert len(told) < 20
    assert "the last from 'testclient'" in told[-1].getMessage()
    assert "guess" not in caplog.text


def times(told: logging.LogRecord) -> int:
    """How many wrong tokens it tells of."""
    found = re.match(r"wrong tokens: (\d+)", told.getMessage())
    return int(found[1]) if found else 0


@pytest.mark.parametrize("path", ["/", "/healthz", "/static/style.css", "/v1/nothing", "/v1/runs", "/openapi.json"])
def test_answers_carry_the_headers_that_keep_a_page_in_its_place(client: TestClient, path: str) -> None:
    assert_kept_in_its_place(client.get(path))
    assert_kept_in_its_place(client.get(path, headers={"Host": "evil.example"}))


def test_an_error_that_nobody_caught_carries_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered outside of every middleware."""
    with serving(tmp_path) as client:
        monkeypatch.setattr(security, "_take_ticket", fail)
        answer = TestClient(client.app, base_url=URL, raise_server_exceptions=False).get("/healthz")
    assert (answer.status_code, answer.json()["type"]) == (500, "/v1/problems/internal")
    assert_kept_in_its_place(answer)


def fail(*_: object) -> None:
    raise RuntimeError("a fault of ours")


def assert_kept_in_its_place(answer: Response) -> None:
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
