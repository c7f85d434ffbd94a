"""`cognate report readiness`."""

from __future__ import annotations

import json
from pathlib import Path

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
