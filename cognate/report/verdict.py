"""What the facts mean: findings with their remedies, and one verdict. Pure.

A blocker is what would keep the run from starting or from ending; a warning is what its owner should know before. That the
targets are out of reach is neither: it is a risk (risks.py), and training may begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cognate.config import SPECIALISTS, RunConfig
from cognate.report.facts import Facts
from cognate.report.projection import project_disk, project_time

Verdict = Literal["ready", "ready_with_warnings", "not_ready"]

TIGHT: Final = 0.9  # of the memory there is: what else the machine does comes and goes
BUSY: Final = 0.25  # of all processors' time: a step then takes noticeably longer than on a quiet machine
LONG_S: Final = 3600.0  # on a CPU: from here on its owner should know


@dataclass(frozen=True)
class Finding:
    code: str
    severity: Literal["blocker", "warning"]
    message: str
    remedy: str


def verdict(findings: Sequence[Finding]) -> Verdict:
    if any(finding.severity == "blocker" for finding in findings):
        return "not_ready"
    return "ready_with_warnings" if findings else "ready"


def judge(config: RunConfig, facts: Facts) -> tuple[Finding, ...]:
    """All findings, blockers first."""
    found = [*_data(config, facts), *_step(facts), *_memory(config, facts), *_disk(config, facts), *_device(config, facts), *_wandb(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity))  # "blocker" < "warning"; else as found


def _data(config: RunConfig, facts: Facts) -> Iterator[Finding]:
    plan = facts.plan
    if plan.error is not None:
        remedy = (
            "Give a data folder (COGNATE_DATA_DIR or --data) that holds the chosen datasets; docs/data.md lists its files. "
            "Or fetch them: cognate data fetch."
        )
        yield Finding("data_missing", "blocker", f"There is nothing to train on: {plan.error}.", remedy)
        return
    chosen = [dataset for dataset in plan.datasets if dataset.state != "not chosen"]
    if missing := [dataset for dataset in chosen if dataset.state == "missing"]:
        names = ", ".join(dataset.name for dataset in missing)
        remedy = "Add their Parquet files to the data folder, fetch them (cognate data fetch), or name the wanted ones in data.datasets."
        yield Finding(
            "datasets_missing", "warning", f"{len(missing)} of {len(chosen)} datasets are not there and are left out: {names}.", remedy
        )
    for dataset in chosen:
        if dataset.state == "partial":
            message = f"{dataset.name} has {dataset.train:,} of the {dataset.planned:,} training rows that were planned."
            yield Finding("dataset_partial", "warning", message, f"Replace its training file by the whole of {dataset.hub}.")
        if dataset.remark:
            remedy = f"Use a copy of {dataset.hub} with all its columns filled, or leave it out of data.datasets."
            yield Finding("dataset_thin", "warning", f"{dataset.name}: {dataset.remark}.", remedy)
    said = ("is left out", "are left out", "is incomplete")  # of what the missing datasets above tell better
    for sentence in plan.warnings:
        if not any(part in sentence for part in said):
            remedy = "Nothing needs to be done if this is what is wanted; else change the section data of the configuration."
            yield Finding("data_remark", "warning", f"{sentence[0].upper()}{sentence[1:]}.", remedy)


def _step(facts: Facts) -> Iterator[Finding]:
    if facts.trouble is not None:
        code, sentence = facts.trouble
        remedies = {
            "out_of_memory": "Lower training.micro_batch_size or training.sequence_length, or free memory.",
            "nonfinite_loss": "Lower the learning rates of the section optimizer, or set training.precision to fp32.",
            "step_failed": "Mend what the sentence names; no run of this configuration would get past its first step.",
        }
        yield Finding(code, "blocker", sentence, remedies[code])
    elif facts.probe is not None and (facts.probe.others_share or 0.0) > BUSY:
        message = f"Other processes took {facts.probe.others_share:.0%} of the processors' time while steps were timed."
        yield Finding("busy", "warning", message, "Ask again when the machine is quiet: the times below are too long.")
    elif facts.probe is None and facts.plan.error is None:
        reason = facts.absent.get("probe", "the probe did not run")
        yield Finding(
            "not_measured", "warning", f"Time and memory were not measured: {reason}.", "Ask again when the device is free, with the probe."
        )


def _memory(config: RunConfig, facts: Facts) -> Iterator[Finding]:
    free, probe = facts.machine.memory_free_bytes, facts.probe
    if free is None:
        return
    where = "the GPU" if facts.machine.device == "cuda" else "this machine"
    needed = probe.peak_bytes if probe is not None else facts.network.least_bytes
    if needed is None or needed <= TIGHT * free:
        return
    how = "measured" if probe is not None and probe.whole_steps else "extrapolated" if probe else "counted, before any activation"
    message = f"A step needs {_gib(needed)} of memory ({how}); {where} has {_gib(free)} free."
    remedy = "Lower training.micro_batch_size, training.sequence_length or the model, or free memory."
    yield Finding("memory", "blocker" if needed > free else "warning", message, remedy)


def _disk(config: RunConfig, facts: Facts) -> Iterator[Finding]:
    needed = project_disk(facts.plan, facts.network, config.training, facts.probe)
    free = facts.disk_free_bytes
    message = f"A run holds up to {_gib(needed.total_bytes)} ({needed.basis}); {_gib(free)} of disk are free."
    remedy = "Free disk, move COGNATE_HOME, or lower training.keep_checkpoints."
    if free < needed.for_one_bytes:
        yield Finding("disk", "blocker", message, remedy)
    elif free < needed.for_two_bytes:
        yield Finding("disk", "warning", f"{message} A second run would not fit.", remedy)


def _device(config: RunConfig, facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if config.training.device.startswith("cuda") and machine.device != "cuda":
        yield Finding("no_gpu", "blocker", "The configuration asks for a GPU, and none can be used.", "Set training.device to auto or cpu.")
    elif machine.device == "cpu" and config.preset in SPECIALISTS:
        took = project_time(facts.plan, facts.probe).total_s if facts.probe else None
        if took is None:
            yield Finding("no_gpu", "warning", "No GPU can be used; training runs on the CPU.", "Use a machine with an NVIDIA GPU.")
        elif took > LONG_S:
            message = f"No GPU can be used: on this CPU the {facts.plan.total_steps:,} steps take about {took / 3600:,.1f} hours."
            yield Finding("no_gpu", "warning", message, "Use a machine with an NVIDIA GPU, or set training.max_steps.")
    if config.training.precision == "bf16" and machine.has_native_bf16 is False:
        message = "training.precision is bf16, which this device does not multiply natively: less memory, no less time, less exact."
        yield Finding("slow_precision", "warning", message, "Set training.precision to auto.")
    if config.training.compile == "on" and machine.has_compiler is False:
        yield Finding("no_compiler", "warning", "training.compile is on, but there is no compiler.", "Install g++, or set it to auto.")


def _wandb(facts: Facts) -> Iterator[Finding]:
    wandb = facts.machine.wandb
    if wandb is not None and wandb["wanted"] == "online" and not wandb["key"]:
        remedy = "Set WANDB_API_KEY, or tracking.wandb to offline."
        yield Finding("wandb_key", "warning", "tracking.wandb is online, and there is no key: it would be written offline.", remedy)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
