"""MuGrokfast: Grokfast's slow-gradient filter before Muon's orthogonalised update.

The equation first, as pure functions: grokfast_ema(), orthogonalize(), row_normalize(), qk_clip(). MuGrokfast
then applies them to a model, each kind of tensor by its own rule:

    matrix      momentum, orthogonalised; decays where decay and update agree
    embedding   momentum, each token's vector normalised by one second moment of its own
    vector      AdamW, as are all other shapes and tensors with a side of at most 8

The order inside a step matters: filter and momentum are linear, orthogonalisation is not and forgets the scale,
so the filter comes first; decay and clip act on weights. Needs torch only; works on any model with named parameters.

Sources: Grokfast-EMA, arXiv:2405.20233. Muon, https://kellerjordan.github.io/posts/muon, with the scale of
"Muon is Scalable", arXiv:2502.16982, section 2.2. Polar Express, arXiv:2505.16932. Cautious weight decay, arXiv:2510.12402.
QK-clip after MuonClip, Kimi K2, arXiv:2507.20534, section 2.1.
Where we differ: Grokfast's weight is ramped from 0; QK-clip bounds the logit that gains allow, not the largest one seen.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

Kind = Literal["matrix", "embedding", "vector"]
Coefficients = Sequence[tuple[float, float, float]]

# Five odd quintics a x + b x^3 + c x^5 whose composition takes [0.001, 1] into [0.85, 1.15]. The paper's algorithm 1 with
# its safety factor 0.02 (hence MARGIN), as computed for modded-nanogpt (github.com/KellerJordan/modded-nanogpt).
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
MARGIN = 1.02


class MuGrokfast(torch.optim.Optimizer):
    """Filter, momentum, orthogonalised update; the whole of docs/model.md section 2.

    `parameters` are named: `model.named_parameters()`, or group dicts whose "params" are named. A group is split by
    kind (group["kind"]); its "lr" is the kind's rate unless the group brings one. Every group keeps its names in
    group["param_names"], in the order of group["params"]: a checkpoint maps state to names through them.

    state_dict() holds tensors per parameter and, under "counters", three whole numbers.
    After a step `grad_norm` is the global norm before clipping.
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
    ) -> None:
        """
        betas, eps: of AdamW and of the embedding.
        qk_clip: the largest attention logit a head's gains may allow; math.inf lets them grow.
        gradient_clip: the largest global gradient norm; None leaves gradients as they are.
        orthogonalization_dtype: None takes bfloat16 where the device multiplies it natively, else float32.
        """
        self._learning_rates: dict[Kind, float] = {"matrix": muon_lr, "embedding": embedding_lr, "vector": adamw_lr}
        self._qk_threshold = qk_clip
        self._gradient_clip = gradient_clip
        self._dtype = orthogonalization_dtype
        self.steps = 0
        self.skipped_steps = 0
        self._qk_clips: int | Tensor = 0
        self.grad_norm = torch.tensor(math.nan)
        numbers = {
            "momentum": momentum,
            "weight_decay": weight_decay,
            "grokfast_alpha": grokfast_alpha,
            "grokfast_lambda": grokfast_lambda,
            "grokfast_ramp_steps": grokfast_ramp_steps,
            "eps": eps,
        }
        _check_ranges({**numbers, "muon_lr": muon_lr, "embedding_lr": embedding_lr, "adamw_lr": adamw_lr})
        _check_ranges({"beta1": betas[0], "beta2": betas[1], "qk_clip": qk_clip})
        _check_ranges({} if gradient_clip is None else {"gradient_clip": gradient_clip})
        # "fused": torch then restores a "step" to its parameter's device, where fused AdamW wants it.
        defaults = {"lr": muon_lr, **numbers, "betas": betas, "fused": True}
        super().__init__(parameters, defaults)
        self._head_gains()  # a gain without its siblings is refused here, not in the first step

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add one group for each kind of tensor in `param_group`."""
        by_kind: dict[Kind, list[tuple[str, Tensor]]] = {"matrix": [], "embedding": [], "vector": []}
        for item in param_group["params"]:
            if not isinstance(item, tuple):
                raise TypeError(
                    f"MuGrokfast tells embeddings and gains by name, but got a bare {type(item).__name__}; pass model.named_parameters()"
                )
            name, parameter = item
            by_kind[kind_of(name, parameter)].append((name, parameter))
        for kind, named in by_kind.items():
            if named:
                super().add_param_group({"lr": self._learning_rates[kind], **param_group, "params": named, "kind": kind})

    @property
    def qk_clips(self) -> int:
        """How often a head's gains were clipped, over all heads and steps. Reading it waits for the device."""
        return int(self._qk_clips)

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
        self.grad_norm = get_total_norm([gradient for _, parameters in moving for gradient in _gradients(parameters)])
        # The step's one wait for the device. On CUDA it drains the queue of the backward pass, so the step's launches (a few
        # hundred) are no longer hidden behind it. Skipping without waiting would mean a masked write of every state tensor.
        norm = self.grad_norm.item()
        if not math.isfinite(norm):
            self.skipped_steps += 1
            return loss
        clip = 1.0 if self._gradient_clip is None else min(1.0, self._gradient_clip / (norm + 1e-6))
        for group, parameters in moving:
            filtered = self._filter(group, parameters, clip)
            if group["kind"] == "matrix":
                self._step_matrices(group, parameters, filtered)
            elif group["kind"] == "embedding":
                self._step_embeddings(group, parameters, filtered)
            else:
                self._step_vectors(group, parameters, filtered)
        for query_gain, key_gain, head_dim in self._head_gains():
            self._clip_gains(query_gain, key_gain, head_dim)
        self.steps += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        counters = {"steps": self.steps, "skipped_steps": self.skipped_steps, "qk_clips": self.qk_clips}
        return {**super().state_dict(), "counters": counters}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        counters = state_dict["counters"]
        super().load_state_dict(dict(state_dict))
        self.steps, self.skipped_steps, self._qk_clips = counters["steps"], counters["skipped_steps"], counters["qk_clips"]

    def _filter(self, group: dict[str, Any], parameters: list[Tensor], clip: float) -> list[Tensor]:
        """The clipped, filtered gradients, in memory of their own."""
        gradients = list(torch._foreach_mul(_gradients(parameters), clip))
        if group["grokfast_lambda"] == 0:
            return gradients
        states = [self.state[parameter] for parameter in parameters]
        slow = [state.get("slow", gradient) for state, gradient in zip(states, gradients, strict=True)]
        weight = group["grokfast_lambda"] * _ramp(self.steps, group["grokfast_ramp_steps"])
        filtered, slow = grokfast_ema(gradients, slow, group["grokfast_alpha"], weight)
        for state, value in zip(states, slow, strict=True):
            state["slow"] = value
        return filtered

    def _step_matrices(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        momentum = self._state_of(parameters, "momentum", torch.zeros_like)
        torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
        torch._foreach_lerp_(gradients, momentum, group["momentum"])  # Nesterov's look ahead
        update = torch.stack(gradients)  # [same shape, rows, columns]
        change = orthogonalize(update, dtype=self._dtype or native_dtype(update.device)).to(update.dtype)
        scale = 0.2 * math.sqrt(max(update.shape[-2:]))  # an update's RMS is then 0.2 whatever the shape
        if group["weight_decay"]:
            weights = torch.stack(parameters)
            agrees = (change * weights).ge_(0)  # 1 where decay would not pull against the update, else 0
            change = change.mul_(scale).addcmul_(weights, agrees, value=group["weight_decay"])
        else:
            change = change * scale
        torch._foreach_add_(parameters, change.unbind(), alpha=-group["lr"])

    def _step_embeddings(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        momentum = self._state_of(parameters, "momentum", torch.zeros_like)
        square = self._state_of(parameters, "mean_square", lambda table: table.new_zeros(_one_a_token(table)))
        step = self._state_of(parameters, "step", _zero_steps)
        for i, table in enumerate(parameters):
            step[i] += 1
            update = row_normalize(gradients[i], momentum[i], square[i], step[i], group["betas"], group["eps"])
            table.sub_(update, alpha=group["lr"])

    def _step_vectors(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            gradients,
            self._state_of(parameters, "exp_avg", torch.zeros_like),
            self._state_of(parameters, "exp_avg_sq", torch.zeros_like),
            [],
            self._state_of(parameters, "step", _zero_steps),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _clip_gains(self, query_gain: Tensor, key_gain: Tensor, head_dim: int) -> None:
        clipped_query, clipped_key, clipped = qk_clip(query_gain, key_gain, head_dim, self._qk_threshold)
        query_gain.copy_(clipped_query)
        key_gain.copy_(clipped_key)
        self._qk_clips = self._qk_clips + clipped.sum()

    def _head_gains(self) -> list[tuple[Tensor, Tensor, int]]:
        """(query gain, key gain, head_dim) of every attention whose gains are trained."""
        if self._qk_threshold == math.inf:
            return []
        named = {
            name: parameter for group in self.param_groups for name, parameter in zip(group["param_names"], group["params"], strict=True)
        }
        gains = []
        for name in named:
            if not name.endswith("query_gain"):
                continue
            prefix = name.removesuffix("query_gain")
            for sibling in (f"{prefix}key_gain", f"{prefix}query.weight"):
                if sibling not in named:
                    raise ValueError(f"{name} needs {sibling} beside it for QK-clip; rename it, or pass qk_clip=math.inf")
            query_gain, key_gain = named[name], named[f"{prefix}key_gain"]
            if query_gain.requires_grad and key_gain.requires_grad:
                gains.append((query_gain, key_gain, named[f"{prefix}query.weight"].shape[0] // query_gain.numel()))
        return gains

    def _state_of(self, parameters: list[Tensor], key: str, create: Callable[[Tensor], Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if key not in self.state[parameter]:
                self.state[parameter][key] = create(parameter)
        return [self.state[parameter][key] for parameter in parameters]


def kind_of(name: str, parameter: Tensor) -> Kind:
    """Which of the three rules moves a parameter."""
    if parameter.ndim != 2:
        return "vector"
    if name.endswith("embedding.weight") or _is_long(parameter.shape) or _is_long(parameter.shape[::-1]):
        return "embedding"
    return "vector" if min(parameter.shape) <= 8 else "matrix"


def grokfast_ema(gradients: list[Tensor], slow: list[Tensor], alpha: float, weight: float) -> tuple[list[Tensor], list[Tensor]]:
    """Amplify what is slow in each gradient; changes nothing in place.

    gradients, slow: tensors of any shape, pairwise alike; at the first step `slow` is the gradients themselves.
    returns (g + weight * mu', mu') with mu' = alpha * mu + (1 - alpha) * g
    """
    moved = torch._foreach_lerp(slow, gradients, 1 - alpha)
    return list(torch._foreach_add(gradients, moved, alpha=weight)), list(moved)


def orthogonalize(
    update: Tensor, coefficients: Coefficients = POLAR_EXPRESS, *, margin: float = MARGIN, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The nearest matrix with all singular values about 1 (the polar factor), by odd polynomials of `update`.

    Singular values of at least 1/1000 of the Frobenius norm come out within [0.84, 1.16]; smaller ones grow
    about a thousandfold and stay below that. Zero stays zero. The scale of `update` does not matter.

    update: [..., rows, columns], any floating dtype
    returns [..., rows, columns] in `dtype`
    """
    rows, columns = update.shape[-2:]
    wide = update.to(dtype).reshape(-1, rows, columns)
    wide = wide.mT if rows > columns else wide  # [matrix, short side, long side]: the products below are then short x short
    # A norm below 1e-12 is not divided by: such an update fades to nothing, and its rounding is not amplified.
    norm = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    wide = wide / (norm * margin)
    if dtype == torch.float32 and max(rows, columns) >= 3 * min(rows, columns):
        wide = _apply_polynomials_by_gram(wide, coefficients)
    else:
        wide = _apply_polynomials(wide, coefficients)
    return (wide.mT if rows > columns else wide).reshape(update.shape)


def row_normalize(gradient: Tensor, momentum: Tensor, mean_square: Tensor, step: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam with one second moment a token: its vector keeps its direction, only its length is normalised.

    Moves `momentum` and `mean_square` in place.

    gradient, momentum: [token, width], or [width, token]
    mean_square: [token, 1], or [1, token]
    step: [], the number of gradients seen, this one included
    returns the update, shaped like gradient
    """
    beta1, beta2 = betas
    width = -1 if mean_square.shape[-1] == 1 else 0
    momentum.lerp_(gradient, 1 - beta1)
    mean_square.lerp_(gradient.square().mean(width, keepdim=True), 1 - beta2)
    root = (mean_square / (1 - beta2**step)).sqrt_().add_(eps)
    return momentum / (root * (1 - beta1**step))


def qk_clip(query_gain: Tensor, key_gain: Tensor, head_dim: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink both gains of each head whose largest possible attention logit exceeds `threshold`.

    Normalised queries and keys have length sqrt(head_dim), and scores are divided by it once.

    query_gain, key_gain: [head]
    returns (query_gain, key_gain, clipped), each [head]; clipped is bool
    """
    largest = math.sqrt(head_dim) * (query_gain * key_gain).abs()
    # A head just clipped may round to the last bit above the threshold: that is not another clip.
    clipped = largest > threshold * (1 + 4 * torch.finfo(largest.dtype).eps)
    shrink = torch.where(clipped, (threshold / largest).sqrt(), 1.0)
    return query_gain * shrink, key_gain * shrink, clipped


@functools.cache
def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied natively, else float32.

    Measured on two cores with AMX, all matrices of the default model, ms: bf16 76, fp32 224, fp32 without the Gram form 364.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return torch.bfloat16 if features.get("avx512_bf16") or features.get("amx_bf16") else torch.float32
    return torch.float32


def _apply_polynomials(wide: Tensor, coefficients: Coefficients) -> Tensor:
    for a, b, c in coefficients:
        gram = wide @ wide.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, factor, wide, beta=a)
    return wide


def _apply_polynomials_by_gram(wide: Tensor, coefficients: Coefficients) -> Tensor:
    """The same product, multiplying only short x short matrices between the first line and the last.

    In bfloat16 small singular values drown in the Gram matrix's rounding and come out up to 1.4: float32 only.
    """
    gram = wide @ wide.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = identity
    for a, b, c in coefficients:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ wide


def _check_ranges(options: Mapping[str, float]) -> None:
    for name, value in options.items():
        if name in {"momentum", "grokfast_alpha", "beta1", "beta2"}:
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        elif name in {"qk_clip", "gradient_clip"}:
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        elif not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")


def _alike(group: dict[str, Any]) -> list[list[Tensor]]:
    """The group's parameters that have a gradient, in lists that can be stacked."""
    lists: dict[object, list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is not None and parameter.requires_grad:
            shape = parameter.shape if group["kind"] == "matrix" else None
            lists[shape, parameter.dtype, parameter.device].append(parameter)
    return list(lists.values())


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _ramp(steps: int, ramp_steps: int) -> float:
    return min(1.0, steps / ramp_steps) if ramp_steps else 1.0


def _is_long(shape: Sequence[int]) -> bool:
    return shape[0] > 4096 and shape[0] > 16 * shape[1]


def _one_a_token(table: Tensor) -> tuple[int, int]:
    # Tokens are rows, unless the table is so wide that they can only be columns.
    return (1, table.shape[1]) if _is_long(table.shape[::-1]) else (table.shape[0], 1)


def _zero_steps(parameter: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32, device=parameter.device)
