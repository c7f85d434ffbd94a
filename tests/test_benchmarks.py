"""The benchmark measures what it says: FLOPs are all counted, turns are taken, results are complete. No time is asserted."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.autograd import DeviceType

from benchmarks import experiments, gpu, levers, rivals, specialists, tasks, train, trials
from benchmarks.session import Setting
from benchmarks.sidebyside import Batch, Contestant, Lap, Precision, Seat, SeatLost, count_flops, describe_machine, race, random_batch, step
from benchmarks.trials import Book, Outcome, Trial
from cognate.config import ModelConfig
from cognate.data.batches import Batch as TrainingBatch
from cognate.model import NOT_COUNTED, Cognate, sight
from tests.data.data_folders import write_folder

CPU = torch.device("cpu")
TINY = ModelConfig(
    vocab_size=512, d_model=32, n_layers=2, n_heads=2, d_ff=64, trm_d_ff=96, window=16, memory_key_dim=8, memory_value_dim=16
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_flop_counter_sees_every_product_forward_and_backward(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLP, head and attention have backward passes of their own: a counter blind to one would flatter or slander us."""
    monkeypatch.setattr(sight, "multiplies_by_onednn", lambda _: False)  # rows are short: one call for all pairs
    contestant = rivals.ours(rivals.Setting(128, CPU), TINY)
    counted = count_flops(contestant, random_batch(TINY.vocab_size, 2, 128, packed=True, device=CPU), precision)
    assert counted == pytest.approx(analytic_flops(TINY, 2, 128), rel=0.01)


def analytic_flops(config: ModelConfig, batch: int, length: int) -> float:
    """Forward and backward of every matrix product in docs/model.md section 1, two operations for a multiplication and addition."""
    d, heads, tokens, chunk = config.d_model, config.memory_heads, batch * length, config.memory_chunk
    key, value = config.memory_key_dim, config.memory_value_dim
    memory_linear = 2 * d * heads * key + 2 * d * heads * value + 2 * d * heads
    chunks = length // chunk
    # A token's share of one head: q k^T and its product with v within the chunk, k v^T, what chunks hand on, and the read.
    memory_scan = heads * (chunk * (key + value) + key * value + chunks * key * value / chunk + key * value)
    backbone = config.n_layers * (4 * d * d + 2 * d * config.d_ff + memory_linear + memory_scan)
    applications = config.recursions * (config.micro_steps + 1)
    recursion = 2 * d * d + applications * (2 * d * d + 2 * d * config.trm_d_ff)
    scored = tokens + (config.recursions - 1) * math.ceil(config.supervised_fraction * tokens)
    products = tokens * (backbone + recursion) + scored * d * config.vocab_size
    # Two products forward; five backward, the scores being computed again. All keys count: rows are one block of queries long.
    attention = (config.n_layers + applications) * (2 + 5) * tokens * length * d
    return 2 * (3 * products + attention)


def test_models_take_turns() -> None:
    """A B A B, not A A B B: a neighbour's load must fall on all alike."""
    calls: list[str] = []

    def lap_of(name: str) -> Callable[[], Lap]:
        def lap() -> Lap:
            calls.append(name)
            return Lap(len(calls), 0.0, 0.0)

        return lap

    laps = race([lap_of("a"), lap_of("b")], warmups=1, repeats=2, say=lambda _: None)
    assert calls == ["a", "b"] * 3
    assert [[lap.passes_s for lap in kept] for kept in laps] == [[3, 5], [4, 6]]


def counting_contestant(begun: Path) -> Contestant:
    """Its loss counts its steps, downwards from 0; it begins by saying who it is."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.bias)

    def loss(batch: Batch, precision: Precision) -> Tensor:
        return model.bias.sum()

    def begin(precision: Precision) -> None:
        begun.write_text(f"{os.getpid()} {precision}")

    return Contestant("counting", model, torch.optim.SGD([model.bias], lr=1.0), loss, begin)


def small_batch() -> Batch:
    return random_batch(8, 2, 4, packed=False, device=CPU)


def dying_contestant() -> Contestant:
    os._exit(3)


def test_a_contestant_steps_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As its users have it; what is timed is a step right after another one."""
    begun = tmp_path / "begun"
    with Seat("counting", partial(counting_contestant, begun), small_batch, "bf16") as seat:
        laps = [seat.lap(), seat.lap()]
        pid, precision = begun.read_text().split()
        assert (int(pid) != os.getpid(), precision) == (True, "bf16")
        assert [lap.loss for lap in laps] == [-1, -3]
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        assert 0.9 * resident < seat.peak() < 4 * resident  # the kernel counts in steps
    assert not Path(f"/proc/{pid}").exists()


def test_a_contestant_that_dies_is_named() -> None:
    with (
        Seat("dying", dying_contestant, small_batch, "fp32") as seat,
        pytest.raises(SeatLost, match="the process of dying ended with exit code 3"),
    ):
        seat.lap()


def test_a_step_in_parts_has_the_loss_and_gradient_of_the_whole() -> None:
    """Ours takes a large batch in parts, as the worker does."""
    batch = random_batch(8, 5, 4, packed=True, device=CPU)
    gradients, seen = [], []
    for rows in (None, 2):
        model = nn.Linear(1, 1)
        nn.init.ones_(model.weight), nn.init.zeros_(model.bias)

        def loss(batch: Batch, _: Precision, model: nn.Linear = model) -> Tensor:
            seen.append(len(batch.tokens))
            return model(batch.tokens[:, :1].float()).square().mean()

        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        lap = step(Contestant("a", model, optimizer, loss, rows_at_once=rows), batch, "fp32")
        gradients.append((lap.loss, 1 - model.weight.item()))
    assert seen == [5, 2, 2, 1]
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-5)


def test_packed_rows_hold_several_documents_and_the_same_tokens() -> None:
    """Rivals and ours must be given the same work; only the layout differs."""
    packed, plain = (random_batch(512, 4, 520, packed=packed, device=CPU) for packed in (True, False))
    assert packed.documents is not None
    assert plain.documents is None
    assert [len(row.unique()) for row in packed.documents] == [4, 4, 4, 4]
    assert torch.equal(packed.tokens, plain.tokens)
    assert torch.equal(packed.targets, plain.targets)
    assert torch.equal(packed.tokens[:, 1:], packed.targets[:, :-1])


@pytest.fixture(scope="module")
def options() -> train.Options:
    return train.Options(batch=2, length=64, repeats=2, only=("ours", rivals.BASELINE))


@pytest.fixture(scope="module")
def figures(options: train.Options) -> list[train.Figures]:
    small = TINY.model_copy(update={"trm": False, "act": False})
    builders = {"ours": partial(rivals.ours, config=TINY), rivals.BASELINE: partial(rivals.ours, config=small)}
    return train.measure(options, builders, TINY.vocab_size)


def test_every_model_has_figures_at_every_precision(figures: list[train.Figures]) -> None:
    """Each figure is there, and the parts of a step belong to it."""
    assert [(each.model, each.precision) for each in figures] == [
        (name, precision) for precision in ("fp32", "bf16") for name in ("ours", rivals.BASELINE)
    ]
    for each in figures:
        assert each.losses_are_finite
        assert 0 < each.step_ms_min <= each.step_ms
        assert each.tokens_per_s == pytest.approx(2 * 64 / (each.step_ms / 1e3))
        assert each.flops_per_s == pytest.approx(each.flops_per_token * 2 * 64 / (each.passes_ms / 1e3))


def test_ratios_are_to_the_baseline_at_the_same_precision(figures: list[train.Figures]) -> None:
    """bf16 against fp32 would compare two machines' worth of difference."""
    for ours, base in zip(figures[::2], figures[1::2], strict=True):
        assert ours.tokens_per_s_ratio == ours.tokens_per_s / base.tokens_per_s
        assert ours.fastest_ratio == base.step_ms_min / ours.step_ms_min
        assert ours.flops_per_s_ratio == ours.flops_per_s / base.flops_per_s
        assert base.tokens_per_s_ratio == 1


def test_without_the_baseline_there_are_no_ratios(figures: list[train.Figures]) -> None:
    """--only ours is a measurement too."""
    alone = [each for each in figures if each.model != rivals.BASELINE]
    cleared = [replace(each, tokens_per_s_ratio=None, fastest_ratio=None, flops_per_s_ratio=None) for each in alone]
    assert train.compare(cleared) == cleared


def test_a_json_line_is_complete_in_itself(figures: list[train.Figures], options: train.Options) -> None:
    """A line is read months later, without the others: it must say when, on what, with what."""
    lines = train.json_lines(figures, options, describe_machine(CPU), "abc123-dirty", datetime(2026, 1, 2, tzinfo=UTC))
    assert len(lines) == 4
    line = json.loads(lines[0])
    assert line["date"] == "2026-01-02T00:00:00+00:00"
    assert line["code"] == "abc123-dirty"
    assert {"cpu", "threads", "torch", "packages"} <= line["machine"].keys()
    assert (line["options"]["batch"], line["options"]["length"], line["precision"]) == (2, 64, "fp32")
    assert line["parameters"] == figures[0].parameters


def test_a_loss_that_is_not_finite_is_said(figures: list[train.Figures], options: train.Options) -> None:
    """Fast and broken must not look like fast; and NaN is not JSON."""
    broken = [replace(figures[0], loss_last=None, losses_are_finite=False)]
    assert "not finite" in rendered(train.table(broken, options))
    (line,) = train.json_lines(broken, options, {}, None, datetime(2026, 1, 2, tzinfo=UTC))
    assert json.loads(line)["loss_last"] is None


def test_the_table_names_what_was_measured(figures: list[train.Figures], options: train.Options) -> None:
    """Size and layout change every number, so they stand above them."""
    shown = rendered(train.table(figures, options))
    assert "2 x 64 tokens, ours packed with documents, eager, median of 2" in shown
    for each in figures:
        assert f"{each.parameters:,}" in shown


def test_a_missing_package_is_a_sentence_with_the_way_out() -> None:
    """The extra is optional; who lacks it is told how to get it."""
    with pytest.raises(rivals.RivalMissing, match=r"no-such-rival is not installed.*make bench-train"):
        rivals._import("no_such_rival", "no-such-rival")


def rendered(table: object) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("name", levers.LEVERS)
def test_a_lever_is_all_that_its_trials_differ_in(name: str) -> None:
    """Else the benchmark would measure something else beside it."""
    lever = levers.LEVERS[name]
    trials = [levers.Trial(lever.datasets, json.dumps(settings), 10, 1) for settings in ({}, lever.settings)]
    without, with_it = (levers.config_of(trial).model_dump(mode="json") for trial in trials)
    for section, settings in lever.settings.items():
        for key in settings:
            assert without[section].pop(key) != with_it[section].pop(key)
    assert without == with_it


# --- on a GPU -------------------------------------------------------------------------------------------------

REHEARSAL = Setting(CPU, None, is_small=True)


@pytest.mark.parametrize("lines", ['{"a": [1]}\n{"b": 2}\n', json.dumps({"a": [1]}, indent=2) + "\n" + json.dumps({"b": 2}, indent=2), ""])
def test_figures_of_another_benchmark_are_read_however_they_are_laid_out(lines: str) -> None:
    """The optimizer's stand on many lines, the rivals' on one each."""
    assert gpu.values_in(lines) == ([{"a": [1]}, {"b": 2}] if lines else [])


def test_a_kernel_counts_once() -> None:
    """The host's rows carry the time of the kernels they launched, and an annotation that of all within it."""

    def row(key: str, device: DeviceType, micros: float, *, is_user_annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=device,
            self_device_time_total=micros,
            self_cpu_time_total=1.0,
            count=3,
            is_user_annotation=is_user_annotation,
        )

    rows = [
        row("aten::mm", DeviceType.CPU, 70.0),
        row("gemm", DeviceType.CUDA, 70.0),
        row("add", DeviceType.CUDA, 90.0),
        row("step", DeviceType.CUDA, 160.0, is_user_annotation=True),
    ]
    assert gpu.busiest(rows, torch.device("cuda")) == [("add", 90.0, 3), ("gemm", 70.0, 3)]  # type: ignore[arg-type]
    assert len(gpu.busiest(rows, CPU)) == 4  # type: ignore[arg-type]


def test_a_part_is_a_process_with_a_limit_of_time() -> None:
    """A card is lent for minutes: a compiler that takes too long must not cost the figures of the other parts."""
    assert gpu.find_apart("ceiling", REHEARSAL, 100).keys() == {"bf16_matmul_tflops"}
    assert gpu.find_apart("ceiling", REHEARSAL, 0.01) == {"error": "ended after 0 s"}
    assert gpu.find_apart("ceiling", REHEARSAL, -1) == {"error": "no time was left"}


def test_a_part_that_fails_says_so_beside_what_it_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def breaks(_: Setting) -> gpu.Found:
        yield "16", 1.0
        raise RuntimeError("no kernel")

    monkeypatch.setitem(gpu.PARTS, "steady", gpu.Part(breaks, 1))
    gpu.find_here("steady", REHEARSAL, tmp_path / "found")
    assert gpu.values_in((tmp_path / "found").read_text()) == [{"16": 1.0}, {"error": "RuntimeError: no kernel"}]


def test_a_cut_folder_has_the_first_training_rows_and_all_that_is_evaluated_on(tmp_path: Path) -> None:
    whole = write_folder(tmp_path / "whole", ("gsm8k", "codexglue"), n_train=30, n_other=4)
    found = specialists.cut(whole, tmp_path / "cut", 10)
    rows = {file.relative_to(found): pq.read_table(file).to_pylist() for file in found.glob("*/*.parquet")}
    expected = {file.relative_to(whole): pq.read_table(file).to_pylist() for file in whole.glob("*/*.parquet")}
    expected[Path("gsm8k/train.parquet")] = expected[Path("gsm8k/train.parquet")][:10]
    assert rows == expected  # CodeXGLUE's one file is trained and evaluated on


# --- experiments ----------------------------------------------------------------------------------------------


@pytest.fixture(name="done")
def fake_trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """The trials that were run; a loss is least at a matrix rate of 4e-3 and an embedding rate of 1e-2, AdamW takes half the time."""
    done: list[Trial] = []

    def run(trial: Trial) -> Outcome:
        done.append(trial)
        loss = 4 + math.log2(trial.matrix_lr / 4e-3) ** 2 + math.log2(trial.embedding_lr / 1e-2) ** 2 + 0.01 * trial.seed
        return Outcome(loss, loss, loss, 50.0 if trial.optimizer == "adamw" else 100.0, trial.steps or 0, 1)

    monkeypatch.setattr(trials, "run", run)
    return done


def test_rates_are_tuned_until_no_neighbour_is_better_and_no_trial_is_run_twice(done: list[Trial], tmp_path: Path) -> None:
    start = Trial("adamw", 1e-3, 2e-2)
    best = experiments.tune(Book(tmp_path / "results"), start)
    assert (best.matrix_lr, best.embedding_lr) == (4e-3, 1e-2)
    around = {(matrix, embedding) for matrix, embedding in ((8e-3, 1e-2), (2e-3, 1e-2), (4e-3, 2e-2), (4e-3, 5e-3))}
    assert around <= {(trial.matrix_lr, trial.embedding_lr) for trial in done}
    assert len(done) == len(set(done))
    before = len(done)
    assert experiments.tune(Book(tmp_path / "results"), start) == best  # from the file alone
    assert len(done) == before


def test_at_equal_time_the_faster_takes_more_steps(done: list[Trial], tmp_path: Path) -> None:
    two = {name: Trial(name, 4e-3, 1e-2, steps=80) for name in ("adamw", "muon")}
    experiments.equal_time(Book(tmp_path / "results"), "study", two)
    longest = {name: max(trial.steps or 0 for trial in done if trial.optimizer == name) for name in two}
    assert longest == {"adamw": 160, "muon": 80}
    assert {trial.seed for trial in done if trial.steps == 160} == set(trials.SEEDS)


def test_halting_is_judged_by_what_reading_with_it_says() -> None:
    torch.manual_seed(1)
    model = Cognate(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert model.halting is not None
    torch.nn.init.constant_(model.halting.linear.bias, 0.0)
    tokens = torch.randint(512, (3, 20))
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = NOT_COUNTED
    one = torch.zeros_like(tokens)  # each row is one document, as a state is of one
    told = trials.halted(model, [TrainingBatch(tokens[:2], targets[:2], one[:2]), TrainingBatch(tokens[2:], targets[2:], one[2:])])
    for threshold in trials.THRESHOLDS:
        model.config = model.config.model_copy(update={"act_threshold": threshold})
        read = model.extend(tokens)
        loss = nn.functional.cross_entropy(model.logits(read.answers).flatten(0, 1), targets.flatten())
        assert told[str(threshold)] == pytest.approx((loss.item(), read.depths[:, :-1].float().mean().item()), rel=1e-4)
    assert len({depth for _, depth in told.values()}) > 1


# --- tasks ----------------------------------------------------------------------------------------------------


def test_a_question_of_recall_is_answered_by_a_pair_that_attention_does_not_reach() -> None:
    task = tasks.STUDIES["recall"][0]
    assert isinstance(task, tasks.Recall)
    options = tasks.STUDIES["recall"][1]["plain"].options
    assert options["n_layers"] * (options["window"] - 1) < task.filler
    rows = task.draw(20, 1, torch.Generator().manual_seed(1))
    first_key, first_answer = task.keys * task.values, task.vocabulary - task.values
    assert int(rows.tokens.max()) < first_answer
    for tokens, targets in zip(rows.tokens.tolist(), rows.targets.tolist(), strict=True):
        told = dict(divmod(pair, task.values) for pair in tokens[: task.pairs])
        assert len(told) == task.pairs
        assert [target - first_answer for target in targets[-task.pairs :]] == [told[key - first_key] for key in tokens[-task.pairs :]]
        assert set(targets[: -task.pairs]) == {NOT_COUNTED}


def test_a_question_of_hops_is_answered_by_going_round() -> None:
    task = tasks.Hops()
    rows = task.draw(20, 4, torch.Generator().manual_seed(1))
    assert set(rows.level.flatten().tolist()) == {1, 2, 3, 4}
    for tokens, targets, levels in zip(rows.tokens.tolist(), rows.targets.tolist(), rows.level.tolist(), strict=True):
        after = dict(divmod(step, task.symbols) for step in tokens[: task.symbols])
        for token, target, level in zip(tokens[task.symbols :], targets[task.symbols :], levels, strict=True):
            asked, symbol = divmod(token - task.symbols**2, task.symbols)
            assert asked == level - 1
            for _ in range(level):
                symbol = after[symbol]
            assert target - (task.symbols + task.levels) * task.symbols == symbol
        assert set(targets[: task.symbols]) == {NOT_COUNTED}


def test_a_task_is_learned_and_its_outcome_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of a cycle is learned in seconds; what was measured is not measured again."""
    task, trial = tasks.Hops(symbols=3, levels=2, rows=16), tasks.Trial({"n_layers": 1, "ltm": False}, 40)
    monkeypatch.setitem(tasks.STUDIES, "hops", (task, {"recursion": trial}))
    monkeypatch.setattr(tasks, "SEEDS", (1,))
    monkeypatch.setattr(tasks, "LOOK_EVERY", 20)
    tasks.study(Book(tmp_path / "results"), "hops")
    (entry,) = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    outcome = entry["value"]
    assert outcome["right"][0] > 0.9
    assert list(outcome["reached"].values())[:2] == [1, 2]
    assert all(1 <= depth <= 3 for depth in outcome["recursions_with_halting"])
    monkeypatch.setattr(tasks, "run", lambda *_: pytest.fail("measured again"))
    tasks.study(Book(tmp_path / "results"), "hops")
