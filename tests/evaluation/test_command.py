"""`cognate evaluate`: from a run directory to a report, and sentences where something is amiss."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from cognate.cli import app
from cognate.jobdir import JobContext, JobFailed
from cognate.report.evaluation import disagreements, evaluate_checkpoint, perform
from cognate.rundir import Places, RunDir
from tests.training.runs import TINY

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import write_folder

CPU = torch.device("cpu")
PLAIN = ("--no-untrained", "--no-overlap")

SMALL = [
    f"--set={section}.{name}={json.dumps(value)}"
    for section, values in {
        **TINY,
        "data": {"source": "real", "datasets": ["boolq", "strategyqa", "gsm8k"]},
        "training": {**TINY["training"], "max_steps": 1},
    }.items()
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
    assert made["datasets"]["gsm8k"]["met"] == {"exact_match": None}  # three items decide nothing
    assert set(made["overlap"]) == set(made["datasets"])
    assert evaluated(here, "--json", "--overlap", "--limit=3").stdout == done.stdout


def test_the_table_has_a_line_a_figure_and_says_what_is_missing(here: Path) -> None:
    done = evaluated(here, "--datasets=boolq,piqa", *PLAIN)
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
    made = json.loads(evaluated(here, "--json", "--referee", "--datasets=boolq", *PLAIN).stdout)
    assert "not installed" in made["referee"]["absent"]


def test_help_at_decoding_is_asked_for_by_name(here: Path) -> None:
    made = json.loads(evaluated(here, "--json", "--limit=2", "--datasets=gsm8k,boolq", "--calculator", "--vote=2", *PLAIN).stdout)
    assert {"exact_match", "exact_match_calculator", "maj@2"} < set(made["datasets"]["gsm8k"]["figures"])
    assert set(made["datasets"]["boolq"]["figures"]) == {"acc", "acc_norm"}


def checkpoint_of(here: Path) -> Path:
    (run,) = (here / "runs").iterdir()
    return RunDir(run).complete_checkpoints()[-1][1]


def test_a_checkpoint_may_be_removed_while_it_is_measured(here: Path, tmp_path: Path) -> None:
    """A run at work keeps its newest few only; an evaluation may take longer."""
    copy = Path(shutil.copytree(checkpoint_of(here), tmp_path / "step_000001"))
    places = Places(here / "data", here / "cache")
    made = evaluate_checkpoint(copy, places, CPU, ["boolq"], 2, with_untrained=False, say=lambda _: shutil.rmtree(copy, ignore_errors=True))
    assert not copy.exists()
    assert len(made["checkpoint"]["model_sha256"]) == 64
    assert set(made["overlap"]) == {"boolq"}


def test_without_the_training_text_the_figures_are_still_there(here: Path, tmp_path: Path) -> None:
    places = Places(write_folder(tmp_path, ("piqa",)), None)
    made = evaluate_checkpoint(checkpoint_of(here), places, CPU, ["piqa"], 2, with_untrained=False)
    assert made["datasets"]["piqa"]["figures"]["acc"]["n"] == 2
    assert made["overlap"]["absent"].startswith("the training text is not here: none of gsm8k")


def test_a_referee_who_sees_it_otherwise_is_a_warning() -> None:
    ours = {"piqa": {"figures": {"acc": {"value": 0.5}, "acc_norm": {"value": 0.4}}}}
    assert disagreements(ours, {"piqa": {"acc": 0.5049, "acc_norm": 0.3951}}) == []
    assert disagreements(ours, {"piqa": {"acc": 0.506, "acc_norm": 0.4}}) == ["the referee sees acc of piqa otherwise: 0.5060, here 0.5000"]


# --- as a job of the service --------------------------------------------------------------------------------


def job(here: Path, **wanted: Any) -> dict[str, Any]:
    (run,) = (here / "runs").iterdir()
    said: list[float | None] = []
    context = JobContext(here, here / "runs", Places(here / "data", here / "cache"), "cpu", lambda _, share: said.append(share))
    spec = {"run_id": run.name, "step": 1, "datasets": ["gsm8k", "boolq"], "limit": 2, "overlap": True, "calculator": False, "vote": None}
    made = perform({**spec, **wanted}, context)
    assert said == sorted(said)
    return {**made, "said": said}


def test_a_job_measures_what_its_specification_asks_for(here: Path) -> None:
    made = job(here, calculator=True, vote=2)
    assert set(made["datasets"]["gsm8k"]["figures"]) == {"exact_match", "last_number", "has_answer", "exact_match_calculator", "maj@2"}
    assert sorted(set(made["said"])) == [0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert len(made["said"]) > 3 + 4  # before each batch too, so that one who hangs is told from one who takes hours
    plain = job(here, datasets=["boolq"], overlap=False)
    assert "overlap" not in plain


def test_a_job_whose_checkpoint_is_gone_says_so(here: Path) -> None:
    with pytest.raises(JobFailed, match="step_000009 was removed before its turn came") as failed:
        job(here, step=9)
    assert failed.value.reason == "checkpoint_missing"
