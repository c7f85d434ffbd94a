"""A real browser on the real service, whose worker is fake_worker.py.

Fixtures last for this package only: while Playwright's synchronous interface is open, no asyncio test can run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT_MS = 10_000
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


class Server:
    """The service as a process of its own: it can be killed and started again on the same port and state."""

    def __init__(self, home: Path, token: str | None = None) -> None:
        self._environment = {**os.environ, "COGNATE_HOME": str(home), "COGNATE_DATA_DIR": str(home), "COGNATE_TOKEN": token or ""}
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        command = [sys.executable, str(HERE / "serve.py"), str(self.port)]
        self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._end("kill")

    def stop(self) -> None:
        self._end("terminate")

    def _end(self, how: str) -> None:
        assert self._process is not None
        with self._process as process:  # waits, and closes the pipe
            getattr(process, how)()

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, headers=self._headers).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        return httpx.post(self.url + path, json=body, headers=self._headers).raise_for_status().json()

    def launch(self, *, max_steps: int = 40, seed: int = 1, **request: Any) -> str:
        """A new run; its id."""
        config = {"seed": seed, "training": {"max_steps": max_steps, "checkpoint_every_steps": 20}}
        body = {"preset": "quickstart", "config": config, **request}
        return str(self.post("/v1/runs", body)["id"])

    def group(self, name: str) -> None:
        """A group of one run that is soon over."""
        config = {"training": {"max_steps": 5}}
        body = {"name": name, "presets": ["quickstart"], "config": config}
        httpx.post(f"{self.url}/v1/groups", json=body, headers=self._headers).raise_for_status()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; what wants it is skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on PATH")
    if not (ROOT / "static/vendor/uPlot.esm.js").exists():
        pytest.skip("the browser libraries are not installed; run tools/vendor.sh")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=BROWSER_ARGUMENTS) as browser:
        yield browser


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    with server:
        yield server


@pytest.fixture
def long_run(server: Server) -> Iterator[str]:
    """A run that lasts longer than any test waits."""
    run_id = server.launch(max_steps=5000)
    yield run_id
    httpx.post(f"{server.url}/v1/runs/{run_id}/kill")  # refused where it has ended already


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with page_of(browser, server.url) as page:
        yield page


@contextmanager
def page_of(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(base_url=url)
    context.set_default_timeout(TIMEOUT_MS)
    context.add_init_script(WATCH)
    try:
        yield context.new_page()
    finally:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")  # the page asks on; what is answered now nobody sees
        context.close()
