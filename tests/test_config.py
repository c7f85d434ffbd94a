"""config.py: what is accepted, what is refused, and in which words."""

from collections.abc import Iterator
from typing import Any

import pytest

from cognate.config import (
    MEASURED,
    PRESETS,
    SIX_DATASETS,
    ConfigError,
    RunConfig,
    UnknownPreset,
    json_schema,
    overlaid,
    parse,
    resolve,
    set_path,
)


def problems(overrides: dict[str, Any], preset: str = "reasoning") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        resolve(preset, overrides)
    return {problem["field"]: problem["message"] for problem in caught.value.problems}


def test_a_wrong_item_of_a_list_is_one_error() -> None:
    assert list(problems({"data": {"datasets": ["gsm8kk"]}})) == ["data.datasets.0"]
    assert problems({"data": {"datasets": []}}) == {"data.datasets": "must have at least 1 item"}


def leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_survives_json(preset: str) -> None:
    """config.json is written from the one and read into the other."""
    config = resolve(preset)
    assert parse(config.model_dump(mode="json")) == config


def test_the_specialists_carry_the_reports_numbers() -> None:
    """docs/model.md's table, so that a changed default cannot change a specialist unseen."""
    numbers = {
        name: (
            config.model.act_threshold,
            config.model.act_delta,
            config.model.recursions,
            config.model.memory_capacity,
            config.model.surprise_threshold,
            config.seed,
        )
        for name in ("reasoning", "memory", "speed")
        for config in [resolve(name)]
    }
    assert numbers == {
        "reasoning": (0.95, 0.0, 3, 4096, 0.7, 42),
        "memory": (0.90, 0.05, 3, 8192, 0.5, 1337),
        "speed": (0.99, 0.5, 2, 2048, 0.3, 2023),
    }
    optimizer = resolve("reasoning").optimizer
    assert (optimizer.muon_lr, optimizer.grokfast_alpha, optimizer.grokfast_lambda, optimizer.qk_clip) == (1e-3, 0.98, 0.3, 30.0)


def test_a_specialist_is_never_trained_on_generated_problems_unasked() -> None:
    """Nothing is invented to fill a gap: without data such a run fails and says how to give it some."""
    assert {resolve(name).data.source for name in ("reasoning", "memory", "speed")} == {"real"}
    assert resolve("quickstart").data.source == "auto"


def test_overrides_lie_over_the_preset_and_leave_the_rest() -> None:
    config = resolve("memory", {"training": {"batch_size": 4}, "seed": 1})
    assert (config.training.batch_size, config.seed) == (4, 1)
    assert config.model == resolve("memory").model


def test_a_recipe_changes_what_it_names_and_gives_way_to_a_persons_own_numbers() -> None:
    own = {"optimizer": {"muon_lr": 2e-3}}
    report, measured = (
        dict(leaves(resolve("memory", {"recipe": recipe, **own}).model_dump(mode="json"))) for recipe in ("report", "measured")
    )
    assert report == dict(leaves(resolve("memory", own).model_dump(mode="json")))
    changed = {path: value for path, value in measured.items() if value != report[path]}
    expected = {"recipe": "measured", **dict(leaves(MEASURED))}
    del expected["optimizer.muon_lr"]
    assert changed == expected


def test_only_a_specialist_has_a_measured_recipe() -> None:
    assert problems({"recipe": "measured"}, "quickstart") == {"recipe": "only reasoning, memory, speed have a measured one"}


def test_a_fork_cannot_change_the_recipe() -> None:
    with pytest.raises(ConfigError, match="the recipe is 'report'; it cannot be overridden"):
        overlaid(resolve("memory").model_dump(mode="json"), {"recipe": "measured"})


@pytest.mark.parametrize(
    ("overrides", "field", "words"),
    [
        ({"training": {"batchsize": 4}}, "training.batchsize", "did you mean 'batch_size'"),
        ({"batch_size": 4}, "batch_size", "did you mean 'training.batch_size'"),
        ({"training.batch_size": 4}, "training.batch_size", 'write it as {"training": {"batch_size": ...}}'),
        ({"trainig": {}}, "trainig", "did you mean 'training'"),
        ({"training": {"batch_size": 0}}, "training.batch_size", "greater than or equal to 1"),
        ({"training": {"batch_size": "4"}}, "training.batch_size", "integer"),
        ({"training": {"batch_size": True}}, "training.batch_size", "integer"),
        ({"training": {"max_steps": 1.5}}, "training.max_steps", "integer"),
        ({"training": {"device": "cuda:x"}}, "training.device", "pattern"),
        ({"training": 5}, "training", "object"),
        ({"optimizer": {"muon_lr": float("nan")}}, "optimizer.muon_lr", "finite"),
        ({"optimizer": {"muon_lr": float("inf")}}, "optimizer.muon_lr", "finite"),
        ({"model": {"n_heads": 7}}, "model.n_heads", "do not divide"),
        ({"model": {"supervision_weights": [0.1, 0.0]}}, "model.supervision_weights", "above 0"),
        ({"data": {"datasets": ["gsm9k"]}}, "data.datasets.0", "did you mean 'gsm8k'"),
        ({"data": {"datasets": []}}, "data.datasets", "at least 1"),
        ({"preset": "memory"}, "preset", "cannot be overridden"),
        ({"recipe": "measurd"}, "recipe", "must be 'report' or 'measured'"),
        ({"tracking": {"wandb": "yes"}}, "tracking.wandb", "must be 'auto', 'off', 'offline' or 'online'"),
        ({"tracking": {"project": "../x"}}, "tracking.project", "pattern"),
        ({"schema_version": 2}, "schema_version", "must be 1"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_field_and_the_way_out(overrides: dict[str, Any], field: str, words: str) -> None:
    """A typo that is silently ignored costs a night."""
    assert words in problems(overrides)[field]


def test_every_fault_is_named_at_once() -> None:
    assert set(problems({"seed": -1, "training": {"epochs": 0, "x": 1}})) == {"seed", "training.epochs", "training.x"}


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UnknownPreset, match="did you mean 'reasoning'"):
        resolve("resoning")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve("speed").training.batch_size = 3  # type: ignore[misc]


def test_set_path_makes_the_sections_on_the_way() -> None:
    tree: dict[str, Any] = {}
    set_path(tree, "training.batch_size", 8)
    set_path(tree, "seed", 3)
    assert tree == {"training": {"batch_size": 8}, "seed": 3}
    with pytest.raises(ConfigError, match="is a value, not a section"):
        set_path(tree, "seed.x", 1)


def test_every_parameter_says_what_it_is_for() -> None:
    """The form and the docs are drawn from the schema: a parameter without a description would be a riddle there."""
    schema = json_schema()
    for section in ("ModelConfig", "OptimizerConfig", "DataConfig", "AugmentConfig", "TrainingConfig"):
        for name, field in schema["$defs"][section]["properties"].items():
            assert field.get("description") or "$ref" in field, f"{section}.{name}"
    assert set(RunConfig.model_fields) >= {"model", "optimizer", "data", "training", "seed"}


def test_the_six_dataset_plan_can_be_named() -> None:
    assert resolve("reasoning", {"data": {"datasets": list(SIX_DATASETS)}}).data.datasets == SIX_DATASETS
