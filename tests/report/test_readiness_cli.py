"""`cognate report readiness`, and where reports look for what was fetched."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from cognate.config import resolve
from cognate.report import cli, readiness_cli
from cognate.rundir import Places, RunDir
from tests.test_cli import SMALL, cognate, here  # noqa: F401 - a fixture


def test_a_report_is_shown_and_written_and_printed_as_json(here: Path) -> None:  # noqa: F811
    done = cognate("report", "readiness", "--preset", "quickstart", *SMALL, "--markdown", "report.md")
    assert done.exit_code == 0, done.output
    assert "Training readiness: quickstart" in done.output
    assert "median of" in done.output
    written = (here / "report.md").read_text()
    assert written.startswith("# Training readiness: quickstart\n\n**Ready")

    done = cognate("report", "readiness", "--preset", "quickstart", *SMALL, "--no-probe", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["probe"] is None
    assert [finding["code"] for finding in report["findings"]] == ["not_measured"]
    assert report["machine"]["wandb"]["mode"] in ("online", "offline", "off")


def test_not_ready_is_exit_code_1(here: Path) -> None:  # noqa: F811
    done = cognate("report", "readiness")
    assert done.exit_code == 1
    assert "Not ready" in done.output
    assert "COGNATE_DATA_DIR" in done.output


def test_a_setting_that_does_not_exist_is_refused(here: Path) -> None:  # noqa: F811
    done = cognate("report", "readiness", "--preset", "quickstart", "--set", "training.batchsize=3")
    assert done.exit_code == 2
    assert "batch_size" in done.output


class LookedError(Exception):
    pass


@pytest.mark.parametrize(("module", "work", "command"), [(readiness_cli, "readiness", "readiness"), (cli, "measure_runs", "diversity")])
def test_reports_look_where_fetched_datasets_are(
    module: ModuleType, work: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the service's home where it is named, as train and evaluate do."""
    asked: list[Places] = []

    def look(_: object, places: Places, *__: object, **___: object) -> None:
        asked.append(places)
        raise LookedError

    monkeypatch.setattr(module, work, look)
    monkeypatch.delenv("COGNATE_CACHE_DIR", raising=False)
    monkeypatch.setenv("COGNATE_HOME", str(tmp_path / "home"))
    RunDir(tmp_path / "run").create(resolve("quickstart"))
    assert isinstance(cognate("report", command, *["run"] * (command == "diversity")).exception, LookedError)
    assert asked == [Places(None, tmp_path / "home" / "cache")]
