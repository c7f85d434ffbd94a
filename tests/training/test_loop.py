"""The loop: what it reports, and that nothing that ends it can be seen in the result."""

import errno
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cognate.config import overlaid, resolve
from cognate.data.batches import Batch, TrainingBatches
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.report import describe_sources
from cognate.evaluation.suite import sample_accuracies, sample_items
from cognate.evaluation.writing import choose_prompts, write_on
from cognate.events import Failure, Kind
from cognate.metrics import METRICS, Cadence
from cognate.model import Cognate
from cognate.optimizer import MuGrokfast
from cognate.rundir import Places, RunDir
from cognate.training import checkpoint, loop
from cognate.training.checkpoint import load_model
from cognate.training.execution import FiniteLosses
from cognate.training.inputs import DataChanged, evaluation_samples
from cognate.training.pace import Pace
from tests.data.data_folders import row, write_folder, write_split
from tests.training.runs import TINY, CommandAt, attempt_at, digests, events, new_run, reproducible_rows, rows, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDir:
    """A run that nothing interrupts: what the interrupted ones are compared with."""
    run = new_run(tmp_path_factory.mktemp("whole") / "run", tiny())
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    return run


def test_training_reports_a_row_for_every_logged_step_and_the_untrained_model(whole: RunDir) -> None:
    assert [event.data["step"] for event in rows(whole)] == list(range(13))
    first, last = rows(whole)[0].data["values"], rows(whole)[-1].data["values"]
    assert set(first) == {"val_loss", "val_perplexity", "curriculum_stage"}
    assert first["val_loss"] == pytest.approx(math.log(400), abs=0.1)
    assert last["val_loss"] < first["val_loss"] - 0.3


def test_every_step_metric_is_measured_and_none_is_made_up(whole: RunDir) -> None:
    """Absent means not measured: no GPU here, so no GPU memory; no accuracy before there is an evaluation."""
    expected = {metric.key for metric in METRICS if metric.cadence is Cadence.STEP} - {"gpu_memory_allocated", "gpu_memory_reserved"}
    for event in rows(whole)[1:-1]:
        assert set(event.data["values"]) >= expected
        assert not any(key.startswith(("gpu_", "accuracy_", "diversity_")) for key in event.data["values"])
        assert 0 < event.data["progress"]["gate_mean"] < 1
        assert 0 < event.data["progress"]["gate_entropy"] < math.log(2)
    last = rows(whole)[-1].data["values"]
    assert last["total_params"] == sum(parameter.numel() for parameter in Cognate(whole.config().model).parameters())
    assert last["training_time_hours"] > 0


def test_the_story_is_told_in_order(whole: RunDir) -> None:
    passing = (Kind.METRICS, Kind.PROGRESS, Kind.PHASE, Kind.WARNING, Kind.SAMPLE)
    kinds = [event.kind for event in events(whole) if event.kind not in passing]
    assert kinds == [Kind.STARTED, Kind.PLAN, Kind.CHECKPOINT, Kind.CHECKPOINT, Kind.CHECKPOINT, Kind.FINISHED]
    plan = next(event.data for event in events(whole) if event.kind is Kind.PLAN)
    assert plan["total_steps"] == 12
    assert [event.seq for event in events(whole)] == list(range(1, len(events(whole)) + 1))


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_pause_and_resume_cannot_be_seen_in_the_result(step: int, whole: RunDir, cache: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", tiny())
    assert attempt_at(run, CommandAt(run, "pause", step), cache) is Kind.PAUSED
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert digests(run, 12) == digests(whole, 12)
    assert reproducible_rows(run) == reproducible_rows(whole)
    assert [event.data["step"] for event in rows(run)] == list(range(13))  # no step was done twice


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours may answer it."""


@pytest.mark.parametrize("step", [2, 6, 9])
def test_a_death_at_any_step_cannot_be_seen_in_the_result(step: int, whole: RunDir, cache: Path, tmp_path: Path) -> None:
    """Steps behind the last checkpoint are done again, to the same bits."""
    run = new_run(tmp_path / "run", tiny())

    def die() -> None:
        if rows(run) and rows(run)[-1].data["step"] == step:
            raise KilledError

    with pytest.raises(KilledError):
        attempt_at(run, die, cache)
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert digests(run, 12) == digests(whole, 12)
    assert reproducible_rows(run) == reproducible_rows(whole)


@pytest.mark.parametrize("forgotten", ["slow", "momentum", "exp_avg", "steps"])
def test_the_comparison_has_power(forgotten: str, whole: RunDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that loses any one piece of the optimizer's state is noticed."""
    restore = MuGrokfast.load_state_dict

    def forget(optimizer: MuGrokfast, state: dict[str, Any]) -> None:
        if forgotten == "steps":
            state["counters"]["steps"] = 0
        restore(optimizer, state)
        for kept in optimizer.state.values():
            if forgotten in kept:
                kept[forgotten].zero_()

    run = new_run(tmp_path / "run", tiny())
    attempt_at(run, CommandAt(run, "pause", 4), cache)
    monkeypatch.setattr(MuGrokfast, "load_state_dict", forget)
    attempt_at(run, cache=cache)
    assert digests(run, 12) != digests(whole, 12)


def test_measuring_does_not_change_what_is_measured(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    """A run that logs every fifth step has the same weights as one that logs each."""
    run = new_run(tmp_path / "run", tiny(training={"log_every_steps": 5}))
    attempt_at(run, cache=cache)
    assert [event.data["step"] for event in rows(run)] == [0, 1, 5, 10, 12]
    assert digests(run, 12)["model.safetensors"] == digests(whole, 12)["model.safetensors"]


@pytest.mark.parametrize("log_every", [1, 2, 5, 50])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_steps_time_is_the_average_since_the_last_row(log_every: int, *, is_late: bool) -> None:
    """A GPU's steps of 1 s: two are only launched, then each waits for the one two before, and a step with a row for all of them."""
    pace, clock, ended = Pace(), 0.0, 0.0
    waiting: list[float] = []  # when each step that is not waited for will have ended
    for step in range(1, 201):
        began, is_logged = clock, step == 1 or step % log_every == 0
        clock += 0.01  # to launch it
        ended = max(ended, clock) + 1.0
        waiting.append(ended)
        while waiting and (is_logged or not is_late or len(waiting) > FiniteLosses.AHEAD):
            clock = max(clock, waiting.pop(0))
        pace.took(clock - began, 1024, len(waiting))
        assert (pace.step_s, pace.mean) == (pytest.approx(1.0, rel=0.02), pytest.approx(1.0, rel=0.02))
        assert pace.tokens_per_s == pytest.approx(1024, rel=0.02)
        if is_logged:
            pace.begin_anew()


def test_a_slow_first_step_is_soon_forgotten() -> None:
    """It may have been compiled, and what is left of the run is told by the mean."""
    pace = Pace()
    pace.took(60.0, 1024, 0)
    pace.begin_anew()
    for _ in range(49):
        pace.took(1.0, 1024, 0)
    assert pace.step_s == pytest.approx(1.0)
    assert pace.mean == pytest.approx(1 + 59 * 0.9**49)


def test_another_seed_gives_another_run(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    """Or all of the above could hold because nothing depends on anything."""
    run = new_run(tmp_path / "run", resolve("quickstart", {**TINY, "seed": 8}))
    attempt_at(run, cache=cache)
    assert digests(run, 12)["model.safetensors"] != digests(whole, 12)["model.safetensors"]


def poisoned(monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
    calls = 0
    loss = Cognate.loss

    def poison(model: Cognate, *arguments: torch.Tensor, **options: bool) -> object:
        nonlocal calls
        calls += 1
        result = loss(model, *arguments, **options)
        if calls == at_call:
            object.__setattr__(result, "loss", result.loss * math.nan)
        return result

    monkeypatch.setattr(Cognate, "loss", poison)


def test_a_loss_that_is_no_number_stops_the_run_and_reaches_no_checkpoint(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run", tiny())
    poisoned(monkeypatch, at_call=6)
    assert attempt_at(run, cache=cache) is Kind.FAILED
    failed = events(run)[-1]
    assert (failed.data["reason"], failed.data["step"]) == (Failure.NONFINITE_LOSS, 6)
    assert math.isnan(rows(run)[-1].data["values"]["loss"])
    assert [step for step, _ in run.complete_checkpoints()] == [4]
    weights = checkpoint_weights(run, 4)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def checkpoint_weights(run: RunDir, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "model.safetensors")


def test_a_run_that_failed_goes_on_from_its_last_good_checkpoint(
    whole: RunDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run", tiny())
    with monkeypatch.context() as patch:
        poisoned(patch, at_call=6)
        attempt_at(run, cache=cache)
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert digests(run, 12) == digests(whole, 12)


def test_a_damaged_checkpoint_is_passed_over_and_said_so(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", tiny())
    attempt_at(run, CommandAt(run, "pause", 9), cache)
    newest = run.complete_checkpoints()[-1][1] / "model.safetensors"
    body = bytearray(newest.read_bytes())
    body[-1] ^= 1
    newest.write_bytes(body)
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert any("model.safetensors does not have the digest" in event.data["message"] for event in events(run) if event.kind is Kind.WARNING)
    assert (run.checkpoints / f"refused_{newest.parent.name}").is_dir()  # set aside: it must not count as one that is kept
    assert digests(run, 12) == digests(whole, 12)


def test_accumulated_batches_make_one_step(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of four rows a step: all of them, each once, and the same gradient scale as one batch."""
    asked: list[int] = []
    batch = TrainingBatches.batch

    def note(batches: TrainingBatches, epoch: int, index: int) -> Batch:
        asked.append(index)
        return batch(batches, epoch, index)

    monkeypatch.setattr(TrainingBatches, "batch", note)
    run = new_run(tmp_path / "run", tiny(training={"gradient_accumulation": 3, "max_steps": 4}))
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert asked == list(range(12))
    assert rows(run)[-1].data["progress"]["tokens"] == 4 * 3 * 4 * 64


def test_an_epoch_whose_batches_do_not_divide_is_trained_to_its_last(cache: Path, tmp_path: Path) -> None:
    """More accumulation than there are batches is one step an epoch, not an index that is not there."""
    config = tiny(data={"synthetic_problems": 100}, training={"gradient_accumulation": 1000, "max_steps": None, "epochs": 2})
    run = new_run(tmp_path / "run", config)
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    plan = next(event.data for event in events(run) if event.kind is Kind.PLAN)
    assert plan["steps_per_epoch"] == [1, 1]
    assert rows(run)[-1].data["epoch"] == 2.0


def test_a_run_does_not_go_on_with_other_data(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder that appears or changes between pause and resume: its place in the data would mean nothing."""
    run = new_run(tmp_path / "run", tiny())
    attempt_at(run, CommandAt(run, "pause", 4), cache)
    monkeypatch.setattr(Corpus, "fingerprint", "another")
    with pytest.raises(DataChanged):
        attempt_at(run, cache=cache)


def test_epochs_end_with_a_validation_and_their_time(cache: Path, tmp_path: Path) -> None:
    run = new_run(
        tmp_path / "run",
        tiny(data={"synthetic_problems": 100}, training={"max_steps": None, "epochs": 2, "batch_size": 16, "log_every_steps": 1000}),
    )
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    ends = [event.data for event in rows(run) if "epoch_time_minutes" in event.data["values"]]
    assert [row["epoch"] for row in ends] == [1.0, 2.0]
    assert all(row["values"]["epoch_time_minutes"] > 0 and "val_loss" in row["values"] for row in ends)


def test_old_checkpoints_are_deleted_and_named(cache: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", tiny(training={"checkpoint_every_steps": 2, "keep_checkpoints": 2}))
    attempt_at(run, cache=cache)
    assert [step for step, _ in run.complete_checkpoints()] == [10, 12]
    kept = [event.data["kept_steps"] for event in events(run) if event.kind is Kind.CHECKPOINT]
    assert kept == [[2], [2, 4], [4, 6], [6, 8], [8, 10], [10, 12]]


def test_training_goes_on_while_a_checkpoint_is_written(
    whole: RunDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of step 4 is not written before step 7 is done; it is that of step 4 all the same, and is told when it is there."""
    run, write, held = new_run(tmp_path / "run", tiny()), checkpoint.write, threading.Event()

    def write_late(run: RunDir, taken: checkpoint.Snapshot, keep: int) -> Any:
        held.wait(60)
        return write(run, taken, keep)

    def look() -> None:
        if rows(run) and rows(run)[-1].data["step"] == 7:
            assert run.complete_checkpoints() == []
            held.set()

    monkeypatch.setattr(checkpoint, "write", write_late)
    assert attempt_at(run, look, cache) is Kind.FINISHED
    assert digests(run, 4) == digests(whole, 4)
    assert digests(run, 12) == digests(whole, 12)
    told = [event.data["step"] for event in events(run) if event.kind in (Kind.CHECKPOINT, Kind.METRICS)]
    assert told.index(4, told.index(4) + 1) > told.index(7)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_reason(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no such disk")

    monkeypatch.setattr(checkpoint, "write", fail)
    with pytest.raises(OSError, match="no such disk"):
        attempt_at(new_run(tmp_path / "run", tiny()), cache=cache)


def test_the_best_and_the_pinned_checkpoint_outlive_newer_ones(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses 3, 1, 2, 4 at the ends of four epochs: the second is the best, the first is pinned."""
    losses = iter([9.0, 3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(loop, "validate", lambda *_: {"val_loss": next(losses), "val_perplexity": 1.0})
    config = tiny(
        data={"synthetic_problems": 100},
        training={"max_steps": None, "epochs": 4, "batch_size": 16, "keep_checkpoints": 1, "checkpoint_every_steps": 10**6},
    )
    run = new_run(tmp_path / "run", config)
    run.pin([12])
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert next(event.data for event in events(run) if event.kind is Kind.PLAN)["steps_per_epoch"] == [12] * 4
    assert run.best() == (24, 1.0)
    assert [step for step, _ in run.complete_checkpoints()] == [12, 24, 48]


def test_a_fork_trains_on_under_its_own_settings(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    """From the checkpoint of step 4: with the same settings to the same bits, with another weight decay to others."""
    for name, decay in (("same", None), ("other", 0.5)):
        changes = {} if decay is None else {"optimizer": {"weight_decay": decay}}
        run = new_run(tmp_path / name, overlaid(whole.config().model_dump(mode="json"), changes))
        shutil.copytree(whole.checkpoint(4), run.checkpoint(4))
        assert attempt_at(run, cache=cache) is Kind.FINISHED
        assert rows(run)[0].data["step"] == 5
        same = digests(run, 12)["model.safetensors"] == digests(whole, 12)["model.safetensors"]
        assert same == (decay is None)


@pytest.mark.parametrize("ended_by", [{"epochs": 1}, {"epochs": 2, "max_steps": 12}], ids=str)
def test_a_fork_of_a_run_that_ended_with_an_epoch_begins_the_next(ended_by: dict[str, int], cache: Path, tmp_path: Path) -> None:
    """The run's last step leaves its place at the end of an epoch, where no batch follows."""
    data, training = {"synthetic_problems": 100}, {"batch_size": 16, "max_steps": None, "checkpoint_every_steps": 1000}
    source = new_run(tmp_path / "source", tiny(data=data, training={**training, **ended_by}))
    assert attempt_at(source, cache=cache) is Kind.FINISHED
    assert rows(source)[-1].data["epoch"] == 1.0
    fork = new_run(tmp_path / "fork", tiny(data=data, training={**training, "epochs": 2}))
    shutil.copytree(source.checkpoint(12), fork.checkpoint(12))
    assert attempt_at(fork, cache=cache) is Kind.FINISHED
    assert [event.data["step"] for event in rows(fork)] == list(range(13, 25))
    assert rows(fork)[0].data["epoch"] == 1 + 1 / 12
    assert rows(fork)[-1].data["epoch"] == 2.0


def test_a_disk_without_space_is_noticed_before_it_is_full(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path / "run", tiny())
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=r"a checkpoint needs 6[45] MiB") as raised:
        attempt_at(run, cache=cache)
    assert raised.value.errno == errno.ENOSPC
    assert list(run.checkpoints.iterdir()) == []


def test_what_a_killed_worker_was_writing_is_removed(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", tiny())
    torn = run.checkpoints / ".step_000004.tmp"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    attempt_at(run, cache=cache)
    assert not torn.exists()
    assert digests(run, 12) == digests(whole, 12)


def test_an_epoch_ends_with_the_accuracies_of_the_datasets_that_are_there(tmp_path: Path) -> None:
    """As the evaluation of the saved model gives them, whatever comes between; and none where none is asked for."""
    data_dir = write_folder(tmp_path / "data", ("boolq", "arc_easy", "svamp"), n_train=60)
    data, training = {"source": "real", "datasets": ["boolq", "svamp"]}, {"max_steps": None, "epochs": 2, "checkpoint_every_steps": 1000}
    config = tiny(data=data, training=training, evaluation={"epoch_items": 3})
    run = new_run(tmp_path / "run", config)
    assert attempt_at(run, CommandAt(run, "pause", 2), data_dir=data_dir) is Kind.PAUSED
    assert attempt_at(run, data_dir=data_dir) is Kind.FINISHED
    accuracies = {
        event.data["step"]: {key: value for key, value in event.data["values"].items() if key[:9] == "accuracy_"} for event in rows(run)
    }
    measured = {step: values for step, values in accuracies.items() if values}
    for step, path in run.complete_checkpoints():
        if step in measured:
            samples = sample_items(data_dir, ["boolq", "svamp"], 3)
            assert [len(sample.items) for sample in samples] == [3, 3]
            assert measured.pop(step) == sample_accuracies(*load_model(path), samples)
    assert measured == {}
    assert len([values for values in accuracies.values() if values]) == 2

    for number, changes in enumerate([{"evaluation": {"epoch_items": 0}}, {"data": {"source": "synthetic"}}]):
        run = new_run(tmp_path / f"none-{number}", overlaid(config.model_dump(mode="json"), {**changes, "training": {"max_steps": 1}}))
        assert attempt_at(run, data_dir=data_dir) is Kind.FINISHED
        assert not [key for key in rows(run)[-1].data["values"] if key.startswith("accuracy_")]


@pytest.mark.parametrize("source", ["synthetic", "real"])
def test_an_epoch_ends_with_what_the_model_writes(source: str, tmp_path: Path) -> None:
    """As the saved model writes, with the mean of its weights; and in weights and optimizer it cannot be seen."""
    data_dir = write_folder(tmp_path / "data", ("boolq", "svamp"), n_train=60)
    data = {"source": source, "synthetic_problems": 100}
    training = {"max_steps": 8, "batch_size": 16, "sequence_length": 128, "keep_checkpoints": 9, "weight_ema": 0.5}
    runs = {}
    for count in (0, 4):
        runs[count] = new_run(tmp_path / f"run-{count}", tiny(data=data, training=training, evaluation={"samples": count}))
        assert attempt_at(runs[count], cache=tmp_path / "cache", data_dir=data_dir) is Kind.FINISHED
    assert digests(runs[0], 8) == digests(runs[4], 8)
    assert [event for event in events(runs[0]) if event.kind is Kind.SAMPLE] == []
    told = [event.data for event in events(runs[4]) if event.kind is Kind.SAMPLE]
    corpus = load_corpus(runs[4].config(), data_dir, tmp_path / "cache")
    prompts = choose_prompts(corpus, 4)
    assert len(prompts) == 4
    epochs = {event.data["step"]: event.data["epoch"] for event in rows(runs[4])}
    ends = [step for step, epoch in epochs.items() if step and (epoch == round(epoch) or step == 8)]
    for step in ends:
        texts = write_on(*load_model(runs[4].checkpoint(step)), prompts)
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            assert told.pop(0) == {
                "step": step, "epoch": epochs[step], "place": place, "dataset": prompt.dataset,
                "prompt": prompt.prompt, "expected": prompt.expected, "text": text,
            }  # fmt: skip
    assert told == []
    assert len(ends) > 1


def test_an_epochs_items_are_of_the_copy_that_is_trained_on(tmp_path: Path) -> None:
    """A copy that comes first since then may hold out rows of the other's training text."""
    config = tiny(data={"source": "real", "datasets": ["strategyqa"]}, evaluation={"epoch_items": 3})
    write_folder(tmp_path / "datasets", ("strategyqa",))
    corpus = load_corpus(config, None, tmp_path)
    began = evaluation_samples(config, Places(None, tmp_path), corpus)
    own = write_folder(tmp_path / "own", ("strategyqa",))
    write_split(own, "strategyqa", "validation", [row("strategyqa", number) for number in range(4)])
    resumed = load_corpus(config, own, tmp_path, corpus.tokenizer, corpus.digests)
    assert evaluation_samples(config, Places(own, tmp_path), resumed) == began != []


def test_without_a_dataset_a_run_goes_by_another_plan_and_says_so(tmp_path: Path) -> None:
    """The report, the curriculum and the run's events all change; nothing else breaks."""
    data_dir = write_folder(tmp_path / "data", ("boolq", "svamp", "drop"))
    config = tiny(data={"source": "real"}, training={"max_steps": 1}, evaluation={"epoch_items": 0})
    assert attempt_at(new_run(tmp_path / "with", config), data_dir=data_dir) is Kind.FINISHED
    shutil.rmtree(data_dir / "drop")
    assert attempt_at(new_run(tmp_path / "without", config), data_dir=data_dir) is Kind.FINISHED
    told = {}
    for name in ("with", "without"):
        (plan,) = [event.data["curriculum"] for event in events(RunDir(tmp_path / name)) if event.kind is Kind.PLAN]
        warnings = [event.data["message"] for event in events(RunDir(tmp_path / name)) if event.kind is Kind.WARNING]
        told[name] = ([stage["datasets"] for stage in plan["stages"]], "drop is not in the data folder (drop) and is left out" in warnings)
    assert told["with"] == ([["svamp"], ["svamp", "boolq"], ["svamp", "drop", "boolq"]], False)
    assert told["without"] == ([["svamp"], ["svamp", "boolq"], ["svamp", "boolq"]], True)
    assert [row.name for row in describe_sources(data_dir) if row.is_present] == ["svamp", "boolq"]


def test_what_is_fetched_while_a_run_is_paused_does_not_change_it(tmp_path: Path) -> None:
    """To the last bit: it goes on with the files it began with."""
    data_dir = write_folder(tmp_path / "data", ("boolq", "svamp"))
    config = tiny(data={"source": "real", "extra": ["mine"]}, training={"max_steps": 6}, evaluation={"epoch_items": 0})
    (data_dir / "extra").mkdir()
    (data_dir / "extra" / "mine.jsonl").write_text('{"prompt": "Who?", "answer": "Me."}\n')
    for name in ("whole", "paused"):
        run = new_run(tmp_path / name, config)
        if name == "paused":
            assert attempt_at(run, CommandAt(run, "pause", 3), tmp_path / "cache", data_dir) is Kind.PAUSED
            write_folder(tmp_path / "cache" / "datasets", ("drop", "gsm8k"))
        assert attempt_at(run, lambda: None, tmp_path / "cache", data_dir) is Kind.FINISHED
    assert reproducible_rows(RunDir(tmp_path / "paused")) == reproducible_rows(RunDir(tmp_path / "whole"))
    (plan, _) = [event.data["curriculum"] for event in events(RunDir(tmp_path / "paused")) if event.kind is Kind.PLAN]
    assert "extra/mine" in plan["stages"][0]["datasets"]
