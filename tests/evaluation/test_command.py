"""`cognate evaluate`: from a run directory to a report, and sentences where something is amiss."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cognate.cli import app
from cognate.rundir import RunDir
from tests.training.runs import TINY

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import write_folder

SMALL = [
    f"--set={section}.{name}={json.dumps(value)}"
    for section, values in {**TINY, "data": {"source": "real"}, "training": {**TINY["training"], "max_steps": 1}}.items()
    for name, value in values.items()
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder, and a run that was trained on it."""
    here = tmp_path_factory.mktemp("here")
    write_folder(here / "data", ("boolq", "strategyqa", "gsm8k"), n_train=60)
    done = cognate(here, "train", "quickstart", *SMALL, "--data", str(here / "data"), "--output", str(here / "runs"))
    assert done.exit_code == 0, done.output
    return here


def cognate(here: Path, *arguments: str) -> Result:
    env = {"COLUMNS": "200", "NO_COLOR": "1", "COGNATE_CACHE_DIR": str(here / "cache")}
    return CliRunner().invoke(app, list(arguments), env=env)


def evaluated(here: Path, *options: str) -> Result:
    (run,) = (here / "runs").iterdir()
    return cognate(here, "evaluate", str(run), "--data", str(here / "data"), *options)


def test_a_run_is_evaluated_by_its_newest_checkpoint(here: Path) -> None:
    done = evaluated(here, "--json", "--overlap", "--limit=3")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    (run,) = (here / "runs").iterdir()
    assert made["checkpoint"]["name"] == RunDir(run).complete_checkpoints()[-1][1].name == "step_000001"
    assert set(made["datasets"]) == {"boolq", "strategyqa", "gsm8k"}
    assert len(made["absent"]) == 11
    assert made["datasets"]["boolq"]["figures"]["acc"]["n"] == 3
    assert set(made["datasets"]["boolq"]["untrained"]) == {"acc", "acc_norm"}
    assert made["datasets"]["gsm8k"]["met"] == {"exact_match": False}
    assert made["overlap"]["trained_on"] == "the same text"
    assert evaluated(here, "--json", "--overlap", "--limit=3").stdout == done.stdout


def test_the_table_has_a_line_a_figure_and_says_what_is_missing(here: Path) -> None:
    done = evaluated(here, "--datasets=boolq,piqa", "--no-untrained")
    assert done.exit_code == 0, done.output
    assert "acc_norm" in done.stdout
    assert "no target" in done.stdout
    assert "absent: piqa: piqa has no train.parquet, validation.parquet" in done.stdout
    assert "gsm8k" not in done.stdout


def test_a_mistake_is_answered_with_the_way_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COGNATE_DATA_DIR", raising=False)
    assert "no dataset 'boolk'; have gsm8k" in " ".join(evaluated(here, "--datasets=boolk").output.replace("│", " ").split())
    assert "name the folder" in cognate(here, "evaluate", str(here)).output
    assert "no checkpoint" in cognate(here, "evaluate", str(here), "--data", str(here / "data")).output


def test_without_the_harness_the_report_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    made = json.loads(evaluated(here, "--json", "--referee", "--datasets=boolq", "--no-untrained").stdout)
    assert "not installed" in made["referee"]["absent"]


def test_help_at_decoding_is_asked_for_by_name(here: Path) -> None:
    made = json.loads(evaluated(here, "--json", "--limit=2", "--datasets=gsm8k,boolq", "--calculator", "--vote=2").stdout)
    assert {"exact_match", "exact_match_calculator", "maj@2"} < set(made["datasets"]["gsm8k"]["figures"])
    assert set(made["datasets"]["boolq"]["figures"]) == {"acc", "acc_norm"}
    shown = evaluated(here, "--limit=2", "--datasets=gsm8k", "--calculator", "--vote=2")
    assert shown.exit_code == 0, shown.output
    assert "exact_match_calculator" in shown.stdout
