"""The diversity report of run directories: which checkpoints, which texts, and the job."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cognate.config import resolve
from cognate.data.files import find_copies
from cognate.data.rows import plan
from cognate.data.synthetic import KINDS
from cognate.events import Kind
from cognate.jobdir import JobContext, JobFailed
from cognate.report.diversity import GENERATED, ROWS_A_DATASET, held_out, measure_runs, perform
from cognate.rundir import Places, RunDir, file_digest, write_json
from cognate.training.checkpoint import weights_file
from tests.training.runs import attempt_at, new_run, tiny

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import write_folder

NOWHERE = Places(None, None)


def test_the_best_checkpoints_are_measured(trio: list[RunDir]) -> None:
    first = trio[0].complete_checkpoints()[0][0]
    write_json(trio[0].checkpoints / "best.json", {"step": first, "val_loss": 0.0})
    made = measure_runs(trio, NOWHERE, torch.device("cpu"))
    assert [member["name"] for member in made["members"]] == ["run_reasoning", "run_memory", "run_speed"]
    assert made["members"][0]["step"] == first
    for run, member in zip(trio, made["members"], strict=True):
        assert member["model_sha256"] == file_digest(weights_file(run.checkpoint(member["step"])))
        assert member["positions"] == made["members"][0]["positions"]
    assert all(pair["agreement"] is not None for pair in made["pairs"])  # they share data, so they share the tokenizer
    assert made["required_order"]["holds"] in (True, False)
    assert made["texts"]["by_dataset"].keys() == set(KINDS)


def test_texts_were_kept_aside_by_every_run() -> None:
    """However many problems each of them generated."""
    config = resolve("quickstart")
    _, texts = held_out([config], NOWHERE)
    trained = {example.prompt + example.answer for part in plan(config.data, None).read().training.values() for example in part}
    assert len(texts) == GENERATED
    assert not trained & {text.prompt + text.answer for text in texts}


def test_real_texts_are_validation_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, ("boolq", "gsm8k"), n_train=60)
    config = resolve("reasoning")
    source, texts = held_out([config], Places(folder, None))
    assert source == "validation rows of the datasets that are there"
    assert {text.dataset for text in texts} == {"boolq", "gsm8k"}
    assert all(sum(text.dataset == name for text in texts) <= ROWS_A_DATASET for name in ("boolq", "gsm8k"))
    trained = {example.prompt + example.answer for part in plan(config.data, folder).read().training.values() for example in part}
    assert not trained & {text.prompt + text.answer for text in texts}
    of_generated = held_out([resolve("reasoning", {"data": {"source": "synthetic"}})], Places(folder, None))
    assert of_generated == held_out([config], NOWHERE)  # none of the runs saw text like that of the folder


def test_a_dataset_that_is_here_in_another_copy_is_left_out(tmp_path: Path) -> None:
    """It may divide its rows otherwise; and where two runs had two copies, no copy is held out for both."""
    folder = write_folder(tmp_path / "one", ("boolq", "gsm8k"), n_train=60)
    other = write_folder(tmp_path / "other", ("boolq",), n_train=50)
    ours, theirs = (
        {path: digest for copy in find_copies([each]).values() for path, digest in copy.files.items()} for each in (folder, other)
    )
    config = resolve("reasoning")
    for files, expected in (([ours, ours], {"boolq", "gsm8k"}), ([theirs], {"gsm8k"}), ([ours, theirs], {"gsm8k"})):
        _, texts = held_out([config] * len(files), Places(folder, None), files)
        assert {text.dataset for text in texts} == expected


def test_what_a_run_was_trained_on_decides_what_it_is_measured_on(tmp_path: Path) -> None:
    """Its checkpoint names the files; one of them is another now."""
    folder = write_folder(tmp_path / "data", ("boolq", "gsm8k"), n_train=60)
    config = tiny(data={"source": "real", "validation_batches": 1}, training={"max_steps": 1}, evaluation={"epoch_items": 0})
    run = new_run(tmp_path / "run", config)
    assert attempt_at(run, data_dir=folder) is Kind.FINISHED
    assert measured_on(run, folder) == {"boolq", "gsm8k"}
    write_folder(folder, ("boolq",), n_train=50)
    assert measured_on(run, folder) == {"gsm8k"}


def measured_on(run: RunDir, folder: Path) -> set[str]:
    return set(measure_runs([run], Places(folder, None), torch.device("cpu"))["texts"]["by_dataset"])


def test_the_job_fails_for_a_reason(runs_dir: Path, tmp_path: Path) -> None:
    context = JobContext(tmp_path, runs_dir, Places(None, None), "cpu", lambda sentence, fraction: None)
    with pytest.raises(JobFailed) as failed:
        perform({"run_ids": ["run_reasoning", "../run_memory"]}, context)
    assert failed.value.reason == "run_missing"
    (runs_dir / "run_speed" / "checkpoints").rename(runs_dir / "gone")
    with pytest.raises(JobFailed) as failed:
        perform({"run_ids": ["run_reasoning", "run_speed"]}, context)
    assert failed.value.reason == "checkpoint_missing"
