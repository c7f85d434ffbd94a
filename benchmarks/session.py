"""Training on a device as the worker does it, without its files: a session, how fast it goes, and what the device could do."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.sidebyside import Batch, Contestant, flops_by_kind
from cognate.config import SIX_DATASETS, RunConfig, resolve
from cognate.data.batches import Batch as Rows
from cognate.data.batches import TrainingBatches
from cognate.data.corpus import load_corpus
from cognate.model import Cognate
from cognate.model.sight import block_mask, segment
from cognate.precision import use_whole_vectors
from cognate.training.execution import activation_dtype, parts, prepare, strictly, ways_to_compile
from cognate.training.loop import build_optimizer
from cognate.worker import make_deterministic

CACHE = Path("var/cache")
GIB = 2**30


@dataclass(frozen=True)
class Setting:
    device: torch.device
    data: Path | None
    is_small: bool

    def config(self, **training: Any) -> RunConfig:
        model = {"d_model": 64, "n_heads": 2, "n_layers": 2, "d_ff": 128, "trm_d_ff": 128, "vocab_size": 2048} if self.is_small else {}
        data = {"source": "real", "datasets": list(SIX_DATASETS)} if self.data else {"source": "synthetic"}
        size = {"batch_size": 2, "sequence_length": 64} if self.is_small else {}
        return resolve("reasoning", {"model": model, "data": data, "training": {**size, "compile": "on", **training}})


class Session:
    """Training as the worker does it, without its files."""

    def __init__(self, setting: Setting, config: RunConfig) -> None:
        make_deterministic(setting.device)
        use_whole_vectors(setting.device)
        gc.collect()  # of a session before this one, whose memory would count as taken
        self._config, self._device = config, setting.device
        self.said: list[str] = []
        corpus = load_corpus(config, setting.data, CACHE)
        self._batches = TrainingBatches(corpus, config.training, config.seed)
        torch.manual_seed(config.seed)
        self._model = Cognate(config.model).to(setting.device)
        self._model.compute_dtype = self.dtype = activation_dtype(config, setting.device)
        self._model.train()
        self._optimizer = build_optimizer(self._model, config)
        self.flops_per_token = self._flops_per_token()  # before it is compiled, which hides them
        self.execution = prepare(
            self._model, lambda: self._batches.batch(1, 0), config.training, self._device, 10**6, {}, self.said.append, measures=False
        )
        self._rows = self._each()

    def step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for part, share in parts(next(self._rows), self.execution.rows_at_once, self._device):
            with strictly(self.execution.is_strict):
                torch.autograd.backward(self._model.loss(part.tokens, part.targets, part.documents).loss * share)
        self._optimizer.step()

    def compile(self, **options: Any) -> None:
        self._model.compile(**options)

    def share_of_keys_read(self) -> float:
        """Of all pairs of a query and a key, those in blocks that FlexAttention looks into."""
        mask = block_mask(segment(self._batches.batch(1, 0).documents), self._config.model.window)
        return float(mask.kv_num_blocks.sum()) / (mask.kv_num_blocks.numel() * mask.kv_num_blocks.size(-1))

    def _flops_per_token(self) -> tuple[float, float]:
        """Of attention, and the others."""
        part, _ = next(iter(parts(self._batches.batch(1, 0), 1, self._device)))
        contestant = Contestant(
            "ours", self._model, self._optimizer, lambda batch, _: self._model.loss(batch.tokens, batch.targets, batch.documents).loss
        )
        attention, others = flops_by_kind(contestant, Batch(part.tokens, part.targets, part.documents), "bf16")
        return attention / part.tokens.numel(), others / part.tokens.numel()

    def _each(self) -> Iterator[Rows]:
        while True:
            for epoch in range(1, self._config.training.epochs + 1):
                yield from (self._batches.batch(epoch, index) for index in range(self._batches.steps_in_epoch(epoch)))


def train_steadily(setting: Setting, config: RunConfig) -> dict[str, Any]:
    """Of several times as many steps the median; every place in a batch is a token, of which 97 % or more are text.

    tflops: what is computed, FlexAttention's unread blocks of keys not among it
    """
    warmups, repeats, times = (1, 2, 1) if setting.is_small else (10, 20, 7)
    session = Session(setting, config)
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
    each = [timed(session.step, setting.device, 0 if number else warmups, repeats) for number in range(times)]
    seconds = statistics.median(each)
    attention, others = session.flops_per_token
    read = session.share_of_keys_read() if session.execution.compiled == "flex" else 1.0
    result = {
        **session.execution.describe(),
        "precision": str(session.dtype),
        "compiled_as_asked": session.execution.compiled == ways_to_compile(setting.device, session.dtype)[0],
        "data": config.data.source,
        "tokens_per_s": config.training.batch_size * config.training.sequence_length / seconds,
        "step_ms": 1e3 * seconds,
        "step_ms_from_to": [1e3 * min(each), 1e3 * max(each)],
        "flops_per_token": attention * read + others,
        "keys_read": read,
    }
    result["tflops"] = result["tokens_per_s"] * result["flops_per_token"] / 1e12
    if setting.device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(setting.device) / GIB
        result["peak_reserved_gib"] = torch.cuda.max_memory_reserved(setting.device) / GIB
    return {**result, "said": session.said}


def matmul_tflops(setting: Setting) -> float:
    size = 256 if setting.is_small else 8192
    a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: torch.mm(a, b), setting.device, warmups=3, repeats=20) / 1e12


def timed(work: Callable[[], object], device: torch.device, warmups: int, repeats: int) -> float:
    """Seconds a call, one after another as in training: waited for at the end only."""
    for _ in range(warmups):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
