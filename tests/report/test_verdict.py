"""What facts mean: a table of one changed fact each, and what is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cognate.config import resolve
from cognate.report.facts import Dataset, Facts, Machine, Network, Plan, Probe
from cognate.report.verdict import Finding, judge, verdict

GIB = 2**30
PROBE = Probe(
    whole_steps=3, rows=16, rows_at_once=16, step_s=0.5, optimizer_s=0.1, tokens_per_s=16384.0, peak_bytes=4 * GIB, metrics_line_bytes=700,
    progress_line_bytes=300, seconds=10.0, others_share=None, basis="median of 3 whole steps, not compiled",
)  # fmt: skip
DATASET = Dataset("gsm8k", "math", "openai/gsm8k (main)", 1, "present", 7473, 0, 1319, 7473, 7473)
FACTS = Facts(
    machine=Machine("3.11", "2.13", 2, "cuda", "GPU", "8.0", 24 * GIB, 23 * GIB, "bfloat16", True, True),
    plan=Plan("folder", "/data", (DATASET,), (), steps_per_epoch=(100, 100), total_steps=200, epochs=2),
    network=Network(27_000_000, {}, (), 108_000_000, 216_000_000),
    disk_free_bytes=500 * GIB,
    probe=PROBE,
)
CPU = replace(FACTS.machine, device="cpu", gpu=None, compute_capability=None)
CONFIG = resolve("reasoning")


def found(facts: Facts = FACTS, config: Any = CONFIG) -> dict[str, str]:
    return {finding.code: finding.severity for finding in judge(config, facts)}


def test_nothing_is_found_where_all_is_well() -> None:
    assert judge(CONFIG, FACTS) == ()
    assert verdict(()) == "ready"


@pytest.mark.parametrize(
    ("changed", "code", "severity"),
    [
        ({"plan": replace(FACTS.plan, error="the data folder does not exist")}, "data_missing", "blocker"),
        ({"plan": replace(FACTS.plan, datasets=(replace(DATASET, state="missing"),))}, "datasets_missing", "warning"),
        ({"plan": replace(FACTS.plan, datasets=(replace(DATASET, state="partial"),))}, "dataset_partial", "warning"),
        ({"plan": replace(FACTS.plan, datasets=(replace(DATASET, remark="half are empty"),))}, "dataset_thin", "warning"),
        ({"plan": replace(FACTS.plan, warnings=("no dataset of stage 1 is available",))}, "data_remark", "warning"),
        ({"trouble": ("out_of_memory", "too large"), "probe": None}, "out_of_memory", "blocker"),
        ({"trouble": ("nonfinite_loss", "NaN"), "probe": None}, "nonfinite_loss", "blocker"),
        ({"trouble": ("step_failed", "no kernel"), "probe": None}, "step_failed", "blocker"),
        ({"probe": None, "absent": {"probe": "the GPU is at work"}}, "not_measured", "warning"),
        ({"probe": replace(PROBE, others_share=0.4)}, "busy", "warning"),
        ({"probe": replace(PROBE, peak_bytes=22 * GIB)}, "memory", "warning"),
        ({"probe": replace(PROBE, peak_bytes=24 * GIB)}, "memory", "blocker"),
        ({"disk_free_bytes": GIB // 2}, "disk", "blocker"),
        ({"disk_free_bytes": GIB}, "disk", "warning"),
        ({"machine": CPU, "probe": replace(PROBE, step_s=60.0)}, "no_gpu", "warning"),
        (
            {"machine": replace(FACTS.machine, wandb={"installed": True, "key": False, "wanted": "online", "mode": "offline"})},
            "wandb_key",
            "warning",
        ),
    ],
)
def test_each_fact_has_its_finding(changed: dict[str, Any], code: str, severity: str) -> None:
    assert found(replace(FACTS, **changed)) == {code: severity}


@pytest.mark.parametrize(
    ("setting", "machine", "code", "severity"),
    [
        ({"device": "cuda"}, CPU, "no_gpu", "blocker"),
        ({"precision": "bf16"}, replace(FACTS.machine, has_native_bf16=False), "slow_precision", "warning"),
        ({"compile": "on"}, replace(FACTS.machine, has_compiler=False), "no_compiler", "warning"),
    ],
)
def test_what_is_asked_for_must_be_there(setting: dict[str, Any], machine: Machine, code: str, severity: str) -> None:
    assert found(replace(FACTS, machine=machine), resolve("reasoning", {"training": setting})) == {code: severity}


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, machine=CPU),  # the run takes less than an hour
        replace(FACTS, plan=replace(FACTS.plan, datasets=(replace(DATASET, state="not chosen", remark="half are empty"),))),
        replace(FACTS, plan=replace(FACTS.plan, warnings=("drop is not in the data folder (drop) and is left out",))),  # told elsewhere
        replace(FACTS, probe=replace(PROBE, peak_bytes=None)),
        replace(FACTS, machine=replace(FACTS.machine, memory_free_bytes=None)),
        replace(FACTS, machine=replace(FACTS.machine, wandb={"installed": True, "key": False, "wanted": "auto", "mode": "offline"})),
    ],
)
def test_what_harms_nobody_is_not_found(facts: Facts) -> None:
    assert found(facts) == {}


def test_without_a_step_the_weights_alone_are_held_against_the_memory() -> None:
    facts = replace(FACTS, probe=None, machine=replace(FACTS.machine, memory_free_bytes=GIB // 4))
    assert found(facts) == {"memory": "blocker", "not_measured": "warning"}


def test_one_blocker_is_enough_and_comes_first() -> None:
    facts = replace(FACTS, disk_free_bytes=0, plan=replace(FACTS.plan, datasets=(replace(DATASET, state="missing"),)))
    findings = judge(CONFIG, facts)
    assert [finding.severity for finding in findings] == ["blocker", "warning"]
    assert verdict(findings) == "not_ready"
    assert verdict(findings[1:]) == "ready_with_warnings"


def test_every_finding_says_what_to_do() -> None:
    everything = replace(
        FACTS, machine=CPU, disk_free_bytes=0, probe=None, trouble=("step_failed", "no kernel."),
        plan=replace(FACTS.plan, datasets=(replace(DATASET, state="partial", remark="thin"), replace(DATASET, state="missing"))),
    )  # fmt: skip
    findings = judge(CONFIG, everything)
    assert len(findings) == 6
    assert all(isinstance(each, Finding) and each.message.endswith(".") and each.remedy.endswith(".") for each in findings)
