"""Cognate, the whole: embed, backbone (mag.py), recursion (trm.py), tied head; and its loss (loss.py).

    x = backbone(n(E[tokens])),  y_1, z_1, ..., y_T, z_T = recursion(x),  logits_t = y_t E^T

Weights are float32; activations have `compute_dtype`. Parts are switched off with config.ltm, config.trm and config.act.

Source: docs/model.md section 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cognate.config import ModelConfig
from cognate.model.act import HaltingHead, halting_loss, halting_targets
from cognate.model.cross_entropy import cross_entropy_of, linear_cross_entropy
from cognate.model.generate import generate, stream
from cognate.model.layers import Compilable, Linear, drop, linear, rms_norm
from cognate.model.loss import Loss, Made, Places, at, is_counted, measurements_of, places_of, shares, supervision_shares
from cognate.model.mag import Backbone, Reading, Watch, watch
from cognate.model.memory import Chunks, cut
from cognate.model.sight import Sight, has_flex, look, segment
from cognate.model.state import State, look_back
from cognate.model.trm import Recursion, Thought
from cognate.precision import as_torch_comes, product_dtype
from cognate.transfer import to_device

PIECE = 512  # tokens that extend() reads at once


@dataclass(frozen=True)
class Output:
    """logits: [batch, time, vocabulary], float32, of the last recursion"""

    logits: Tensor


@dataclass(frozen=True)
class Continuation:
    """What extend() makes of its tokens.

    answers: [batch, time, width], for logits()
    depths:  int64 [batch, time], recursions spent on each token
    """

    answers: Tensor
    depths: Tensor
    state: State


class Cognate(nn.Module):
    """A causal language model. Build it under torch.manual_seed for reproducible weights."""

    generate = generate
    stream = stream

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self._compiled: Callable[..., Made] | None = None
        self._flex = False  # in what is compiled
        # Small, so that the first loss is close to ln V: logits are y E^T with RMS(y) = 1.
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(config)
        self.recursion = Recursion(config) if config.trm else None
        self.halting = HaltingHead(config.d_model, config.recursions) if config.trm and config.act else None
        for module in self.modules():
            if isinstance(module, Linear):
                module.is_ternary = config.ternary

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Output:
        """Next-token logits.

        tokens:    int64 [batch, time]
        documents: int64 [batch, time], an id per token, equal along each document; None: every row is one document.
                   A token sees only its own document in its own row.
        """
        thoughts, _ = self._think(tokens, *self._surroundings(tokens, self._segments(tokens, documents)))
        return Output(self.logits(thoughts[-1].answer))

    def logits(self, answers: Tensor) -> Tensor:
        """[..., width] to [..., vocabulary], float32"""
        dtype = product_dtype(answers.dtype, answers.device)
        with nullcontext() if torch.is_grad_enabled() else as_torch_comes():
            return linear(answers.to(dtype), self.embedding.weight).float()

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        state: State | None = None,
        lengths: Tensor | None = None,
        *,
        adaptive: bool = True,
        recursions: int | None = None,
    ) -> Continuation:
        """Read on: the answers of tokens that continue what `state` has read, computed from them alone.

        tokens:  int64 [batch, time]
        state:   of the same batch, and written into; None: the tokens are the first of their documents
        lengths: int64 [batch], how many of a row's tokens are its own, 0..time; the rest is padding and has no meaning. None: all
        adaptive: a token halts once its halting probability reaches config.act_threshold; else all recursions are made
        recursions: the most to make; None: as many as in training
        """
        batch, time = self._check(tokens)
        if recursions is not None and recursions < 1:
            raise ValueError(f"recursions is {recursions}; at least one is made")
        if state is None:
            state = State.empty(self.config, batch, self.compute_dtype, tokens.device)
        if len(state.position) != batch or (lengths is not None and len(lengths) != batch):
            told = "" if lengths is None else f", lengths {len(lengths)}"
            raise ValueError(f"tokens have {batch} rows, the state has {len(state.position)}{told}")
        if lengths is not None:
            _check_lengths(lengths, time)
        limit = self.config.recursions if recursions is None else recursions
        pieces = []
        with as_torch_comes():
            for first in range(0, time, PIECE):  # what is read at once takes a mask that grows with its square
                piece = tokens[:, first : first + PIECE]
                own = None if lengths is None else (lengths - first).clamp(0, piece.size(1))
                pieces.append(self._read(piece, state, own, limit, adaptive=adaptive))
        answers, depths = pieces[0] if len(pieces) == 1 else map(partial(torch.cat, dim=1), zip(*pieces, strict=True))
        return Continuation(answers, depths, state)

    def _read(self, tokens: Tensor, state: State, lengths: Tensor | None, limit: int, *, adaptive: bool) -> tuple[Tensor, Tensor]:
        """Of a piece of extend(): answers and depths."""
        time = tokens.size(1)
        padding = None if lengths is None else torch.arange(time, device=tokens.device) >= lengths[:, None]
        sight = look_back(state, padding, time, self.config, self.compute_dtype)
        chunks = cut(torch.zeros_like(tokens[:1]), self.config.memory_chunk) if time > 1 else None
        features = self.backbone.resume(self._embed(tokens), sight, chunks, padding, state.blocks)
        state.position, state.is_blank = state.position + (time if lengths is None else lengths), False
        if self.recursion is None or state.recursion is None:
            return features, torch.ones_like(tokens)

        def halts(latents: Tensor, number: int) -> Tensor:
            if self.halting is None or not adaptive:
                return torch.zeros(latents.shape[:-1], dtype=torch.bool, device=latents.device)
            return self.halting.halts(latents, number, self.config.act_threshold)

        return self.recursion.ponder(features, sight, state.recursion, halts, limit)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        *,
        measure: bool = False,
        dropout: Tensor | None = None,
        share: float = 1.0,
    ) -> Loss:
        """The training loss of one batch; `measure` adds Measurements taken from the same tensors.

        tokens, documents: as in forward()
        targets: int64 [batch, time], the token that comes after each; NOT_COUNTED, or any negative number, is not scored. With nothing
                 to score the loss is 0.
        dropout: float [batch, time], rate for each token's embedding and features, drawn from its device's default generator; None: none
        share:   of the step's counted targets, where the batch is a part of a step; what the halting calibration takes it for

        In train mode early recursions are scored on a random share of the counted tokens, drawn from torch's default generator,
        and the halting calibration is updated. In eval mode every counted token is scored and nothing is changed.
        """
        _check_alike(tokens, targets, "targets")
        segments = self._segments(tokens, documents)
        counted = is_counted(targets)
        is_static = self._compiled is not None or counted.device.type != "cpu"
        places = places_of(counted, self.config.supervised_fraction if self.training else None, is_static=is_static)
        seen = watch(segments, counted, self.config.memory_chunk) if measure and self.config.ltm else None
        compute = self._compiled or self._compute
        surroundings = self._surroundings(tokens, segments, for_compiled=self._compiled is not None)
        made = compute(tokens, targets.flatten(), counted, places, *surroundings, seen, dropout)
        if self.training and self.halting is not None and made.halting_logits is not None and made.halting_targets is not None:
            # Not in what is compiled: that would be made anew for each share.
            self.halting.calibrate(made.halting_logits[:-1], made.halting_targets[:-1], places.chosen_weights, share)
        return Loss(
            made.loss_ce + made.loss_act + made.loss_gate,
            loss_ce=made.loss_ce.detach(),
            loss_act=made.loss_act.detach(),
            loss_gate=made.loss_gate.detach(),
            ce_last=made.ce_last,
            measurements=measurements_of(made, counted, places, self.halting, self.config) if measure and counted.any() else None,
        )

    def compile_regions(self) -> None:
        """Let torch.compile make what lies between attentions, once for all blocks, when loss() is to have a gradient: the first
        step takes half a minute, or a few seconds where the compiler's cache knows it; the rest a fifth less time (CPU)."""
        for module in self.modules():
            if isinstance(module, Compilable):
                module.is_compiled = True

    def compile_nothing(self) -> None:
        self._compiled = None
        for module in self.modules():
            if isinstance(module, Compilable):
                module.is_compiled = False

    def compile(self, *, flex: bool | None = None, **options: Any) -> None:
        """Let torch.compile make the whole of loss(), of static shapes: the first call of each shape, measured or not, takes minutes.

        flex: with FlexAttention; None: where the device has it
        """
        self._flex = has_flex(self.embedding.weight.device, self.compute_dtype) if flex is None else flex
        self._compiled = torch.compile(self._compute, fullgraph=True, dynamic=False, **options)

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle take. What compile() made is of this model and of no copy."""
        return {**self.__dict__, "_compiled": None}

    def _compute(
        self,
        tokens: Tensor,
        targets: Tensor,
        counted: Tensor,
        places: Places,
        sight: Sight,
        chunks: Chunks | None,
        seen: Watch | None,
        dropout: Tensor | None,
    ) -> Made:
        thoughts, readings = self._think(tokens, sight, chunks, seen, dropout)
        loss_ce, ce_last, ce_chosen = self._cross_entropy(thoughts, targets, places)
        loss_act, halting_logits, halting_targets = self._halting(thoughts, ce_chosen, places)
        return Made(loss_ce, loss_act, self._gate_loss(readings, counted), ce_last, halting_logits, halting_targets, readings)

    @torch.no_grad()
    def validation_loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of the last recursion over counted targets, in nats, and how many there are; as in loss()."""
        _check_alike(tokens, targets, "targets")
        thoughts, _ = self._think(tokens, *self._surroundings(tokens, self._segments(tokens, documents)))
        scored = is_counted(targets).flatten().nonzero()[:, 0]
        answers = thoughts[-1].answer.flatten(0, 1).index_select(0, scored)
        each = cross_entropy_of(answers, self.embedding.weight, targets.flatten()[scored])
        return each.sum(), torch.tensor(len(scored), device=each.device)

    def sequence_nats(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The last recursion's cross-entropy summed over each row's counted targets, with its gradient: nats, [batch].

        tokens, targets: as in loss(), every row one document; targets may be on the CPU, and then the device is not waited for.
        Not compiled: its shapes change from call to call.
        """
        _check_alike(tokens, targets, "targets")
        with torch.compiler.set_stance("force_eager"):
            thoughts, _ = self._think(tokens, *self._surroundings(tokens, self._segments(tokens, None)))
        row, time = is_counted(targets).nonzero(as_tuple=True)
        counted = targets[row, time]
        row, time, counted = (to_device(each, tokens.device) for each in (row, time, counted))
        logits = self.logits(thoughts[-1].answer[row, time])  # [counted, vocabulary]
        each = functional.cross_entropy(logits, counted, reduction="none")
        return torch.zeros(len(tokens), device=each.device).index_add(0, row, each)

    def _check(self, tokens: Tensor) -> tuple[int, int]:
        """(batch, time); raises where there is nothing to read, or somebody has tried another way to bfloat16 than compute_dtype."""
        if tokens.ndim != 2 or not tokens.numel():
            raise ValueError(f"tokens have shape {list(tokens.shape)}; they must be [batch, time], with at least one row and one token")
        weight, kind = self.embedding.weight, self.embedding.weight.device.type
        if weight.dtype != torch.float32 or (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            found = "autocast is on" if weight.dtype == torch.float32 else f"the weights are {weight.dtype}"
            raise TypeError(f"{found}; the weights stay float32, without autocast: set model.compute_dtype = torch.bfloat16 instead")
        return tokens.size(0), tokens.size(1)

    def _segments(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        """[batch, time], or [1, time] where every row is one document."""
        self._check(tokens)
        if documents is None:
            return torch.zeros_like(tokens[:1])
        _check_alike(tokens, documents, "documents")
        return segment(documents)

    def _surroundings(self, tokens: Tensor, segments: Tensor, *, for_compiled: bool = False) -> tuple[Sight, Chunks | None]:
        """What all layers need to know of the batch; segments: [batch or 1, time]"""
        config, flex = self.config, for_compiled and self._flex
        head_dim = config.d_model // config.n_heads
        sight = look(segments.expand_as(tokens), config.window, head_dim, config.rope_base, self.compute_dtype, flex=flex)
        if for_compiled and sight.strips is not None:  # one graph has one call
            sight = replace(sight, mask=sight.dense, strips=None)
        return sight, cut(segments, config.memory_chunk) if config.ltm else None

    def _think(
        self, tokens: Tensor, sight: Sight, chunks: Chunks | None, seen: Watch | None = None, dropout: Tensor | None = None
    ) -> tuple[list[Thought], list[Reading]]:
        """A Thought per recursion, and a Reading per block."""
        embedded = self._embed(tokens)
        features, readings = self.backbone(embedded if dropout is None else drop(embedded, dropout), sight, chunks, seen)
        if dropout is not None:
            features = drop(features, dropout)
        if self.recursion is None:
            return [Thought(features, features)], readings
        return self.recursion(features, sight), readings

    def _embed(self, tokens: Tensor) -> Tensor:
        return rms_norm(self.embedding(tokens)).to(self.compute_dtype)

    def _cross_entropy(self, thoughts: list[Thought], targets: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """loss_ce with its gradient; the last recursion's mean; and each recursion's at the chosen tokens, [recursion, chosen]."""
        targets, where = targets.clamp(min=0), [places.chosen] * (len(thoughts) - 1) + [places.scored]
        weights = [places.chosen_weights] * (len(thoughts) - 1) + [places.scored_weights]
        share_of = supervision_shares(self.config.supervision_weights, len(thoughts))
        # One call for all recursions, so that the head's gradient is summed in one place.
        loss_ce, each = linear_cross_entropy(
            torch.cat([at(place, thought.answer.flatten(0, 1)) for thought, place in zip(thoughts, where, strict=True)]),
            self.embedding.weight,
            torch.cat([at(place, targets) for place in where]),
            torch.cat([share * weight for share, weight in zip(share_of, weights, strict=True)]),
        )
        *early, last = torch.split(each, [len(weight) for weight in weights])
        return loss_ce, (last * places.scored_weights).sum(), torch.stack([*early, last[places.choice]])

    def _halting(self, thoughts: list[Thought], ce_chosen: Tensor, places: Places) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """loss_act, and the head's logits and their targets, [recursion, chosen]."""
        if self.halting is None:
            return ce_chosen.new_zeros(()), None, None
        logits = self.halting(torch.stack([at(places.chosen, thought.latent.detach().flatten(0, 1)) for thought in thoughts]))
        targets = halting_targets(ce_chosen, self.config.act_delta)
        return halting_loss(logits[:-1], targets[:-1], places.chosen_weights), logits.detach(), targets

    def _gate_loss(self, readings: list[Reading], counted: Tensor) -> Tensor:
        """Minus the mean entropy of the gates, nats, times its coefficient."""
        if not readings:
            return self.embedding.weight.new_zeros(())
        entropy = torch.stack([reading.gate_entropy for reading in readings]).mean(0)  # [batch, time]
        return -self.config.gate_entropy * (entropy * shares(counted)).sum()


def _check_lengths(lengths: Tensor, time: int) -> None:
    """Numbers on another device are not looked at: that would wait for it."""
    if lengths.dtype != torch.int64 or lengths.ndim != 1:
        raise ValueError(f"lengths are {lengths.dtype} of shape {list(lengths.shape)}; they must be int64 [batch]")
    if lengths.device.type == "cpu" and not bool(((lengths >= 0) & (lengths <= time)).all()):
        raise ValueError(f"lengths are {lengths.tolist()}; each must be 0..{time}, the tokens in a row")


def _check_alike(tokens: Tensor, other: Tensor, name: str) -> None:
    if other.shape != tokens.shape:
        raise ValueError(f"{name} has shape {list(other.shape)}; tokens have {list(tokens.shape)}")
