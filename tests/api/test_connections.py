"""Connections that ask for nothing: anyone who reaches the port can open them, before any token is asked for."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.service import Server, until

GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"


@contextmanager
def serving(home: Path, before: str) -> Iterator[Server]:
    """`python -m app` in a process that does `before` first."""
    server = Server(home, COGNATE_DATA_DIR="")
    program = f"import resource, runpy; from app.api import protocol; {before}; runpy.run_module('app', run_name='__main__')"
    server.start("--no-quickstart", launcher=("-c", program))
    try:
        yield server
    finally:
        server.client.close()
        server.interrupt()


def opened(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It waits half a second for a request."""
    with serving(tmp_path_factory.mktemp("hurried") / "home", "protocol.REQUEST_S = 0.5") as server:
        yield server


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: 127",
        POST + b"{}",
        GET + b"GET /hea",
        GET + POST + b"{}",
        b"GET /v1/runs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9\r\n\r\n{}",
    ],
    ids=["nothing", "an empty line", "half a head", "half a body", "half a second head", "half a second body", "half a refused body"],
)
def test_a_connection_without_a_whole_request_is_closed(hurried: Server, sent: bytes) -> None:
    """They were kept for ever, and each took a descriptor."""
    with opened(hurried) as client:
        client.sendall(sent)
        client.settimeout(5 + 2)  # after an answer, uvicorn's own five seconds for the next request
        while client.recv(65536):
            pass


def test_one_that_sends_a_byte_now_and_then_is_closed_too(hurried: Server) -> None:
    """Each byte ended uvicorn's wait for the next request, and nothing else was waited for."""
    with opened(hurried) as client:
        client.sendall(GET)
        client.settimeout(0.1)

        def is_closed() -> bool:
            try:
                client.sendall(b"\r\n")
                return client.recv(65536) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        until(is_closed, 5)


def test_answers_that_go_on_are_not_cut(hurried: Server) -> None:
    """Server-sent events and websockets are told something every fifteen seconds only."""
    address = f"127.0.0.1:{hurried.port}/v1/stream"
    with httpx.stream("GET", f"http://{address}", timeout=30) as events, connect(f"ws://{address}") as websocket, opened(hurried) as late:
        lines = events.iter_lines()
        late.sendall(GET)
        late.settimeout(1.5)  # three times what a request may take
        with pytest.raises(TimeoutError):
            while late.recv(65536):
                pass
        websocket.send('{"type": "nonsense"}')
        assert any("error" in str(websocket.recv(30)) for _ in range(5))
        hurried.client.put("/v1/queue", json={"held": True})
        assert any('"queue"' in line for line in lines)


def test_connections_leave_descriptors_for_the_service(tmp_path: Path) -> None:
    """Without any left every accept failed, each with a traceback in the log, and runs could not be launched either."""
    with serving(tmp_path / "home", "resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))") as server, ExitStack() as held:
        stream = held.enter_context(connect(f"ws://127.0.0.1:{server.port}/v1/stream"))
        clients = [held.enter_context(opened(server)) for _ in range(800)]
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=30).status_code == 200
        until(lambda: httpx.get(f"http://127.0.0.1:{server.port}/readyz").status_code == 200)
        assert server.process is not None
        assert 72 < len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 150  # half of what is not kept for the service
        stream.send('{"type": "nonsense"}')
        assert any("error" in str(stream.recv(30)) for _ in range(5))
        assert clients
    told = (tmp_path / "server.log").read_text()
    assert "Traceback" not in told
    assert told.count("connections that asked for nothing were closed") == 1


def test_the_limit_of_descriptors_is_raised_as_far_as_it_may(tmp_path: Path) -> None:
    """Shells allow 1,024 by default, and a thousand websockets want more."""
    with serving(tmp_path / "home", "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 2000))") as server:
        assert server.process is not None
        limits = Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        assert next(line.split()[3:5] for line in limits if line.startswith("Max open files")) == ["2000", "2000"]
