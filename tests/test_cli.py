"""The command line: the same runs without the service, and sentences where something is amiss."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cognate import worker
from cognate.cli import app
from cognate.config import SPECIALISTS
from cognate.data.sources import SOURCES
from cognate.events import Event, Kind
from cognate.metrics import METRICS
from cognate.report.history import read_history
from cognate.rundir import Control, RunDir, take_lease
from cognate.training.control import ControlFile
from tests.data.data_folders import write_folder
from tests.training.runs import TINY, rows

SMALL = [
    f"--set={section}.{name}={json.dumps(value)}"
    for section, values in {**TINY, "training": {**TINY["training"], "max_steps": 2}}.items()
    for name, value in values.items()
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COGNATE_DATA_DIR", raising=False)
    return tmp_path


def cognate(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


def made(folder: Path) -> list[RunDir]:
    return [RunDir(path) for path in sorted(folder.iterdir())]


def test_a_preset_is_trained_into_a_run_directory(here: Path) -> None:
    done = cognate("train", "quickstart", *SMALL, "--output", "out")
    assert done.exit_code == 0, done.output
    (run,) = made(here / "out")
    assert [event.data["step"] for event in rows(run)] == [0, 1, 2]
    assert "finished at step 2" in done.output


def test_the_reports_own_spellings_are_understood(here: Path) -> None:
    done = cognate("train", "--specialization", "quickstart", *SMALL, "--batch-size", "2", "--output", "out")
    assert done.exit_code == 0, done.output
    # --set comes after --batch-size and is the more exact of the two
    assert made(here / "out")[0].config().training.batch_size == 4
    without = [setting for setting in SMALL if "batch_size" not in setting]
    done = cognate("train", "quickstart", *without, "--batch-size", "2", "--mixed-precision", "--output", "other")
    assert done.exit_code == 0, done.output
    training = made(here / "other")[0].config().training
    assert (training.batch_size, training.precision) == (2, "bf16")


def test_all_trains_the_three_specialists(here: Path) -> None:
    done = cognate("train", "--all", *SMALL, "--output", "out")
    assert done.exit_code == 0, done.output
    runs = {run.config().preset: run for run in made(here / "out")}
    assert runs.keys() == set(SPECIALISTS)
    assert "reasoning >= memory > speed" in " ".join(done.output.split())
    last_rows = {preset: read_history(run).rows[-1].values for preset, run in runs.items()}
    diversity = {metric.key for metric in METRICS if metric.group == "diversity"}
    assert len(diversity) == 3
    assert {preset: diversity & values.keys() for preset, values in last_rows.items()} == {
        "reasoning": set(), "memory": set(), "speed": diversity
    }  # fmt: skip


def test_a_run_is_resumed_from_its_directory(here: Path) -> None:
    cognate("train", "quickstart", *SMALL, "--output", "out")
    (run,) = made(here / "out")
    done = cognate("train", "--resume", str(run.path))
    assert done.exit_code == 0, done.output
    assert "finished at step 2" in done.output  # nothing was left to do


def test_ctrl_c_ends_all_of_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of the first specialist is not the start of the second."""
    monkeypatch.setattr(ControlFile, "poll", lambda _: Control("pause", 1))
    done = cognate("train", "--all", *SMALL, "--output", "out")
    assert done.exit_code == 130
    assert [run.config().preset for run in made(here / "out")] == ["reasoning"]


def test_a_directory_that_is_being_trained_is_not_trained_twice(here: Path) -> None:
    cognate("train", "quickstart", *SMALL, "--output", "out")
    (run,) = made(here / "out")
    lease = take_lease(run.attempt(1))
    assert lease is not None
    refused = cognate("train", "--resume", str(run.path))
    os.close(lease)
    assert refused.exit_code == 2
    assert "another process" in refused.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--resume", "nowhere"], "is no run directory"),
        (["train", "quickstart", "--resume", "nowhere"], "takes no preset"),
        (["train"], "name one preset"),
        (["train", "resoning"], "did you mean 'reasoning'"),
        (["train", "quickstart", "--set", "training.batchsize=3"], "did you mean 'batch_size'"),
        (["train", "quickstart", "--set", "training"], "name=value"),
        (["train", "quickstart", "--all"], "name one preset, or --all"),
        (["data", "--data", "nowhere"], "'nowhere' does not exist"),
        (["data", "show", "gsm9k"], "no dataset 'gsm9k'; have gsm8k"),
        (["data", "show", "gsm8k"], "gsm8k is in no data folder"),
        (["data", "show", "extra/mine"], "there is no extra/mine"),
        (["data", "fetch"], "name datasets, or --all"),
        (["data", "fetch", "gsm8k", "--all"], "name datasets, or --all"),
    ],
)
def test_a_mistake_is_answered_with_the_way_out(arguments: list[str], words: str) -> None:
    done = cognate(*arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())


def test_a_specialist_without_data_fails_and_says_what_to_do() -> None:
    done = cognate("train", "reasoning")
    assert done.exit_code == 1
    assert "data_missing" in done.output
    assert "set COGNATE_DATA_DIR" in " ".join(done.output.split())  # it is wrapped
    assert "Traceback" not in done.output


def test_the_datasets_are_listed_with_their_counts(data_dir: Path) -> None:
    done = cognate("data", "--data", str(data_dir))
    assert "the six-dataset plan: stage 1: 20,798, stage 2: 21,917, stage 3: 21,917 samples" in done.output
    assert done.output.count("\n") > 14
    rows = {row["name"]: row for row in json.loads(cognate("data", "status", "--json", "--data", str(data_dir)).stdout)["datasets"]}
    short = {
        name: [(part["split"], part["rows"], part["hub_rows"]) for part in row["partial"]] for name, row in rows.items() if row["partial"]
    }
    assert short == {
        "codexglue": [("train", 0, 100_000)],
        "hotpotqa": [("validation", 1000, 7405)],
        "drop": [("train", 3420, 77_400)],
    }
    assert rows["hotpotqa"]["without_passage"] == 9084


def test_without_any_dataset_the_way_to_one_is_said() -> None:
    """On the 80 columns of this output no name is cut, nor the path of a missing file."""
    done = cognate("data")
    assert done.exit_code == 0
    assert "`cognate data fetch`" in done.output
    for source in SOURCES.values():
        files = ", ".join(f"{split}.parquet" for split in source.splits)
        assert f"{source.name}: missing: {source.folder}/{files}\n" in done.output


def test_samples_are_shown_as_the_model_sees_them(here: Path) -> None:
    """Each use apart: what is trained on by its text, held out by its hash, or tested on."""
    write_folder(here / "data", ["gsm8k"])
    for arguments in (["data", "--data", "data", "show", "gsm8k"], ["data", "show", "gsm8k", "--data", "data"]):
        shown = cognate(*arguments, "--count", "1").output
        assert [line.strip("─ \n") for line in shown.splitlines() if "─" in line] == ["gsm8k: training", "gsm8k: held out", "gsm8k: test"]
        assert "Question: How many are gsm8k train zero?\nAnswer: There are <<0+1=1>>1.\n#### 1<|end|>" in shown
        assert "gsm8k test zero" in shown


def test_offline_a_fetch_fails_at_once_and_says_why(here: Path) -> None:
    done = cognate("data", "fetch", "--all")
    assert done.exit_code == 1
    assert done.output.count("was not fetched") == 1
    assert "offline: HF_HUB_OFFLINE is set" in " ".join(done.output.split())
    assert not list((here / "var" / "cache" / "datasets").iterdir())


def test_a_checkpoint_continues_prompts(here: Path) -> None:
    """Text as it comes, or an object a prompt with what was spent on each token; the same by the run and by the checkpoint."""
    cognate("train", "quickstart", *SMALL, "--output=runs")
    (run,) = made(here / "runs")
    options = ["--prompt=Question: 1 + 2?", "--prompt=12", "--max-new-tokens=5"]
    shown = cognate("generate", str(run.path), *options)
    assert shown.exit_code == 0, shown.output
    assert "recursions a token" in shown.stderr
    answers = [
        json.loads(line) for line in cognate("generate", str(run.complete_checkpoints()[-1][1]), *options, "--json").stdout.splitlines()
    ]
    assert [answer["prompt"] for answer in answers] == ["Question: 1 + 2?", "12"]
    assert shown.stdout == "".join(answer["text"] + "\n" for answer in answers)
    for answer in answers:
        assert 1 <= len(answer["tokens"]) == len(answer["depths"]) <= 5
    deep = cognate("generate", str(run.path), *options, "--json", "--no-halting", "--recursions=5", "--temperature=1", "--top-k=9")
    assert {depth for line in deep.stdout.splitlines() for depth in json.loads(line)["depths"]} == {5}


def test_prompts_come_from_standard_input_too(here: Path) -> None:
    cognate("train", "quickstart", *SMALL, "--output=runs")
    (run,) = made(here / "runs")
    made_of = CliRunner().invoke(app, ["generate", str(run.path), "--json", "--max-new-tokens=2"], input="1 + 1\r\n\n2 + 2\n\n")
    assert [json.loads(line)["prompt"] for line in made_of.stdout.splitlines()] == ["1 + 1", "2 + 2"]
    drawn = cognate("generate", str(run.path), "--json", "--temperature=5", *["--prompt=1 + 1"] * 3).stdout.splitlines()
    assert len({json.loads(line)["text"] for line in drawn}) == 3
    refused = CliRunner().invoke(app, ["generate", str(run.path)], input=b"\xff\xfe\n")
    assert refused.exit_code == 2
    assert "not UTF-8" in refused.output


def test_what_is_no_checkpoint_continues_nothing(here: Path) -> None:
    assert "is no checkpoint" in cognate("generate", str(here), "--prompt=1").output
    cognate("train", "quickstart", *SMALL, "--output=runs")
    (run,) = made(here / "runs")
    weights = run.complete_checkpoints()[-1][1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "does not have the digest" in cognate("generate", str(run.path), "--prompt=1").output


def test_the_console_command_knows_all_of_it() -> None:
    """One command for people; what concerns models is handed to a process of its own, so that the server never loads torch."""
    help_text = subprocess.run([Path(sys.executable).with_name("cognate"), "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in help_text for name in ("serve", "train", "data"))
    refused = subprocess.run([Path(sys.executable).with_name("cognate"), "train"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "name one preset" in refused.stderr


def test_what_is_told_is_shown_as_it_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are a terminal library's markup: words in them were left out, and some were an error of their own."""
    monkeypatch.setattr(worker, "run_attempt", lambda *arguments: tell(arguments[-1]))

    def tell(listener: Callable[[Event], None]) -> Kind:
        listener(Event(1, 0.0, Kind.WARNING, {"message": "no [red]/usr[/lib] for [batch, time]"}))
        listener(Event(2, 0.0, Kind.FAILED, {"reason": "error", "detail": "[/x]"}))
        return Kind.FAILED

    done = cognate("train", "quickstart", "--output", "[out]")
    assert done.exit_code == 1
    assert "in [out]/quickstart-" in done.output
    assert "warning: no [red]/usr[/lib] for [batch, time]" in done.output
    assert "failed: error: [/x]" in done.output


def test_samples_of_several_datasets_are_shown(here: Path) -> None:
    write_folder(here / "data", ["gsm8k", "svamp"])
    shown = cognate("data", "show", "gsm8k,svamp", "--count=1", "--data=data")
    assert shown.exit_code == 0, shown.output
    assert [name in shown.output for name in ("gsm8k: test", "svamp: test")] == [True, True]
