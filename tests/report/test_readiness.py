"""The facts themselves: counted from the real model and data, measured with real steps."""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cognate.config import SIX_DATASETS, RunConfig, resolve
from cognate.events import Kind
from cognate.jobdir import JobContext
from cognate.metrics import METRICS
from cognate.model import Cognate
from cognate.optimizer import MuGrokfast
from cognate.report import readiness as module
from cognate.report.machine import GPU_IS_BUSY, Neighbours, Peak, host_memory, look_around
from cognate.report.markdown import markdown
from cognate.report.network import count
from cognate.report.plan import SIX_PLAN, make_plan
from cognate.report.probe import multiplied_up, peak_at, probe
from cognate.report.readiness import perform, readiness
from cognate.rundir import Control, Places, take_lease
from cognate.training.average import WeightAverage
from cognate.training.checkpoint import Position, snapshot
from cognate.training.loop import build_optimizer
from tests.report.example import EXAMPLE
from tests.training.runs import TINY, attempt_at, events, new_run, tiny

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import write_folder

CPU = torch.device("cpu")
NOWHERE = Places(None, None)
WANDB = {"installed": False, "key": False, "wanted": "auto", "mode": "off"}


def report_of(config: RunConfig, runs_dir: Path, places: Places = NOWHERE, **options: Any) -> dict[str, Any]:
    return readiness(config, places, runs_dir, CPU, **{"probe_s": 20.0, "wandb": WANDB, **options})


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["reasoning", "memory", "speed"])
def test_the_specialists_have_the_parameters_of_the_specification(preset: str) -> None:
    network = count(resolve(preset))
    assert network.parameters == 26_974_561
    assert network.parts == {
        "token embedding, which is the output head": 10_485_760,
        "attention: query, key, value, out": 3_276_800,
        "MLP": 10_485_760,
        "memory: query, key, value, out": 983_040,
        "memory: decay and write gates": 10_272,
        "gate between attention and memory": 5_160,
        "norms, attention gains, residual weights": 5_208 + 320,
        "recursion: attention and MLP": 1_720_320,
        "recursion: norms and first states": 1_600,
        "halting head": 321,
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": {"grokfast_lambda": 0.0}}, {"model": {"ltm": False, "trm": False}}, {"training": {"weight_ema": 0.9}}],
)
def test_what_is_counted_from_shapes_is_what_a_checkpoint_holds(settings: dict[str, Any]) -> None:
    config = tiny(**settings)
    corpus_tokenizer: Any = None
    model = Cognate(config.model)
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    average = WeightAverage(model, config.training.weight_ema, None).state() if config.training.weight_ema else None
    taken = snapshot(Position(), model, optimizer, corpus_tokenizer, {}, "", {}, average)
    assert count(config).checkpoint_bytes == taken.bytes


# --- the plan ---------------------------------------------------------------------------------------------


def test_the_six_datasets_give_the_counts_of_the_specification(data_dir: Path) -> None:
    config = resolve("reasoning", {"data": {"datasets": list(SIX_DATASETS)}, "model": {"vocab_size": 512}})
    plan = make_plan(config, Places(data_dir, None)).plan
    assert plan.is_six
    assert [stage["samples"] for stage in plan.stages[:2]] == list(SIX_PLAN.values()) == [20_798, 21_917]
    states = {dataset.name: dataset.state for dataset in plan.datasets}
    assert {name for name, state in states.items() if state != "not chosen"} == set(SIX_DATASETS)
    assert len(states) == 14


def test_the_plan_is_the_one_that_a_run_makes(tmp_path: Path) -> None:
    config = tiny(training={"gradient_accumulation": 3, "max_steps": None, "epochs": 2})
    run = new_run(tmp_path / "run", config)
    attempt_at(run, lambda: Control("stop", 1))
    said = next(event.data for event in events(run) if event.kind is Kind.PLAN)
    plan = make_plan(config, NOWHERE).plan
    assert list(plan.steps_per_epoch) == said["steps_per_epoch"]
    assert plan.total_steps == said["total_steps"]
    assert [stage["samples"] for stage in plan.stages] == [stage["samples"] for stage in said["curriculum"]["stages"]]
    assert count(config).parameters == said["total_params"]


def test_what_is_missing_and_what_is_partial_is_said(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} plus one?", "answer": f"{n}+1\n#### {n + 1}"} for n in range(50)]
    (tmp_path / "gsm8k").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gsm8k" / "train.parquet")
    pq.write_table(pa.Table.from_pylist([{"question": "Who?", "answer": "#### 1"}]), tmp_path / "gsm8k" / "test.parquet")
    config = tiny(data={"source": "real", "datasets": ["gsm8k", "svamp"]})
    report = report_of(config, tmp_path, Places(tmp_path, None), not_now="not now")
    found = {finding["code"]: finding["message"] for finding in report["findings"]}
    assert found["dataset_partial"] == "gsm8k has 50 of the 7,473 training rows that were planned."
    assert found["datasets_missing"] == "1 of 2 datasets are not there and are left out: svamp."
    assert report["verdict"] == "ready_with_warnings"
    assert report["data"]["stages"][0]["samples"] == 50


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_without_its_data_a_specialist_is_not_ready(tmp_path: Path, folder: str | None) -> None:
    places = Places(tmp_path / folder if folder else None, None)
    report = report_of(resolve("reasoning"), tmp_path, places)
    assert report["verdict"] == "not_ready"
    assert [finding["code"] for finding in report["findings"] if finding["severity"] == "blocker"] == ["data_missing"]
    assert report["probe"] is None
    assert report["model"]["parameters"] == 26_974_561
    assert "Not ready" in markdown(report)


# --- the machine ------------------------------------------------------------------------------------------


def test_a_container_has_the_memory_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n")
    assert host_memory(tmp_path, tmp_path) == (8_192_000, 5_120_000)
    (tmp_path / "memory.max").write_text("4096000\n")
    (tmp_path / "memory.current").write_text("1096000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 96000\n")
    assert host_memory(tmp_path, tmp_path) == (4_096_000, 3_096_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(tmp_path, tmp_path) == (8_192_000, 5_120_000)
    assert host_memory(tmp_path / "none", tmp_path) == (None, None)


def test_the_peak_is_that_of_the_time_watched() -> None:
    before = Peak(CPU)
    with mmap.mmap(-1, 256 * 2**20) as memory:  # a tensor may lie where the allocator holds freed memory, which is resident
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page] = 1
    most = before.bytes()
    if most is None:
        pytest.skip("this system does not let a process reset its peak")
    after = Peak(CPU).bytes()
    assert after is not None
    assert most - after > 200 * 2**20


def test_the_neighbours_share_is_what_this_process_did_not_take(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 0 0 900 0 0 0 0 0 0\ncpu0 1 1\n")
    watch = Neighbours(tmp_path)
    (tmp_path / "stat").write_text("cpu  30100 0 0 70900 0 0 0 0 0 0\ncpu0 1 1\n")
    assert watch.share() == pytest.approx(0.3, abs=0.01)
    assert Neighbours(tmp_path / "none").share() is None


def test_a_gpu_at_work_is_not_called_missing() -> None:
    machine = look_around(resolve("reasoning"), CPU, WANDB, gpu_is_busy=True)
    assert machine.device == "cuda"
    assert machine.absent["gpu"] == machine.absent["precision"] == GPU_IS_BUSY
    assert machine.memory_free_bytes is None


# --- the probe --------------------------------------------------------------------------------------------


def test_whole_steps_are_timed_where_they_fit() -> None:
    found = probe(tiny(), make_plan(tiny(), NOWHERE), CPU, 60.0, lambda: False)
    assert (found.whole_steps, found.rows, found.rows_at_once) == (8, 4, 4)
    assert 0 < found.optimizer_s < found.step_s
    assert found.tokens_per_s == pytest.approx(4 * 64 / found.step_s)
    assert 300 < found.metrics_line_bytes < 2000
    assert found.peak_bytes is None or found.peak_bytes > 2**26


def test_without_time_a_step_is_extrapolated_and_says_so() -> None:
    found = probe(tiny(), make_plan(tiny(), NOWHERE), CPU, 0.0, lambda: False)
    assert (found.whole_steps, found.rows) == (0, 1)
    assert "1 of a batch's 4 rows, multiplied up" in found.basis


def test_what_a_pass_takes_is_multiplied_up_to_a_step() -> None:
    training = tiny(training={"batch_size": 16, "gradient_accumulation": 3}).training
    assert multiplied_up(0.5, 2, training) == 0.5 * 8 * 3
    assert multiplied_up(0.5, 16, training) == 0.5 * 3


@pytest.mark.parametrize(
    ("rows", "peak", "before", "expected"),
    [
        (4, 500, (2, 300), 1700),  # 100 a row
        (1, 500, (0, 400), 2000),
        (4, 300, (2, 310), 300),  # it shrank: no larger than seen
        (4, None, (2, 300), None),
        (4, 500, (2, None), None),
    ],
)
def test_memory_goes_on_along_a_line(rows: int, peak: int | None, before: tuple[int, int | None], expected: int | None) -> None:
    assert peak_at(16, rows, peak, before) == expected


def test_accumulated_batches_make_a_longer_step() -> None:
    config = tiny(training={"gradient_accumulation": 3, "micro_batch_size": 2})
    found = probe(config, make_plan(config, NOWHERE), CPU, 60.0, lambda: False)
    assert found.rows_at_once == 2
    assert found.tokens_per_s == pytest.approx(3 * 4 * 64 / found.step_s)


def test_whole_steps_are_those_of_an_epoch_that_are_whole() -> None:
    """The last one has the batches that are left; behind it there are none."""
    config = tiny(data={"synthetic_problems": 100}, training={"batch_size": 16, "gradient_accumulation": 3})
    material = make_plan(config, NOWHERE)
    assert material.batches is not None
    assert 3 < material.batches.steps_in_epoch(1) < 8 * 3
    assert probe(config, material, CPU, 60.0, lambda: False).whole_steps >= 3


def test_the_candidates_of_a_step_are_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr("cognate.report.probe.choose", lambda *arguments: chosen.append(arguments))
    config = tiny(data={"source": "real"}, training={"choice_weight": 0.5, "epochs": 10})
    material = make_plan(config, Places(write_folder(tmp_path, ["gsm8k", "arc_challenge"], n_train=40), None))
    found = probe(config, material, CPU, 60.0, lambda: False)
    assert len(chosen) == found.whole_steps > 0
    assert "candidates" not in found.basis
    stream, position = chosen[0][1], chosen[0][3]
    assert stream.draw(position.epoch, position.step + 1), "an epoch of a stage that has them"
    assert probe(config, material, CPU, 0.0, lambda: False).basis.endswith("without the loss over candidates")


def test_the_probe_begins_with_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    step = MuGrokfast.step
    monkeypatch.setattr(MuGrokfast, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1])
    config = tiny(training={"warmup_steps": 10, "max_steps": 200})
    probe(config, make_plan(config, NOWHERE), CPU, 0.0, lambda: False)
    first = build_optimizer(Cognate(config.model), config).param_groups[0]["lr"] / 10
    assert rates == [pytest.approx(first)] * 2


def test_a_run_that_begins_ends_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that was at work before: the service knows which device it has."""
    attempt = new_run(tmp_path / "one", tiny()).attempt(1)
    attempt.create()
    take_lease(attempt)
    assert report_of(tiny(), tmp_path)["probe"] is not None

    other = new_run(tmp_path / "two", tiny()).attempt(1)
    other.create()
    real = module.probe

    def begins(*arguments: Any) -> Any:
        take_lease(other)
        return real(*arguments)

    monkeypatch.setattr(module, "probe", begins)
    report = report_of(tiny(), tmp_path)
    assert report["probe"] is None
    assert "a run began" in report["absent"]["probe"]
    assert report["is_partial"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (RuntimeError("no kernel image is available\nmore"), "step_failed"),
    ],
)
def test_a_step_that_fails_is_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Cognate, "loss", fails)
    report = report_of(tiny(), tmp_path)
    assert report["verdict"] == "not_ready"
    (finding,) = (finding for finding in report["findings"] if finding["severity"] == "blocker")
    assert finding["code"] == code
    assert str(error).splitlines()[0] in finding["message"]


def test_a_loss_that_is_not_finite_is_found(tmp_path: Path) -> None:
    config = tiny(optimizer={"muon_lr": 1.0, "embedding_lr": 1.0, "adamw_lr": 1.0}, training={"gradient_clip": 1e6, "precision": "fp32"})
    real = Cognate.loss

    def explodes(self: Cognate, *arguments: Any, **options: Any) -> Any:
        loss = real(self, *arguments, **options)
        return loss.__class__(**{**vars(loss), "loss": loss.loss * torch.nan})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cognate, "loss", explodes)
        report = report_of(config, tmp_path)
    assert [finding["code"] for finding in report["findings"]] == ["nonfinite_loss"]


def test_what_cannot_fit_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cognate.report.machine.host_memory", lambda: (2**18, 2**18))
    report = report_of(tiny(), tmp_path)
    assert report["probe"] is None
    assert {"memory", "not_measured"} == {finding["code"] for finding in report["findings"]}
    assert not report["is_partial"], "at another time it would not fit either"


# --- the report -------------------------------------------------------------------------------------------


def test_a_report_is_plain_json_with_everything_in_it(tmp_path: Path) -> None:
    report = report_of(tiny(), tmp_path / "not" / "yet" / "there")
    assert json.loads(json.dumps(report, allow_nan=False)).keys() == report.keys()
    assert report["verdict"] in ("ready", "ready_with_warnings")  # others may be at work on this machine
    assert {finding["code"] for finding in report["findings"]} <= {"busy"}
    assert report["metrics"] == {"total": len(METRICS), "step": 14, "epoch": 18, "final": 5}
    assert report["data"]["total_steps"] == TINY["training"]["max_steps"]
    assert report["projected"]["time"]["total_s"] == pytest.approx(12 * report["probe"]["step_s"])
    assert "Generated problems" in markdown(report)


def test_the_example_of_the_other_tests_has_the_shape_of_a_report(tmp_path: Path) -> None:
    def shape(value: Any) -> Any:
        return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    report = report_of(tiny(), tmp_path)
    for name in ("model", "data", "projected"):
        assert report[name].keys() == EXAMPLE[name].keys()
    assert shape(report).keys() == shape(EXAMPLE).keys()
    assert report["probe"].keys() == EXAMPLE["probe"].keys()


def test_the_job_gives_the_report(tmp_path: Path) -> None:
    said: list[str] = []
    context = JobContext(tmp_path, tmp_path / "runs", NOWHERE, "cpu", lambda sentence, _: said.append(sentence))
    spec = {"config": tiny().model_dump(mode="json"), "not_now": None, "has_gpu": False, "wandb": WANDB, "basis": {}}
    report = perform(spec, context)
    assert report["probe"] is not None
    assert report["machine"]["wandb"] == WANDB
    assert said[-1] == "timing a few steps"
    for busy in ({"not_now": "cpu is at work"}, {"has_gpu": True}):
        report = perform({**spec, **busy}, context)
        assert report["probe"] is None
        assert report["is_partial"]
        assert report["verdict"] == "ready_with_warnings"
