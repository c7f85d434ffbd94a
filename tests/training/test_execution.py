"""Parts of a batch add up to the batch; compiled steps are the same steps; and what cannot be had is done without, and said."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._inductor.utils import fresh_cache

from cognate import precision
from cognate.config import TrainingConfig, resolve
from cognate.data.batches import IGNORED, Batch
from cognate.events import Kind
from cognate.model import Cognate, Loss, layers
from cognate.model.sight import has_flex
from cognate.optimizer import MuGrokfast
from cognate.training import execution
from cognate.training.execution import FiniteLosses, parts, prepare, rows_at_once
from cognate.training.measure import validate
from cognate.worker import make_deterministic
from tests.training.runs import CommandAt, attempt_at, digests, events, new_run, rows, tiny

TRACES = pytest.mark.filterwarnings("ignore")  # what torch has to say of itself while it traces
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def a_model(**options: Any) -> Cognate:
    torch.manual_seed(0)
    model = Cognate(tiny(model={"supervised_fraction": 1.0, **options}).model)
    for parameter in model.parameters():  # a new model is the identity in most places
        torch.nn.init.normal_(parameter, std=0.1) if parameter.dim() > 1 else None
    return model


def a_batch(n_rows: int = 4, time: int = 24) -> Batch:
    """Rows with 24, 17, 10 and 3 counted targets: their parts weigh differently."""
    torch.manual_seed(1)
    tokens = torch.randint(400, (n_rows, time))
    targets = tokens.roll(-1, 1)
    for row in range(n_rows):
        targets[row, max(1, time - 7 * row) :] = IGNORED
    return Batch(tokens, targets, (torch.arange(time) > 8).long().expand(n_rows, -1).contiguous())


@pytest.mark.parametrize("n_rows", [1, 2])
def test_parts_of_a_batch_make_its_loss_gradient_and_calibration(n_rows: int) -> None:
    batch = a_batch()

    def step(rows: int) -> tuple[Loss, dict[str, Any], dict[str, Any]]:
        model = a_model()
        pieces = []
        for part, share in parts(batch, rows, CPU):
            assert len(part.tokens) == rows
            loss = model.loss(part.tokens, part.targets, part.documents, measure=True, share=share)
            (loss.loss * share).backward()
            pieces.append((loss, share))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return Loss.mean(pieces), gradients, dict(model.named_buffers())

    (whole, expected, moved), (summed, gradients, buffers) = step(4), step(n_rows)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    assert (moved["halting.predicted"] - 0.5).abs().min() > 2e-3
    torch.testing.assert_close(buffers, moved, rtol=0, atol=5e-5)
    for name in ("loss", "loss_ce", "loss_act", "loss_gate", "ce_last"):
        torch.testing.assert_close(getattr(summed, name), getattr(whole, name))
    assert not summed.loss.requires_grad
    torch.testing.assert_close(summed.measurements.ltm_surprise_rate, whole.measurements.ltm_surprise_rate)
    torch.testing.assert_close(summed.measurements.act_avg_halting_steps, whole.measurements.act_avg_halting_steps)


def test_accumulated_batches_calibrate_as_one_step(cache: Path, tmp_path: Path) -> None:
    """Two batches of two rows, or one of four in two parts: a step each, of the same rows."""
    calibrations = []
    for training in ({"gradient_accumulation": 2, "batch_size": 2}, {"micro_batch_size": 2}, {}):
        run = new_run(tmp_path / str(len(calibrations)), tiny(model={"supervised_fraction": 1.0}, training={**training, "max_steps": 1}))
        assert attempt_at(run, cache=cache) is Kind.FINISHED
        weights = load_file(run.checkpoint(1) / "model.safetensors")
        calibrations.append({name: weights[name] for name in ("halting.predicted", "halting.observed")})
    torch.testing.assert_close(calibrations[1], calibrations[2], rtol=0, atol=5e-5)
    torch.testing.assert_close(calibrations[0], calibrations[2], rtol=0, atol=2e-4)  # its batches count alike, whatever they hold


def test_held_out_rows_go_through_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, widest, whole = a_model(), [], Cognate.validation_loss
    expected = validate(model, [a_batch()], CPU)
    monkeypatch.setattr(Cognate, "validation_loss", lambda self, *parts: (widest.append(len(parts[0])), whole(self, *parts))[1])
    assert validate(model, [a_batch()], CPU, 2) == pytest.approx(expected, rel=1e-5)
    assert widest == [2, 2]


def test_a_run_in_parts_says_so_and_ends_where_the_whole_one_does(cache: Path, tmp_path: Path) -> None:
    """All tokens supervised, so that nothing random depends on the parts; equal but for rounding."""
    last = {}
    for name, n_rows in (("whole", None), ("parts", 3)):
        run = new_run(tmp_path / name, tiny(model={"supervised_fraction": 1.0}, training={"micro_batch_size": n_rows, "max_steps": 4}))
        assert attempt_at(run, cache=cache) is Kind.FINISHED
        last[name] = rows(run)[-1].data["values"]
        plan = next(event.data for event in events(run) if event.kind is Kind.PLAN)
        assert (plan["rows_at_once"], plan["compiled"]) == (2 if n_rows else 4, "nothing")  # of 4 rows, 3 at once is 2 at once
        warnings = [event.data["message"] for event in events(run) if event.kind is Kind.WARNING]
        assert any("2 parts of 2 rows" in warning for warning in warnings) == (n_rows is not None)
    assert last["parts"]["loss"] == pytest.approx(last["whole"]["loss"], abs=2e-3)
    assert last["parts"]["val_loss"] == pytest.approx(last["whole"]["val_loss"], abs=2e-3)


@pytest.mark.parametrize(
    ("free", "before", "expected"),
    [
        (10**9, None, 16),  # plenty
        (1_000 + 16 * 100, None, 8),  # just too little for all: a reserve is kept, and rows divide the batch
        (1_000 + 10 * 100, 2, 2),  # as it began, since that fits
        (1_000 + 3 * 100, 8, 2),  # as it began does not fit any more
        (0, None, 1),  # not even one: tried all the same, for the reason it then fails with
    ],
)
def test_as_many_rows_as_fit(free: int, before: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters and other fixed costs take 1,000 bytes, a row 100: found by measuring 2 and 4 rows."""
    model = torch.nn.Linear(1, 1, bias=False)  # 4 bytes: 16 for the optimizer
    measured = []

    def peak(_: object, part: Batch, __: object, **___: object) -> int:
        measured.append(len(part.tokens))
        return 984 + 100 * len(part.tokens)

    monkeypatch.setattr(execution, "_peak", peak)
    monkeypatch.setattr(execution, "available", lambda *_: free)
    monkeypatch.setattr(execution, "_passes", lambda _, part, __, reserve, **___: 984 + 100 * len(part.tokens) + reserve <= free)
    training = TrainingConfig(batch_size=16)
    assert rows_at_once(model, lambda: a_batch(16), training, CUDA, before) == expected  # type: ignore[arg-type]
    assert measured == [2, 4]
    assert rows_at_once(model, lambda: a_batch(16), TrainingConfig(batch_size=16, micro_batch_size=5), CUDA, before) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(("takes", "expected"), [(50, 16), (120, 8)])
def test_more_rows_than_the_few_promise_are_tried(takes: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is thrown away at once, as chunks of logits, makes the first rows dearer: all 16 may fit where 8 seem to. Else a run that
    had all at once would be resumed in parts, to other last bits."""
    tried: list[tuple[int, int]] = []

    def passes(_: object, part: Batch, __: object, reserve: int, **___: object) -> bool:
        tried.append((len(part.tokens), reserve))
        return takes * len(part.tokens) + reserve <= 1_800

    monkeypatch.setattr(execution, "_peak", lambda _, part, *__, **___: 150 * len(part.tokens))
    monkeypatch.setattr(execution, "available", lambda *_: 1_800)
    monkeypatch.setattr(execution, "_passes", passes)
    for before in (None, 16):
        tried.clear()
        model = torch.nn.Linear(1, 1, bias=False)  # 4 bytes: 16 for the optimizer
        assert rows_at_once(model, lambda: a_batch(16), TrainingConfig(batch_size=16), CUDA, before) == expected  # type: ignore[arg-type]
        assert tried == [(16, 16 + 180)]  # what seems to fit is not tried


def test_a_trial_of_rows_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = a_model(), a_batch()
    assert execution._passes(model, batch, CPU, 100, has_dropout=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    tried = execution._try

    def too_much(*given: Any, **options: Any) -> None:
        tried(*given, **options)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execution, "_try", too_much)
    assert not execution._passes(model, batch, CPU, 100, has_dropout=False)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("measures", [True, False])
def test_a_graph_that_nobody_will_use_is_not_made(measures: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(execution, "_try", lambda *_, measure=False, **__: tried.append(measure))
    monkeypatch.setattr(execution, "compile_as", lambda *_: None)
    prepare(a_model(), a_batch, TrainingConfig(batch_size=4, compile="on"), CPU, 100, {}, lambda _: None, measures=measures)
    assert tried
    assert any(tried) is measures


def test_attention_never_goes_to_the_kernel_that_plans_anew_for_each_shape() -> None:
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        make_deterministic(CPU)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("rows_at_most", "tried", "expected"), [(8, [1, 2], 8), (4, [], 4), (1, [], 1)])
def test_what_was_too_much_is_not_tried_again_to_find_out(
    rows_at_most: int, tried: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a GPU on which the four rows that are measured do not fit would never come to try one."""
    measured: list[int] = []

    def peak(_: object, part: Batch, __: object, **___: object) -> int:
        measured.append(len(part.tokens))
        return 100 * len(part.tokens)

    monkeypatch.setattr(execution, "_peak", peak)
    monkeypatch.setattr(execution, "available", lambda *_: 10**9)
    model = torch.nn.Linear(1, 1)
    assert rows_at_once(model, lambda: a_batch(16), TrainingConfig(batch_size=16), CUDA, None, rows_at_most) == expected  # type: ignore[arg-type]
    assert measured == tried


@pytest.mark.parametrize(("batch_size", "before", "expected"), [(16, 4, 4), (16, None, 8), (16, 16, 16), (6, 4, 3), (4, 16, 4)])
def test_a_fork_with_another_batch_has_parts_that_divide_it(batch_size: int, before: int | None, expected: int) -> None:
    training = TrainingConfig(batch_size=batch_size)
    assert rows_at_once(torch.nn.Linear(1, 1), a_batch, training, CPU, before) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch_size", "length", "micro", "at_most", "expected"),
    [(16, 512, None, None, 8), (12, 512, None, None, 6), (16, 128, None, None, 16), (2, 16384, None, None, 1), (16, 512, 16, None, 16),
     (16, 512, None, 4, 4)],
)  # fmt: skip
def test_a_cpu_takes_4096_tokens_at_once(batch_size: int, length: int, micro: int | None, at_most: int | None, expected: int) -> None:
    """More are no faster there, and take more memory; whoever says how many gets as many."""
    training = TrainingConfig(batch_size=batch_size, sequence_length=length, micro_batch_size=micro)
    assert rows_at_once(torch.nn.Linear(1, 1), a_batch, training, CPU, None, at_most) == expected  # type: ignore[arg-type]


def test_parts_that_are_no_want_of_memory_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "CPU_TOKENS", 2 * 512)
    said: list[str] = []
    assert prepare(a_model(), a_batch, TrainingConfig(batch_size=4), CPU, 10, {}, said.append).rows_at_once == 2
    assert said == []


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    layers.compiled.cache_clear()


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """What torch.compile is asked for, made by another compiler; nothing it made before is kept."""
    compile_it = torch.compile
    layers.compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda method, **options: compile_it(method, backend=backend, **options))


@TRACES
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_kept_graph_is_known_by_what_its_autograd_functions_do() -> None:
    """Of a new version of the model that differs in a gradient alone, nothing old may be taken up; of the same one, all."""
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = False  # monkeypatch would hide it from torch 2.11

    def gradient(factor: float) -> float:
        class Scaled(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            def backward(ctx: Any, given: Tensor) -> Tensor:
                (x,) = ctx.saved_tensors
                return given * x.cos() * factor

        torch._dynamo.reset()
        x = torch.zeros(8, requires_grad=True)
        torch.compile(lambda x: Scaled.apply(x).sum(), fullgraph=True)(x).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return float(x.grad[0])

    kept = torch._dynamo.utils.counters["aot_autograd"]
    kept.clear()
    with fresh_cache():
        execution.compile_as(a_model(), "regions")
        assert [gradient(1), gradient(1), gradient(3)] == [1, 1, 3]
    assert (kept["autograd_cache_miss"], kept["autograd_cache_hit"], kept["autograd_cache_bypass"]) == (2, 1, 0)


@TRACES
@pytest.mark.parametrize(
    ("parts_on", "dtype"),
    [({}, torch.float32), ({}, torch.bfloat16), ({"ltm": False}, torch.float32), ({"trm": False, "act": False}, torch.float32)],
    ids=["all", "bf16 multiplied in fp32", "no memory", "no recursion"],
)
def test_compiled_regions_make_the_same_step(parts_on: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as for the compiler, without its code generation, and once for all blocks."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    with_backend(monkeypatch, count)
    monkeypatch.setattr(precision, "native_dtype", lambda device: torch.float32)
    batch, results = a_batch(), []
    for is_compiled in (False, True):
        model = a_model(**parts_on)
        model.compute_dtype = dtype
        if is_compiled:
            model.compile_regions()
        for measure in (False, True):
            model.zero_grad()
            loss = model.loss(batch.tokens, batch.targets, batch.documents, measure=measure)
            loss.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((loss.loss.detach(), vars(loss.measurements), gradients))
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-2, 3e-3)
    torch.testing.assert_close(results[1], results[0], rtol=rtol, atol=atol)
    expected = 4 if model.config.trm else 2
    assert len(graphs) == expected
    model.validation_loss(batch.tokens[:2], batch.targets[:2], batch.documents[:2])
    assert len(graphs) == expected  # without a gradient nothing is compiled


@TRACES
def test_a_compiler_that_fails_is_done_without(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> Any:
        raise OSError("no such compiler")

    with_backend(monkeypatch, broken)
    plain = new_run(tmp_path / "plain", tiny(training={"max_steps": 4}))
    attempt_at(plain, cache=cache)
    run = new_run(tmp_path / "run", tiny(training={"compile": "on", "max_steps": 4}))
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    warnings = [event.data["message"] for event in events(run) if event.kind is Kind.WARNING]
    assert any("goes on without torch.compile" in warning and "no such compiler" in warning for warning in warnings)
    assert next(event.data for event in events(run) if event.kind is Kind.PLAN)["compiled"] == "nothing"
    assert digests(run, 4)["model.safetensors"] == digests(plain, 4)["model.safetensors"]  # the attempt left no trace


@TRACES
@pytest.mark.skipif(not execution.has_compiler(CPU), reason="no C++ compiler")
def test_a_compiled_run_is_resumed_compiled_to_the_same_bits(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real compiler; `auto` takes it for a run that is long enough."""
    layers.compiled.cache_clear()
    monkeypatch.setattr(execution, "WORTH_COMPILING", 6)
    config = tiny(model={"n_layers": 1, "recursions": 1, "micro_steps": 1}, training={"max_steps": 6, "checkpoint_every_steps": 100})
    whole, run = new_run(tmp_path / "whole", config), new_run(tmp_path / "run", config)
    assert attempt_at(whole, cache=cache) is Kind.FINISHED
    assert attempt_at(run, CommandAt(run, "pause", 3), cache) is Kind.PAUSED
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    assert [event.data["compiled"] for event in events(run) if event.kind is Kind.PLAN] == ["regions", "regions"]
    assert digests(run, 6) == digests(whole, 6)


@pytest.mark.parametrize(
    ("source", "fork", "compiled"),
    [
        ({"compile": "off"}, {"compile": "on"}, ("nothing", "regions")),
        ({"compile": "on"}, {"compile": "off"}, ("regions", "nothing")),
        ({"compile": "auto"}, {"max_steps": 3}, ("nothing", "regions")),  # long enough only now
    ],
    ids=str,
)
def test_a_fork_is_compiled_as_it_asks_and_says_so(
    source: dict[str, Any], fork: dict[str, Any], compiled: tuple[str, str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its source was compiled as binds a resume, for its bits; a fork has other settings and other bits."""
    monkeypatch.setattr(execution, "compile_as", lambda *_: None)
    monkeypatch.setattr(execution, "has_compiler", lambda _: True)
    monkeypatch.setattr(execution, "WORTH_COMPILING", 3)
    first = new_run(tmp_path / "source", tiny(training={"max_steps": 1, **source}))
    second = new_run(tmp_path / "fork", tiny(training={"max_steps": 2, **source, **fork}))
    assert attempt_at(first, cache=cache) is Kind.FINISHED
    shutil.copytree(first.checkpoint(1), second.checkpoint(1))
    assert attempt_at(second, cache=cache) is Kind.FINISHED
    plans = [event.data["compiled"] for run in (first, second) for event in events(run) if event.kind is Kind.PLAN]
    assert plans == list(compiled)
    warnings = [event.data["message"] for event in events(second) if event.kind is Kind.WARNING]
    assert any(f"compiled {compiled[0]} -> {compiled[1]}" in warning for warning in warnings)


@pytest.fixture(name="_warns_only")
def warns_only() -> Iterator[None]:
    """torch as a worker on a GPU has it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_warns_only")
def test_passes_are_strict_where_every_operation_has_a_deterministic_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trial as in the step, since what is compiled for the one must serve the other; and nowhere else."""
    tried, how = execution._try, []
    monkeypatch.setattr(execution, "_try", lambda *given, **options: (how.append(execution.warns_only()), tried(*given, **options)))
    prepared = prepare(a_model(), a_batch, TrainingConfig(batch_size=4), CPU, 100, {}, lambda _: None)
    assert prepared.is_strict
    assert how == [False, False]
    assert execution.warns_only()


@pytest.mark.usefixtures("_warns_only")
def test_an_operation_without_a_deterministic_form_is_named_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("kthvalue CUDA does not have a deterministic implementation, but you set 'torch.use_deterministic_...'")

    monkeypatch.setattr(execution, "_try", refused)
    prepared = prepare(a_model(), a_batch, TrainingConfig(batch_size=4), CPU, 100, {}, said.append)
    assert not prepared.is_strict
    assert said == ["a resumed run may differ in its last bits: kthvalue CUDA does not have a deterministic implementation"]
    assert execution.warns_only()


@TRACES
@pytest.mark.gpu
@pytest.mark.timeout(600)  # compilers
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_gpu_run_is_resumed_to_the_same_bits(compile: str, cache: Path, tmp_path: Path) -> None:
    config = tiny(training={"max_steps": 6, "checkpoint_every_steps": 100, "compile": compile})
    whole, run = new_run(tmp_path / "whole", config), new_run(tmp_path / "run", config)
    assert attempt_at(whole, cache=cache, device=CUDA) is Kind.FINISHED
    assert attempt_at(run, CommandAt(run, "pause", 3), cache, device=CUDA) is Kind.PAUSED
    assert attempt_at(run, cache=cache, device=CUDA) is Kind.FINISHED
    assert [event.data["message"] for event in events(run) if event.kind is Kind.WARNING] == []
    assert digests(run, 6) == digests(whole, 6)


@TRACES
def test_without_flex_attention_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is a device on which it really fails: it has no gradient there."""
    with_backend(monkeypatch, "aot_eager")
    monkeypatch.setattr(execution, "ways_to_compile", lambda *_: ("flex", "whole"))
    said: list[str] = []
    model = a_model(n_layers=1, recursions=1, micro_steps=1, ltm=False)
    found = prepare(model, a_batch, TrainingConfig(batch_size=4, compile="on"), CPU, 100, {}, said.append)
    assert found.compiled == "whole"
    assert [sentence.split(":")[0] for sentence in said] == ["goes on without FlexAttention, which failed"]


@TRACES
def test_what_is_tried_is_the_graph_of_the_real_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else dropout's graph would be compiled in the first step, where nobody answers for a compiler that fails."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    with_backend(monkeypatch, count)
    monkeypatch.setattr(execution, "ways_to_compile", lambda *_: ("whole",))
    model, batch = a_model(n_layers=1, recursions=1, micro_steps=1, ltm=False), a_batch()
    training = TrainingConfig(batch_size=4, compile="on", dropout=0.1)
    assert prepare(model, a_batch, training, CPU, 100, {}, lambda _: None).compiled == "whole"
    tried = len(graphs)
    for measure in (False, True):
        model.loss(batch.tokens, batch.targets, batch.documents, measure=measure, dropout=torch.full((4, 24), 0.1)).loss.backward()
    assert len(graphs) == tried > 0


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "before", "expected"),
    [
        (CPU, None, torch.bfloat16, None, ("regions",)),
        (CUDA, (7, 5), torch.float32, None, ("whole", "regions")),
        (CUDA, (9, 0), torch.float32, None, ("whole", "regions")),
        (CUDA, (9, 0), torch.bfloat16, None, ("flex", "whole", "regions")),
        (CUDA, (9, 0), torch.bfloat16, "whole", ("whole", "regions")),  # as it began, also where more could be had
        (CUDA, (9, 0), torch.bfloat16, "nothing", ()),
        (CUDA, (9, 0), torch.bfloat16, "regions", ("regions",)),
        (CPU, None, torch.float32, "flex", ("regions",)),
    ],
)
def test_what_is_compiled_follows_from_the_device_and_the_run(
    device: torch.device, capability: object, dtype: torch.dtype, before: Any, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert tuple(execution.ways_to_compile(device, dtype, before)) == expected


def test_a_step_that_takes_more_memory_compiled_goes_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits was measured uncompiled; want of memory is no fault of the compiler's."""
    tried, plain = [], execution._try

    def hungry(model: Cognate, part: Batch, *others: Any, **options: Any) -> None:
        tried.append(len(part.tokens))
        if len(part.tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        plain(model, part, *others, **options)

    monkeypatch.setattr(execution, "_try", hungry)
    monkeypatch.setattr(execution, "ways_to_compile", lambda *_: ("regions",))
    monkeypatch.setattr(execution, "compile_as", lambda *_: None)
    said: list[str] = []
    found = prepare(a_model(), a_batch, TrainingConfig(batch_size=4, compile="on"), CPU, 100, {}, said.append)
    assert (found.rows_at_once, found.compiled, tried) == (1, "regions", [4, 2, 1, 1])
    assert said == ["a batch goes through the model in 4 parts of 1 rows, for want of memory for all at once"]


@pytest.mark.parametrize(("device", "passed_on"), [(CUDA, None), (torch.device("cuda:1"), torch.device("cuda:1"))])
def test_a_budget_is_a_share_of_the_card(device: torch.device, passed_on: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a device without a number there."""
    told: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *asked: told.append(asked))
    execution.keep_within(6 * 2**30, device)
    execution.keep_within(48 * 2**30, device)
    assert told == [(0.25, passed_on), (1.0, passed_on)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_budget_of_gpu_memory_is_kept() -> None:
    execution.keep_within(2**30, CUDA)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**30 + 2**21, dtype=torch.uint8, device=CUDA)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_short_runs_are_not_compiled() -> None:
    said: list[str] = []
    found = prepare(a_model(), a_batch, TrainingConfig(batch_size=4), CPU, execution.WORTH_COMPILING - 1, {}, said.append)
    assert (found.rows_at_once, found.compiled, said) == (4, "nothing", [])
    off = resolve("reasoning", {"training": {"compile": "off", "batch_size": 4}}).training
    assert prepare(a_model(), a_batch, off, CPU, 10**6, {}, said.append).compiled == "nothing"


def test_what_is_not_finite_is_known_at_once_on_the_cpu() -> None:
    losses = FiniteLosses(CPU)
    zero = torch.zeros(())
    good, bad = (Loss(torch.tensor(value), zero, zero, zero, zero, None) for value in (1.0, float("inf")))
    losses.add(1, [good, good])
    assert losses.bad_step(wait=False) is None
    losses.add(2, [good, bad])
    assert losses.bad_step(wait=False) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_not_waited_for_and_tells_late() -> None:
    losses = FiniteLosses(CUDA)
    zero = torch.zeros((), device=CUDA)
    for step in range(1, 5):
        value = torch.tensor(float("nan") if step == 2 else 1.0, device=CUDA)
        losses.add(step, [Loss(value, zero, zero, zero, zero, None)])
    assert losses.bad_step(wait=False) == 2
    assert losses.bad_step(wait=True) is None


@TRACES
@pytest.mark.gpu
@pytest.mark.timeout(600)  # compilers
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("flex", [None, False, True])
def test_no_step_waits_for_a_gpu(flex: bool | None) -> None:
    """All but the first one, which creates the optimizer's state, and those that are measured; torch raises where one would wait."""
    if flex and not has_flex(CUDA, torch.bfloat16):
        pytest.skip("no FlexAttention here")
    model = a_model().to(CUDA)
    if flex is not None:
        model.compile(flex=flex)
    optimizer, batch, losses = MuGrokfast(model.named_parameters()), a_batch(), FiniteLosses(CUDA)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        pieces = []
        for part, share in parts(batch, 2, CUDA):
            loss = model.loss(part.tokens, part.targets, part.documents)
            torch.autograd.backward(loss.loss * share)
            pieces.append((loss, share))
        losses.add(number, [Loss.mean(pieces)])
        assert losses.bad_step(wait=False) is None
        optimizer.step()

    for number in (1, 2):
        step(number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (3, 4, 5):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.bad_step(wait=True) is None


def test_a_run_that_compiles_nothing_does_without_the_compiler(tmp_path: Path) -> None:
    """To import it takes a process a second of CPU time and more, torch itself one and a half; a worker is started for each run."""
    run = new_run(tmp_path / "run", tiny())
    assert attempt_at(run, CommandAt(run, "pause", 5)) is Kind.PAUSED
    code = f"""
import sys
sys.modules["torch._dynamo"] = None  # to import it is an error
from pathlib import Path
from cognate.rundir import Places, RunDir
from cognate.worker import run_attempt
attempt = RunDir(Path({str(run.path)!r})).attempt(2)
attempt.create()
print(run_attempt(attempt, Places(None, None), "cpu").value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == Kind.FINISHED.value, done.stderr


def test_a_deterministic_run_is_compiled_deterministically() -> None:
    """Else the compiler chooses kernels by timing them; set_deterministic_debug_mode() does not tell it."""
    config = importlib.import_module("torch._inductor.config")
    for mode in ("default", "warn", "error"):
        config.deterministic = mode == "default"  # type: ignore[attr-defined]
        try:
            torch.set_deterministic_debug_mode(mode)
            execution.compile_as(a_model(), "regions")
        finally:
            torch.set_deterministic_debug_mode("default")
        assert config.deterministic is (mode != "default")
    config.deterministic = False  # type: ignore[attr-defined]
