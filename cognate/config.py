"""What a run is told: RunConfig, its parts, and the four presets.

Every parameter is declared here once. The REST API, the launch form, the command line and
the documentation are drawn from these fields; nothing about a parameter is written elsewhere.
`resolve(preset, overrides)` is the one way in. Imports no torch: the server reads this file too.

Source of the values: docs/model.md's tables ("report" numbers).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION: Final = 1

Precision = Literal["auto", "fp32", "bf16"]
Bptt = Literal["full", "last"]
Recipe = Literal["report", "measured"]
DatasetName = Literal[
    "gsm8k", "svamp", "asdiv", "mbpp", "codexglue", "arc_easy", "arc_challenge",
    "hotpotqa", "drop", "strategyqa", "piqa", "hellaswag", "boolq", "wikitext",
]  # fmt: skip
# A name of the user's own data, and after a colon the stage it is from.
EXTRA_NAME: Final = r"[a-z][a-z0-9_-]{0,47}"
SIX_DATASETS: tuple[DatasetName, ...] = ("gsm8k", "svamp", "mbpp", "arc_easy", "arc_challenge", "hellaswag")


_WANDB_NAME = r"^[A-Za-z0-9_.-]{1,128}$"


class ConfigError(ValueError):
    """A configuration that cannot be run; `problems` says where and why, in words for a person."""

    def __init__(self, problems: list[dict[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem['field']}: {problem['message']}" for problem in problems))


class UnknownPreset(ConfigError):
    def __init__(self, name: str) -> None:
        message = f"no preset {name!r}; have {', '.join(PRESETS)}" + _suggest(name, PRESETS)
        super().__init__([{"field": "preset", "message": message}])


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ModelConfig(_Section):
    """Cognate's shape (docs/model.md section 1). The defaults give exactly 26,974,561 parameters."""

    vocab_size: int = Field(32768, ge=258, le=65536, description="Size of the byte-level BPE vocabulary.")
    d_model: int = Field(320, ge=16, le=4096, description="Width of the residual stream.")
    n_layers: int = Field(8, ge=1, le=64, description="Titans-MAG blocks in the backbone.")
    n_heads: int = Field(5, ge=1, le=64, description="Attention heads; must divide d_model into even parts.")
    d_ff: int = Field(2048, ge=16, le=16384, description="Hidden width of the squared-ReLU MLP of a block.")
    window: int = Field(256, ge=1, le=8192, description="Attention window in tokens; a query sees its last `window` keys.")
    rope_base: float = Field(10_000.0, gt=1, le=1e8, description="Base of the rotary position frequencies.")
    ltm: bool = Field(True, description="Long-term memory and its gate (Titans MAG); off leaves plain attention.")
    memory_heads: int = Field(2, ge=1, le=32, description="Heads of the long-term memory.")
    memory_key_dim: int = Field(32, ge=4, le=256, description="Key width of a memory head.")
    memory_value_dim: int = Field(64, ge=4, le=256, description="Value width of a memory head.")
    memory_chunk: int = Field(64, ge=1, le=1024, description="Tokens handled at once by the parallel memory; changes speed, not results.")
    memory_capacity: int = Field(4096, ge=1, le=1_000_000, description="Longest horizon of the memory in tokens: the floor on its decay.")
    surprise_threshold: float = Field(
        0.7, ge=0, le=10, description="A token counts as a surprise when the memory misses more than this share of its value."
    )
    trm: bool = Field(True, description="Tiny recursion after the backbone; off emits the backbone's features.")
    recursions: int = Field(3, ge=1, le=16, description="Recursions of the shared net in training, and the cap when halting adaptively.")
    micro_steps: int = Field(2, ge=1, le=16, description="Updates of the latent z before each update of the answer y.")
    trm_d_ff: int = Field(2048, ge=16, le=16384, description="Hidden width of the recursion's MLP.")
    bptt: Bptt = Field("full", description="Gradient through the whole recursion, or through the last one only (less memory).")
    supervision_weights: tuple[float, ...] = Field(
        (0.05, 0.1, 1.0), min_length=1, description="Loss weight of each recursion; the last ones apply when there are fewer."
    )
    supervised_fraction: float = Field(
        0.25, gt=0, le=1, description="Share of tokens, drawn anew each step, on which early recursions are scored."
    )
    ternary: bool = Field(
        False, description="Compute with matrices rounded to -1, 0 and 1 times a scale (BitNet b1.58); gradients go straight through."
    )
    act: bool = Field(True, description="Train the halting head (adaptive computation time).")
    act_threshold: float = Field(0.95, gt=0, lt=1, description="A token halts once its halting probability reaches this.")
    act_delta: float = Field(0.0, ge=0, le=10, description="Nats that further thinking must save for a token not to halt.")
    gate_entropy: float = Field(0.001, ge=0, le=1, description="Weight of the reward for undecided memory gates (loss_gate).")

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(f"n_heads: {self.n_heads} heads do not divide d_model {self.d_model} into even widths")
        if min(self.supervision_weights) < 0 or self.supervision_weights[-1] <= 0:
            raise ValueError("supervision_weights: none may be negative, and the last must be above 0")
        return self


class OptimizerConfig(_Section):
    """MuGrokfast (docs/model.md section 2): Grokfast filter, momentum, orthogonalised update."""

    muon_lr: float = Field(1e-3, gt=0, le=1, description="Learning rate of the matrices.")
    embedding_lr: float = Field(1e-3, gt=0, le=1, description="Learning rate of the embedding, which is also the output head.")
    adamw_lr: float = Field(1e-3, gt=0, le=1, description="Learning rate of vectors and tiny tensors (AdamW).")
    momentum: float = Field(0.95, ge=0, lt=1, description="Nesterov momentum of the matrices.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled decay of matrices, where it agrees with the update.")
    grokfast_alpha: float = Field(0.98, ge=0, lt=1, description="Memory of the slow-gradient filter.")
    grokfast_lambda: float = Field(0.3, ge=0, le=10, description="How much of the slow gradient is added; 0 turns the filter off.")
    grokfast_ramp_steps: int = Field(100, ge=0, le=1_000_000, description="Steps over which the filter's weight rises from 0.")
    qk_clip: float = Field(30.0, gt=0, le=10_000, description="Largest attention logit a head's gains may produce.")


class AugmentConfig(_Section):
    """Samples made from training rows or from nothing, beside the real ones (docs/levers.md); every answer is computed, none is guessed."""

    renumber: int = Field(
        0, ge=0, le=100, description="Variants with other numbers of each GSM8K, SVAMP and ASDiv problem that can be worked out anew."
    )
    mbpp_mutations: int = Field(
        0,
        ge=0,
        le=20,
        description="Variants of each MBPP program with other names and test values, run in the sandbox when the data are prepared.",
    )
    graphs: int = Field(0, ge=0, le=1_000_000, description="Word problems of 2 to 8 steps from random solution graphs.")


class DataConfig(_Section):
    """What is trained on (docs/model.md section 3)."""

    datasets: tuple[DatasetName, ...] | None = Field(None, min_length=1, description="Datasets to use; empty means every available one.")
    source: Literal["auto", "real", "synthetic"] = Field(
        "auto",
        description="auto: real data where there is a data folder or anything fetched, else generated problems; real: real data only; synthetic: generated problems only.",
    )
    extra: tuple[Annotated[str, Field(pattern=rf"^{EXTRA_NAME}(:[123])?$")], ...] = Field(
        (), max_length=16, description="Your own data: names of files in the data folder's `extra`, each as NAME or NAME:STAGE (1, 2 or 3)."
    )
    synthetic_problems: int = Field(20_000, ge=100, le=1_000_000, description="Problems to generate when the source is synthetic.")
    digits: Literal["single", "merged"] = Field(
        "single", description="Whether each digit is a token, or numbers become tokens like words; merged is there to be compared with."
    )
    validation_batches: int = Field(8, ge=1, le=10_000, description="Batches of held-out text scored for val_loss.")
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [entry.partition(":")[0] for entry in self.extra]
        if len(set(names)) < len(names):
            raise ValueError("extra: names a file twice")
        return self


class TrainingConfig(_Section):
    """How long, how large, how fast, how often."""

    batch_size: int = Field(16, ge=1, le=4096, description="Packed rows in a batch.")
    sequence_length: int = Field(512, ge=16, le=16384, description="Tokens in a packed row.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rows of a batch that go through the model at once; empty: as many as fit on a GPU, 4,096 tokens on a CPU.",
    )
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="Batches whose gradients are averaged into one step.")
    epochs: int = Field(10, ge=1, le=10_000, description="Passes over the curriculum.")
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Stop after this many steps; empty means the whole curriculum.")
    warmup_steps: int = Field(100, ge=0, le=1_000_000, description="Steps of linear warm-up; at most 5 % of the run.")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="Share of the run, at its end, over which the rate falls linearly.")
    final_lr_fraction: float = Field(0.1, ge=0, le=1, description="Learning rate at the end, as a share of its peak.")
    gradient_clip: float = Field(1.0, gt=0, le=1e6, description="Largest global gradient norm.")
    choice_weight: float = Field(
        0.0, ge=0, le=10, description="Weight of a loss over the candidates of multiple-choice training rows; 0 leaves it out."
    )
    choice_problems: int = Field(8, ge=1, le=1024, description="Multiple-choice problems that this loss draws for a step.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the channels left out, of embedded tokens and of features, once examples repeat; 0 leaves none out.",
    )
    dropout_from: int = Field(2, ge=1, le=10_000, description="The dropout acts from the so many-th time that an example is trained on.")
    weight_ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Memory of the weights' running mean, which is then validated, evaluated and generated with; 0 keeps none.",
    )
    log_every_steps: int = Field(50, ge=1, le=1_000_000, description="Steps between two rows of metrics.")
    checkpoint_every_steps: int = Field(
        500, ge=1, le=1_000_000, description="Steps between two checkpoints; the end of an epoch is one too."
    )
    keep_checkpoints: int = Field(3, ge=1, le=1000, description="Newest checkpoints kept; older ones go, but for the best and the pinned.")
    precision: Precision = Field("auto", description="Width of activations; auto takes bf16 where the device computes it natively.")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile: faster steps after half a minute to minutes; auto takes it for runs of 1,000 steps and more."
    )
    gpu_memory_gb: float | None = Field(None, gt=0, le=10_000, description="GPU memory a run may use, GiB; empty takes what is free.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="auto, cpu, cuda or cuda:N; auto takes a GPU when there is one."
    )


class EvaluationConfig(_Section):
    """What is measured on held-out items besides the loss (docs/evaluation.md)."""

    epoch_items: int = Field(
        32, ge=0, le=100_000, description="Held-out items of each dataset answered at the end of an epoch (accuracy_*); 0 for none."
    )
    samples: int = Field(3, ge=0, le=20, description="Held-out prompts that the model writes on from at the end of an epoch; 0 for none.")
    at_end: Literal["auto", "sample", "full", "off"] = Field(
        "auto",
        description="Evaluation of the best checkpoint of a completed run: 100 items a dataset, all, or none; auto takes all on a GPU.",
    )


class HealthConfig(_Section):
    """From when on a run counts as ailing, and what is done about it (docs/health.md). Ratios are shares, not percent."""

    not_falling_after_steps: int = Field(
        100, ge=1, le=1_000_000, description="Steps after the warm-up by which the cross-entropy must lie below the untrained model's."
    )
    min_fall: float = Field(0.02, gt=0, lt=1, description="Share of the untrained model's cross-entropy by which it must have fallen then.")
    plateau_steps: int = Field(1000, ge=20, le=100_000, description="Steps whose second half must have a lower loss than the first.")
    plateau_min_fall: float = Field(0.02, gt=0, lt=1, description="Share by which it must be lower; noise is allowed for.")
    explosion_deviations: float = Field(
        8.0, gt=0, le=1000, description="A loss this many deviations above the median of the rows before has exploded ..."
    )
    explosion_ratio: float = Field(1.5, gt=1, le=1000, description="... if it is also this many times the median.")
    slow_ratio: float = Field(2.0, gt=1, le=1000, description="Steps or epochs that take this many times what earlier ones took are slow.")
    min_gpu_utilisation: float = Field(0.5, ge=0, le=1, description="Share of two minutes of training that the GPU must have been busy.")
    min_tokens_per_parameter: float = Field(0.02, ge=0, le=1e6, description="Fewer tokens in an epoch, per parameter, are too few.")
    max_passes: float = Field(16.0, ge=1, le=1e6, description="Passes over the same data beyond which more teach next to nothing.")
    on_out_of_memory: Literal["halve", "fail"] = Field(
        "halve", description="Go on with half the rows of a batch at once, with the same batches and steps, or leave it failed."
    )


class TrackingConfig(_Section):
    """Where else the run is told of (docs/tracking.md). Changes nothing about training."""

    wandb: Literal["auto", "off", "offline", "online"] = Field(
        "auto", description="Weights & Biases: auto goes online where the service has an API key, else a file in the run's folder."
    )
    project: str = Field("cognate", pattern=_WANDB_NAME, description="W&B project.")
    entity: str | None = Field(None, pattern=_WANDB_NAME, description="W&B user or team; empty means the key's own.")
    upload_checkpoints: Literal["none", "best", "final"] = Field(
        "none", description="Checkpoint that goes to W&B as an artifact whenever the run comes to rest."
    )


class RunConfig(_Section):
    """The whole of a run's configuration; immutable once the run exists."""

    schema_version: Literal[1] = SCHEMA_VERSION
    preset: str = Field("reasoning", description="The preset this configuration started from.")
    recipe: Recipe = Field(
        "report", description="A specialist's numbers: those of the Phase 1 report, or with what was measured to be better."
    )
    seed: int = Field(42, ge=0, lt=2**31, description="Seed of weights, data order and sampling.")
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
    tracking: TrackingConfig = TrackingConfig()


# A specialist is trained on real data or not at all; only the quickstart makes do with generated problems.
_SPECIALIST_DATA = {"source": "real"}

PRESETS: dict[str, dict[str, Any]] = {
    "reasoning": {
        "seed": 42,
        "model": {"memory_capacity": 4096, "surprise_threshold": 0.7, "act_threshold": 0.95, "act_delta": 0.0},
        "data": _SPECIALIST_DATA,
    },
    "memory": {
        "seed": 1337,
        "model": {"memory_capacity": 8192, "surprise_threshold": 0.5, "act_threshold": 0.90, "act_delta": 0.05},
        "data": _SPECIALIST_DATA,
    },
    "speed": {
        "seed": 2023,
        "model": {"memory_capacity": 2048, "surprise_threshold": 0.3, "act_threshold": 0.99, "act_delta": 0.5, "recursions": 2},
        "data": _SPECIALIST_DATA,
    },
    # Small enough that two CPU cores see it learn in about a minute; the numbers were found by trying.
    "quickstart": {
        "seed": 7,
        "model": {"vocab_size": 512, "d_model": 128, "n_layers": 2, "n_heads": 2, "d_ff": 512, "trm_d_ff": 512, "window": 64},
        "optimizer": {"muon_lr": 1e-2, "embedding_lr": 1e-2, "adamw_lr": 3e-3},
        "data": {"source": "auto", "synthetic_problems": 1000},
        "training": {
            "batch_size": 8, "sequence_length": 128, "epochs": 10, "max_steps": 200, "log_every_steps": 1, "checkpoint_every_steps": 50,
            "precision": "fp32",  # at this width bf16 costs more in conversions than it saves
        },
        "evaluation": {"epoch_items": 4, "at_end": "off"},
    },
}  # fmt: skip
SPECIALISTS: tuple[str, ...] = ("reasoning", "memory", "speed")
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
# What was better than the report's numbers, and by how much: docs/experiments.md and, for data and training, docs/levers.md.
MEASURED: dict[str, Any] = {
    "optimizer": {"muon_lr": 2.5e-3, "embedding_lr": 1e-2, "adamw_lr": 3e-3, "grokfast_lambda": 0.0},
    "data": {"augment": {"renumber": 3, "mbpp_mutations": 4}},
    "training": {"weight_ema": 0.995},
}


def resolve(preset: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of `preset`, by the recipe that `overrides` name, with `overrides` laid over it, section by section.

    Raises UnknownPreset, or ConfigError naming every field that is unknown, of the wrong type or out of range.
    """
    if preset not in PRESETS:
        raise UnknownPreset(preset)
    wanted = overrides or {}
    base = {"preset": preset, "recipe": wanted.get("recipe", "report"), **PRESETS[preset]}
    if base["recipe"] == "measured":
        if preset not in SPECIALISTS:
            raise ConfigError([{"field": "recipe", "message": f"only {', '.join(SPECIALISTS)} have a measured one"}])
        base = _merge(base, MEASURED)
    return overlaid(base, wanted)


def overlaid(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """A configuration with `overrides` laid over it, section by section; raises ConfigError."""
    try:
        merged = _merge(base, overrides)
    except RecursionError:
        raise ConfigError([{"field": "config", "message": "nested deeper than any configuration is"}]) from None
    for field in ("preset", "recipe"):
        if field in base and merged[field] != base[field]:
            raise ConfigError([{"field": field, "message": f"the {field} is {base[field]!r}; it cannot be overridden"}])
    return parse(merged)


def parse(tree: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain JSON values; raises ConfigError."""
    try:
        return RunConfig.model_validate_json(_to_json(tree))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        inner = {problem["loc"][:-1] for problem in problems}
        # Of a list whose items are wrong pydantic says besides that it is too short.
        raise ConfigError([_explain(each) for each in problems if each["type"] != "too_short" or each["loc"] not in inner]) from error


def overrides(settings: Iterable[str]) -> dict[str, Any]:
    """The tree that texts like "training.batch_size=8" spell; a value is JSON where it is JSON, else text. Raises ConfigError."""
    tree: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError([{"field": setting, "message": "write it as name=value"}])
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        set_path(tree, path, value)
    return tree


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at a dotted path such as "training.batch_size", making the sections on the way."""
    *names, leaf = path.split(".")
    for name in names:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError([{"field": path, "message": f"{name!r} is a value, not a section"}])
    tree[leaf] = value


def json_schema() -> dict[str, Any]:
    """JSON Schema of RunConfig: what the form and other clients are drawn from."""
    return RunConfig.model_json_schema()


def _to_json(tree: Mapping[str, Any]) -> str:
    # Strict mode tells 1.5 from "1.5" and 1 from true; going through JSON also lets a list be a tuple.
    if wild := list(_nonfinite(tree)):
        raise ConfigError([{"field": path, "message": "must be a finite number"} for path in wild])
    try:
        return json.dumps(tree)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([{"field": "config", "message": f"not plain JSON: {error}"}]) from error


def _nonfinite(tree: Any, path: str = "") -> Iterator[str]:
    """Paths of the numbers in `tree` that are NaN or infinite; JSON has none, but Python's parser lets them in."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _nonfinite(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, float) and not math.isfinite(tree):
        yield path


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and (isinstance(below, Mapping) or below is None):
            merged[key] = _merge(below or {}, value)
        else:
            merged[key] = value
    return merged


def _explain(problem: Any) -> dict[str, str]:
    """One pydantic error in our words, without echoing what was sent."""
    path = [str(part) for part in problem["loc"]]
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        message = f"unknown key {path[-1]!r}" + _suggest(path[-1], _keys_at(path[:-1]))
    elif problem["type"] == "literal_error":
        message = f"must be {problem['ctx']['expected']}" + _suggest(str(problem["input"]), get_args(DatasetName))
    elif problem["type"] == "too_short":
        message = f"must have at least {problem['ctx']['min_length']} item"
    elif problem["type"] == "value_error":
        field, _, rest = str(problem["ctx"]["error"]).partition(": ")
        return {"field": ".".join([*path, field]), "message": rest}
    return {"field": ".".join(path) or "config", "message": message}


def _keys_at(path: list[str]) -> Iterable[str]:
    section: Any = RunConfig
    for part in path:
        section = section.model_fields[part].annotation
    keys = list(section.model_fields)
    if section is RunConfig:  # "batch_size" at the top is most often a forgotten "training."
        keys += [f"{name}.{key}" for name in sections() for key in sections()[name].model_fields]
    return keys


def sections() -> dict[str, type[_Section]]:
    """The sections of a RunConfig by name, in the order they are shown."""
    return {
        "model": ModelConfig,
        "optimizer": OptimizerConfig,
        "data": DataConfig,
        "training": TrainingConfig,
        "evaluation": EvaluationConfig,
        "health": HealthConfig,
        "tracking": TrackingConfig,
    }


def _suggest(wrong: str, candidates: Iterable[str]) -> str:
    candidates = list(candidates)
    if wrong in candidates:  # "training.batch_size" as one key
        section, _, name = wrong.partition(".")
        return f"; write it as {{{section!r}: {{{name!r}: ...}}}}".replace("'", '"')
    inside = [name for name in candidates if name.rpartition(".")[2] == wrong]
    near = inside or difflib.get_close_matches(wrong, candidates, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
