"""MuGrokfast: Grokfast's slow-gradient filter before Muon's orthogonalised update.

The equations stand in equations.py, in polar.py and in torch (AdamW). Here they meet a model, each kind of tensor by its own rule:

    matrix      momentum, orthogonalised; decays where decay and update agree
    embedding   momentum, normalised by one second moment a token and one a channel
    vector      AdamW, as are all other shapes and, unless their name says embedding, tensors with a side of at most 8

The order inside a step matters: filter and momentum are linear, orthogonalisation is not and forgets the scale,
so the filter comes first; decay and clip act on weights. Needs torch only; works on any model with named parameters.

A gradient that is not finite changes nothing but a count. With `capturable` that is decided on the device: everything a
step adds is multiplied by `alive`, which is 1, or 0 when the step is skipped; gradients are then 0 too, and x * 1 + 0 = x.

Source of the matrices' scale: "Muon is Scalable", arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final, overload

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from cognate.optimizer.base import Optimizer
from cognate.optimizer.blocks import blocks, laid_out_as, narrow, wide_dtype, wide_like, widen
from cognate.optimizer.checks import check_gradient, check_group, check_new, check_ranges, check_state, named_betas
from cognate.optimizer.equations import (
    Alive,
    Scalar,
    add,
    cautious_decay,
    channel_scale,
    ema,
    grokfast_ema,
    move_tokens,
    muon_clip,
    nesterov,
    qk_clip,
    ramp,
    token_scale,
)
from cognate.optimizer.kinds import STATE, Group, Kind, checked_kind, head_gains, kind_of, shape_of, state_keys
from cognate.optimizer.polar import orthogonalize
from cognate.precision import native_dtype


@dataclass(frozen=True)
class _Now:
    """What one step is made with: numbers, or tensors [] when the step does not wait for the device.

    clip:  what gradients are multiplied by
    alive: 1, or 0 when the step is skipped
    steps: how many were taken before
    """

    clip: Scalar
    alive: Alive
    steps: int | Tensor

    def gradients_of(self, parameters: list[Tensor]) -> list[Tensor]:
        """The gradients; finite ones where the step may yet turn out to be skipped, for 0 * inf is not 0."""
        gradients = _gradients(parameters)
        if not isinstance(self.alive, Tensor):
            return gradients
        flat = torch.cat([gradient.flatten() for gradient in gradients]).nan_to_num_(0.0, 0.0, 0.0)  # two launches for all
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


@final
class MuGrokfast(Optimizer):
    """Filter, momentum, orthogonalised update; the whole of docs/model.md section 2.

    `parameters` are named: `model.named_parameters()`, or group dicts whose "params" are named. A group is split by
    kind (group["kind"]), by kind_of() unless the group brings one: "matrix", "embedding" or "vector"; its "lr" is the kind's
    rate unless the group brings one, and may be a number or a tensor [].
    Every group keeps its names in group["param_names"], in the order of group["params"]: a checkpoint maps state to
    names through them.

    state_dict() holds tensors per parameter and, under "counters", three whole numbers.
    After a step `grad_norm` is the global norm before clipping, a float32 tensor [] that the next step overwrites.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        *,
        muon_lr: float = 1e-3,
        embedding_lr: float = 1e-3,
        adamw_lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        grokfast_alpha: float = 0.98,
        grokfast_lambda: float = 0.3,
        grokfast_ramp_steps: int = 100,
        qk_clip: float = 30.0,
        gradient_clip: float | None = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
        orthogonalization_dtype: torch.dtype | None = None,
        state_dtype: torch.dtype | None = None,
        capturable: bool | None = None,
    ) -> None:
        """
        muon_lr, embedding_lr, adamw_lr: learning rates of matrices, embeddings and vectors, at least 0.
        momentum: Nesterov momentum of the matrices, 0 <= momentum < 1.
        weight_decay: of the matrices, decoupled, per unit of learning rate, at least 0.
        grokfast_alpha: memory of the slow gradient, 0 <= alpha < 1; it remembers about 1 / (1 - alpha) steps.
        grokfast_lambda: how much of the slow gradient is added, at least 0; 0 turns filter and its memory off.
        grokfast_ramp_steps: steps over which lambda rises from 0 to its value, at least 0.
        qk_clip: the largest attention logit a head's gains may allow, or its projections may have shown
            (observe_logits), above 0; math.inf lets them grow.
        gradient_clip: the largest global gradient norm, above 0; None leaves gradients as they are.
        betas, eps: of AdamW and of the embedding; 0 <= beta < 1, eps above 0.
        orthogonalization_dtype: None takes bfloat16 where the device multiplies it natively, else float32.
        state_dtype: of slow gradients and momenta, float32 or bfloat16; None takes the parameter's. Second moments are
            never narrower than float32. Averages are computed in float32 and rounded to nearest, so in bfloat16 one stands
            still where its step is less than half its last bit. Measured: of a constant gradient the slow one (rate 0.02)
            reaches 0.84 to 0.91 and momentum (0.05) 0.93 to 0.97; with noise of the gradient's size or more, which dithers,
            they stay within 0.8 % and 0.5 % of float32's.
        capturable: True never waits for the device, except in a step that creates state, as the first does: what CUDA
            graphs and torch.compile need, for parameters on one device. False decides on the host whether to skip a step,
            which is faster on a CPU. None is True where all gradients are on one CUDA device.
        """
        self._learning_rates: dict[Kind, float] = {"matrix": muon_lr, "embedding": embedding_lr, "vector": adamw_lr}
        self._qk_threshold = qk_clip
        self._gradient_clip = math.inf if gradient_clip is None else gradient_clip
        self._dtype = orthogonalization_dtype
        self._state_dtype = state_dtype
        self._capturable = capturable
        self._steps, self._skipped_steps, self._qk_clips = (torch.zeros((), dtype=torch.int64) for _ in range(3))
        self._observed: dict[tuple[Tensor, Tensor], Tensor] = {}
        self.grad_norm = torch.tensor(math.nan)
        numbers = {
            "momentum": momentum,
            "weight_decay": weight_decay,
            "grokfast_alpha": grokfast_alpha,
            "grokfast_lambda": grokfast_lambda,
            "grokfast_ramp_steps": grokfast_ramp_steps,
            "eps": eps,
        }
        check_ranges({**numbers, "muon_lr": muon_lr, "embedding_lr": embedding_lr, "adamw_lr": adamw_lr})
        check_ranges({**named_betas(betas), "qk_clip": qk_clip, "gradient_clip": self._gradient_clip})
        if state_dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype is {state_dtype}; it must be torch.float32, torch.bfloat16 or None")
        # "fused": torch then restores a "step" to its parameter's device, where fused AdamW wants it.
        defaults = {"lr": muon_lr, **numbers, "betas": betas, "fused": True}
        super().__init__(parameters, defaults)
        self._live_with([parameter for group in self.param_groups for parameter in group["params"]])
        if qk_clip != math.inf:
            head_gains(self.param_groups)  # a gain without its siblings is refused here, not in the first step

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add one group for each kind of tensor in `param_group`, or one of the kind it brings."""
        check_group(param_group)
        by_kind: dict[Kind, list[tuple[str, Tensor]]] = {"matrix": [], "embedding": [], "vector": []}
        wanted = param_group.get("kind")
        every = check_new(param_group["params"], [each for group in self.param_groups for each in group["params"]])
        for name, parameter in every:
            if self._state_dtype is not None and parameter.dtype == torch.float64:
                raise ValueError(f"{name} is torch.float64, whose state is as wide; state_dtype must be None, not {self._state_dtype}")
            kind = kind_of(name, parameter) if wanted is None else checked_kind(wanted, name, parameter)
            by_kind[kind].append((name, parameter))
        for kind, named in by_kind.items():
            if named:
                group = {"lr": self._learning_rates[kind], **param_group, "params": named, "kind": kind}
                if isinstance(group["lr"], Tensor) and len(named) < len(every):
                    group["lr"] = group["lr"].clone()  # a scheduler gives each kind a rate of its own, in place
                super().add_param_group(group)

    @property
    def steps(self) -> int:
        """Calls of step() but for skipped_steps. Reading this, or the next two, waits for the device."""
        return int(self._steps)

    @property
    def skipped_steps(self) -> int:
        """Steps whose gradient, or its norm, was not finite."""
        return int(self._skipped_steps)

    @property
    def qk_clips(self) -> int:
        """How often a head was clipped, over all heads and steps."""
        return int(self._qk_clips)

    def state_bytes(self) -> int:
        """What the state will take once every parameter has been updated; nothing is allocated for the answer."""
        named = ((group, *pair) for group in self.param_groups for pair in zip(group["param_names"], group["params"], strict=True))
        owned = ((name, parameter, key) for group, name, parameter in named for key in state_keys(group))
        return sum(math.prod(shape_of(key, name, parameter)) * self._dtype_of(key, parameter).itemsize for name, parameter, key in owned)

    def observe_logits(self, query: Tensor, key: Tensor, largest: Tensor) -> None:
        """Tell the next step the largest attention logits of heads without QK-norm, for muon_clip().

        Call it in or after each forward pass, with the attention's two projection weights; what is observed before the
        same step is joined by its maximum.

        query, key: [head * head_dim, d_model], parameters of this optimizer, without biases
        largest: [head], max over batch and time of q.k / sqrt(head_dim)
        """
        if query.shape[0] != key.shape[0] or largest.ndim != 1 or query.shape[0] % len(largest):
            raise ValueError(
                f"largest is {[*largest.shape]}, query and key have {query.shape[0]} and {key.shape[0]} rows; "
                "it must be one number a head, and each head needs equally many rows of both"
            )
        owned = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        if not {id(query), id(key)} <= owned:
            raise ValueError("query or key is not a parameter of this optimizer, which clips only its own; pass the weights themselves")
        before = self._observed.get((query, key))
        self._observed[query, key] = largest.detach() if before is None else torch.maximum(before, largest.detach())

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the parameters' gradients, which are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(group, parameters) for group in self.param_groups for parameters in _alike(group)]
        norm = get_total_norm([gradient for _, parameters in moving for gradient in _gradients(parameters)])
        now = self._now(moving, norm)
        if isinstance(now.alive, Tensor) or now.alive:
            for group, parameters in moving:
                self._keep_state(group, parameters, now.clip)
                if group["kind"] == "matrix":
                    self._step_matrices(group, parameters, now)
                elif group["kind"] == "embedding":
                    self._step_embeddings(group, parameters, now)
                else:
                    self._step_vectors(group, parameters, now)
            self._clip_heads(self._qk_threshold / now.alive)  # infinite in a skipped step
        self._observed.clear()
        # In place, and read nowhere above: torch.compile forgets what is assigned to an attribute of an optimizer.
        self.grad_norm.copy_(norm)
        self._steps.add_(now.alive)
        self._skipped_steps.add_(1 - now.alive)
        return loss

    def state_dict(self) -> dict[str, Any]:
        counters = {"steps": self.steps, "skipped_steps": self.skipped_steps, "qk_clips": self.qk_clips}
        return {**super().state_dict(), "counters": counters}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a state_dict() of the same parameters in the same order, whose group settings come with it.

        Names may differ by what torch.compile and DistributedDataParallel put before them.
        """
        check_state(state_dict, self.param_groups)
        counters, names = state_dict["counters"], [group["param_names"] for group in self.param_groups]
        received: list[Mapping[str, Any]] = []  # what the user's own hooks, which come first, make of it
        hook = self.register_load_state_dict_pre_hook(lambda _, state: received.append(state))
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            hook.remove()
        [state_dict] = received
        for group, own in zip(self.param_groups, names, strict=True):
            group["param_names"] = own
        for counter, key in ((self._steps, "steps"), (self._skipped_steps, "skipped_steps"), (self._qk_clips, "qk_clips")):
            counter.fill_(counters[key])
        # torch casts floating state to its parameter's dtype; the saved tensors again, in dtypes of our own.
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, parameters, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                self.state[parameter][key] = value.to(parameter.device, self._dtype_of(key, parameter))

    def __getstate__(self) -> dict[str, Any]:
        """What copy and pickle take; torch's has neither our settings nor the counters."""
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _OWN}}

    def _now(self, moving: list[tuple[Group, list[Tensor]]], norm: Tensor) -> _Now:
        capturable = self._live_with([parameters[0] for _, parameters in moving])
        has_state = all(key in self.state.get(p, {}) for group, parameters in moving for p in parameters for key in state_keys(group))
        if capturable and has_state:
            finite = norm.isfinite()
            clip = (self._gradient_clip / (norm + 1e-6)).clamp(max=1.0)
            return _Now(torch.where(finite, clip, 0.0), finite.long(), self._steps)
        # The one wait for the device: state must not begin with a gradient that turns out not to be finite.
        number = norm.item()
        return _Now(min(1.0, self._gradient_clip / (number + 1e-6)), int(math.isfinite(number)), self.steps)

    def _live_with(self, parameters: list[Tensor]) -> bool:
        """Whether a step of these waits for nobody; the counters and the norm are where it then needs them."""
        devices = {parameter.device for parameter in parameters} or {torch.device("cpu")}
        device = next(iter(devices))
        capturable = (len(devices) == 1 and device.type == "cuda") if self._capturable is None else self._capturable
        for name, home in (*((name, device if capturable else torch.device("cpu")) for name in _COUNTERS), ("grad_norm", device)):
            if getattr(self, name).device != home:  # the first time, or the parameters have moved
                setattr(self, name, getattr(self, name).to(home))
        return capturable

    def _step_matrices(self, group: Group, parameters: list[Tensor], now: _Now) -> None:
        gradients = now.gradients_of(parameters)
        slow, momenta = self._slow(group, parameters, gradients), self._states(parameters, "momentum")
        device = parameters[0].device
        update = torch.empty(len(parameters), *parameters[0].shape, dtype=self._dtype or native_dtype(device), device=device)
        for gradient, slow_part, stored, out, filtered, spare in blocks(gradients, slow, momenta, list(update), scratch=2):
            self._filter(group, gradient, slow_part, now, filtered, spare)
            momentum = widen(stored, spare)
            nesterov(filtered, momentum, group["momentum"], alive=now.alive)
            narrow(momentum, stored)
            torch._foreach_copy_(out, filtered)
        change = orthogonalize(update, dtype=update.dtype)  # [same shape, rows, columns]
        if change.is_cuda:  # the tall ones are turned: several tensors are copied in one launch only where they are laid out alike
            change = change.contiguous()
        scale = 0.2 * math.sqrt(max(change.shape[-2:]))  # an update's RMS is then 0.2 whatever the shape
        for weights, directions, moves, spare in blocks(parameters, list(change), scratch=2):
            torch._foreach_copy_(moves, directions)
            if group["weight_decay"]:
                cautious_decay(moves, weights, group["weight_decay"] / scale, spare)
            add(weights, moves, -scale * group["lr"] * now.alive)

    def _step_embeddings(self, group: Group, parameters: list[Tensor], now: _Now) -> None:
        gradients = now.gradients_of(parameters)
        slow, momenta = self._slow(group, parameters, gradients), self._states(parameters, "momentum")
        squares, channels, steps = (self._states(parameters, key) for key in STATE["embedding"][1:])
        betas, eps = group["betas"], group["eps"]
        for step, channel, *tensors in zip(steps, channels, parameters, gradients, slow, momenta, squares, strict=True):
            step += now.alive
            if channel.shape[1] != tensors[0].shape[1]:  # each token is a column
                tensors = [tensor.mT for tensor in tensors]
            table, *given = ([tensor] for tensor in tensors)
            sums = torch.zeros_like(channel)
            for gradient, slow_part, stored, [square], filtered, spare in blocks(*given, scratch=2):
                self._filter(group, gradient, slow_part, now, filtered, spare)
                momentum = widen(stored, spare)
                sums += move_tokens(filtered[0], momentum[0], square, step, betas, alive=now.alive)
                narrow(momentum, stored)
            ema([channel], [sums / len(table[0])], 1 - betas[1], now.alive)
            scale = channel_scale(channel, eps)
            for [rows], [averages], [square], [moves] in blocks(table, *given[2:], scratch=1):
                torch.mul(averages, scale, out=moves)
                rows.addcmul_(moves, token_scale(square, step, betas, eps) * (group["lr"] * now.alive), value=-1)

    def _step_vectors(self, group: Group, parameters: list[Tensor], now: _Now) -> None:
        gradients = now.gradients_of(parameters)
        stored, squares, steps = (self._states(parameters, key) for key in STATE["vector"])
        filtered = wide_like(parameters)  # in one piece each, which a parameter need not be
        self._filter(group, gradients, self._slow(group, parameters, gradients), now, filtered)
        weights, averages, seconds = (laid_out_as(filtered, widen(each)) for each in (parameters, stored, squares))
        beta1, beta2 = group["betas"]
        adamw(  # the one place where torch.compile breaks its graph
            weights,
            filtered,
            averages,
            seconds,
            [],
            steps,
            fused=True,
            found_inf=(1 - now.alive).float() if isinstance(now.alive, Tensor) else None,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        narrow(weights, parameters)
        narrow(averages, stored)
        narrow(seconds, squares)

    def _filter(
        self,
        group: Group,
        gradients: list[Tensor],
        slow: list[Tensor],
        now: _Now,
        filtered: list[Tensor],
        spare: list[Tensor] | None = None,
    ) -> None:
        """Write the clipped, filtered gradients into `filtered`; `spare` is scratch."""
        torch._foreach_copy_(filtered, gradients)
        if isinstance(now.clip, Tensor) or now.clip != 1:
            torch._foreach_mul_(filtered, now.clip)
        if group["grokfast_lambda"]:
            wide = widen(slow, spare)
            weight = group["grokfast_lambda"] * ramp(now.steps, group["grokfast_ramp_steps"]) * now.alive
            grokfast_ema(filtered, wide, group["grokfast_alpha"], weight, alive=now.alive)
            narrow(wide, slow)

    def _clip_heads(self, threshold: Scalar) -> None:
        alike: dict[object, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        for query, key, head_dim in head_gains(self.param_groups) if self._qk_threshold != math.inf else []:
            alike[head_dim, query.shape, query.dtype, query.device].append((query, key, head_dim))
        for gains in alike.values():
            queries, keys, (head_dim, *_) = map(list, zip(*gains, strict=True))
            clipped_queries, clipped_keys, clipped = qk_clip(torch.stack(queries), torch.stack(keys), head_dim, threshold)
            torch._foreach_copy_([*queries, *keys], [*clipped_queries, *clipped_keys])
            self._count_clips(clipped)
        for (query, key), largest in self._observed.items():
            if query.requires_grad and key.requires_grad:
                clipped_query, clipped_key, clipped = muon_clip(query, key, largest, threshold)
                torch._foreach_copy_([query, key], [clipped_query, clipped_key])
                self._count_clips(clipped)

    def _count_clips(self, clipped: Tensor) -> None:
        self._qk_clips.add_(clipped.sum().to(self._qk_clips.device))

    def _keep_state(self, group: Group, parameters: list[Tensor], clip: Scalar) -> None:
        """What the group's settings ask for, neither less nor more."""
        keys = state_keys(group)
        for parameter in parameters:
            state = self.state[parameter]
            if state.keys() == set(keys):
                continue
            (name,) = (name for name, each in zip(group["param_names"], group["params"], strict=True) if each is parameter)
            kept = {key: state[key] if key in state else self._first(key, name, parameter, clip) for key in keys}
            state.clear()
            state.update(kept)

    def _first(self, key: str, name: str, parameter: Tensor, clip: Scalar) -> Tensor:
        dtype = self._dtype_of(key, parameter)
        if key == "slow":
            assert parameter.grad is not None
            return (parameter.grad * clip).to(dtype)
        if key in {"step", "mean_square", "channel_square"}:
            return torch.zeros(shape_of(key, name, parameter), dtype=dtype, device=parameter.device)
        return torch.zeros_like(parameter, dtype=dtype)

    def _dtype_of(self, key: str, parameter: Tensor) -> torch.dtype:
        if key == "step":
            return torch.float32
        if key in {"mean_square", "channel_square", "exp_avg_sq"}:
            return wide_dtype(parameter)
        return self._state_dtype or parameter.dtype

    def _slow(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """The slow gradients; without a filter there are none, and the gradients stand in their place, unread."""
        return self._states(parameters, "slow") if group["grokfast_lambda"] else gradients

    def _states(self, parameters: list[Tensor], key: str) -> list[Tensor]:
        return [self.state[parameter][key] for parameter in parameters]


_COUNTERS = ("_steps", "_skipped_steps", "_qk_clips")

# Attributes beside torch's.
_OWN = (
    "_learning_rates",
    "_qk_threshold",
    "_gradient_clip",
    "_dtype",
    "_state_dtype",
    "_capturable",
    *_COUNTERS,
    "_observed",
    "grad_norm",
)


def _alike(group: Group) -> list[list[Tensor]]:
    """The group's parameters that have a gradient, in lists that can be stacked."""
    lists: dict[object, list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is not None and parameter.requires_grad:
            check_gradient(parameter.grad)
            shape = parameter.shape if group["kind"] == "matrix" else None
            lists[shape, parameter.dtype, parameter.device].append(parameter)
    return list(lists.values())


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
