"""Who takes part: Cognate, and three others of about 27 M parameters over the same 32,768 tokens.

Each is built as its own documentation does it, with the fast choices it offers, and without dropout:

    ours, ours-no-trm   the default model, without the recursion and its halting in the second; MuGrokfast
    ours-compiled       the default model as long runs train it, compiled, beside the others as they are
    x-transformers      a rotary GPT with tied embedding, flash attention and SwiGLU; 26.9 M in 10 layers of width 320
    gpt2                Hugging Face's GPT-2, SDPA, tied embedding; 26.7 M in 13 layers of width 320
    titans              titans-pytorch's memory as context, the README's configuration (segments of 128, 4 persistent and 16
                        long-term memory tokens, a two-layer MLP as the memory of every layer); 26.8 M in 4 layers of width 256,
                        its two embeddings not tied

Rivals train with fused AdamW, and in bf16 under autocast, as their users do; ours casts by itself (compute_dtype). A rival's
loss is the cross-entropy of its flattened logits: cheaper than the transposed logits some of them use by themselves.
No gradient is clipped but ours, whose optimizer does it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.sidebyside import Batch, Contestant, Precision
from cognate.config import ModelConfig
from cognate.model import Cognate
from cognate.optimizer import MuGrokfast
from cognate.precision import use_whole_vectors
from cognate.training.execution import compile_as, cpu_rows, ways_to_compile
from cognate.worker import keep_freed_memory

VOCAB_SIZE: Final = 32768
WIDTH: Final = 320
BASELINE: Final = "x-transformers"  # whom the others are compared with
DTYPES: Final[Mapping[Precision, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class RivalMissing(RuntimeError):
    """A rival's package is not installed."""


@dataclass(frozen=True)
class Setting:
    """length: tokens in a row"""

    length: int
    device: torch.device
    compiled: bool = False

    def prepare(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if self.compiled else function


Builder = Callable[[Setting], Contestant]


def ours(setting: Setting, config: ModelConfig | None = None, name: str = "ours") -> Contestant:
    use_whole_vectors(setting.device)
    torch.manual_seed(0)
    model = Cognate(config or ModelConfig()).to(setting.device)

    def loss(batch: Batch, precision: Precision) -> Tensor:
        model.compute_dtype = DTYPES[precision]
        value: Tensor = model.loss(batch.tokens, batch.targets, batch.documents).loss
        return value

    def begin(precision: Precision) -> None:  # as the worker does
        keep_freed_memory()
        if setting.compiled:  # not before FLOPs are counted, which compiled FlexAttention does not allow
            compile_as(model, ways_to_compile(setting.device, DTYPES[precision])[0])

    rows = cpu_rows(setting.length) if setting.device.type == "cpu" else None  # as the worker
    return Contestant(name, model, MuGrokfast(model.named_parameters()), loss, begin, rows)


def ours_compiled(setting: Setting) -> Contestant:
    """As the worker trains it in runs of 1,000 steps and more, whatever the others do."""
    return ours(replace(setting, compiled=True), name="ours-compiled")


def ours_without_recursion(setting: Setting) -> Contestant:
    return ours(setting, ModelConfig(trm=False, act=False), "ours-no-trm")


def x_transformers(setting: Setting) -> Contestant:
    package = _import("x_transformers", "x-transformers")
    torch.manual_seed(0)
    layers = package.Decoder(
        dim=WIDTH, depth=10, heads=5, attn_dim_head=64, rotary_pos_emb=True, attn_flash=True, ff_glu=True, ff_swish=True
    )
    model = package.TransformerWrapper(
        num_tokens=VOCAB_SIZE, max_seq_len=setting.length, attn_layers=layers, use_abs_pos_emb=False, tie_embedding=True
    )
    return _rival("x-transformers", model, model, setting)


def gpt2(setting: Setting) -> Contestant:
    package = _import("transformers", "transformers")
    torch.manual_seed(0)
    config = package.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=setting.length,
        n_embd=WIDTH,
        n_layer=13,
        n_head=5,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = package.GPT2LMHeadModel(config)
    return _rival("gpt2", model, lambda tokens: model(input_ids=tokens).logits, setting)


def titans(setting: Setting) -> Contestant:
    package = _import("titans_pytorch", "titans-pytorch")
    torch.manual_seed(0)
    model = package.MemoryAsContextTransformer(
        num_tokens=VOCAB_SIZE, dim=256, depth=4, segment_len=128, num_persist_mem_tokens=4, num_longterm_mem_tokens=16
    )
    return _rival("titans", model, model, setting)


CONTESTANTS: Final[Mapping[str, Builder]] = {
    "ours": ours,
    "ours-compiled": ours_compiled,
    "ours-no-trm": ours_without_recursion,
    "x-transformers": x_transformers,
    "gpt2": gpt2,
    "titans": titans,
}
PACKAGES: Final = ("x-transformers", "transformers", "titans-pytorch")


def _rival(name: str, model: nn.Module, logits: Callable[[Tensor], Tensor], setting: Setting) -> Contestant:
    """logits: tokens [batch, time] -> [batch, time, vocabulary], by `model`"""
    model = model.to(setting.device).train()

    def cross_entropy(tokens: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits(tokens).flatten(0, 1), targets.flatten())

    compute = setting.prepare(cross_entropy)

    def loss(batch: Batch, precision: Precision) -> Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16"):
            value: Tensor = compute(batch.tokens, batch.targets)
        return value

    return Contestant(name, model, torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True), loss)


def _import(module: str, package: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of torch that only its authors can answer
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RivalMissing(f"{package} is not installed ({error}); `make bench-train` installs it, --only leaves it out") from error
