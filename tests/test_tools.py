"""What starts the service: the Makefile's environment, the container's main program. With stubs for Python, in milliseconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVER = """#!/bin/sh
echo started >> "$STARTS"
[ "$(wc -l < "$STARTS")" -gt 1 ] && exec sleep 60  # the one that nobody tells to stop
exit 1
"""
WITHOUT_PIP = "#!/bin/sh\nexit 1\n"
MAKES_A_VENV = """#!/bin/sh
[ "$2" = venv ] || exit 0
echo "$*" >> venvs
for last; do :; done
mkdir -p "$last/bin"
printf '#!/bin/sh\\n' > "$last/bin/python"
chmod +x "$last/bin/python"
"""


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP], ids=lambda told: told.name)
@pytest.mark.parametrize("to_all", [True, False], ids=["the group, as tini -g does", "the script alone"])
def test_a_stop_between_two_servers_starts_no_other(tmp_path: Path, to_all: bool, told: signal.Signals) -> None:
    _script(tmp_path / "python", SERVER)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STARTS": str(tmp_path / "starts")}
    with subprocess.Popen(
        [ROOT / "tools" / "serve.sh"], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "the server is gone" in process.stderr.readline()
            (os.killpg if to_all else os.kill)(process.pid, told)
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "starts").read_text().split() == ["started"]


def test_what_a_container_writes_lies_in_its_volume() -> None:
    """Its root is read-only (compose.yaml), the home folder with it, which is where libraries keep things unless they are told."""
    (settings,) = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if "COGNATE_HOME=" in line]
    environment = dict(setting.split("=", 1) for setting in settings.removeprefix("ENV ").split())
    assert environment["COGNATE_HOME"] == "/state"
    assert environment["HF_HOME"].startswith("/state/")


@pytest.mark.parametrize(("there", "venvs"), [(None, 1), (WITHOUT_PIP, 1), ("#!/bin/sh\n", 0)], ids=["none", "cut short", "whole"])
def test_an_environment_that_was_cut_short_is_made_anew(tmp_path: Path, there: str | None, venvs: int) -> None:
    """A Ctrl-C during the first `make run` leaves a Python without pip, with which no later `make` could do anything."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "static").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "static/package.json", "static/package-lock.json"):
        (tmp_path / name).touch()
    _script(tmp_path / "tools" / "vendor.sh", "#!/bin/sh\n")
    _script(tmp_path / "stub", MAKES_A_VENV)
    if there is not None:
        _script(tmp_path / ".venv" / "bin" / "python", there)
    subprocess.run(["make", "--silent", "setup", "PYTHON=./stub"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    made = tmp_path / "venvs"
    assert (made.read_text().splitlines() if made.exists() else []) == ["-m venv --clear .venv"] * venvs
    assert (tmp_path / ".venv" / ".set-up").exists()
