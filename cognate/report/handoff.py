"""The hand-off to Phase 2: the three best models with all that is known of them, in one archive that proves itself.

    NAME_best.safetensors      the checkpoint with the smallest held-out loss; NAME is reasoning, memory or speed
    NAME_epoch_N.safetensors   the end of the last epoch that is still kept; N is that epoch
    NAME_config.json  NAME_tokenizer.json
    NAME_metrics.csv           the training history: a row a logged step, a column each of the 37 metrics
    NAME_evaluation.json  diversity.json      where there are results for exactly these weights
    expected_logits.safetensors               of a fixed text: what each best model must say when it is loaded
    manifest.json              sha-256 of every other file and of itself, parameters, seeds, what is absent and why
    README.md                  how to load it

A tar, not compressed: weights do not compress, every system unpacks it, and no size limit is near. Owners, times and order are fixed,
so equal inputs give equal bytes. Before it gets its name a new process loads it and checks everything (verify.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save

from cognate import __version__
from cognate.config import SPECIALISTS
from cognate.events import spelled
from cognate.jobdir import JobContext, JobFailed
from cognate.report.history import Chosen, History, NothingSaved, best, last_epoch_end, metrics_csv, read_history
from cognate.report.verify import EXPECTED, FOLDER, PARAMETERS, BadArchive, logits_of, verify_in_new_process
from cognate.rundir import MANIFEST, CorruptCheckpoint, RunDir, digest_of_manifest, file_digest, verify_checkpoint
from cognate.training.checkpoint import load_model, weights_file

PROBE: Final = "Question: Ada has 12 apples and buys 7 more. How many apples does Ada have now?\nAnswer:"

Say = Callable[[str, float | None], None]


class NotFit(RuntimeError):
    """What was asked for is not what Phase 2 can take; `problems` are sentences."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


@dataclass(frozen=True)
class Entry:
    """A file of the archive: bytes, or a path whose content has the digest."""

    content: bytes | Path
    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Entry:
        return cls(content, len(content), hashlib.sha256(content).hexdigest())


@dataclass
class Model:
    """One of the three, as it will lie in the archive."""

    name: str
    run: RunDir
    history: History
    chosen: Chosen
    described: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def build(
    runs: Sequence[RunDir],
    target: Path,
    *,
    evaluations: Sequence[Mapping[str, Any]] = (),
    diversity: Mapping[str, Any] | None = None,
    allow_any_size: bool = False,
    say: Say = lambda sentence, fraction: None,
) -> dict[str, Any]:
    """Write the archive and have it checked; its manifest. Raises NotFit, NothingSaved, CorruptCheckpoint or BadArchive.

    evaluations, diversity: results as `cognate evaluate` and `cognate report diversity` give them; they count where they are of exactly
                            the weights that are handed off
    allow_any_size: take models of other sizes and presets too; the manifest then says that they are not fit for Phase 2
    """
    if len(runs) != len(SPECIALISTS):
        raise NotFit([f"a hand-off has three models, not {len(runs)}"])
    models = _name([(run, best(run)) for run in runs])
    expected: dict[str, torch.Tensor] = {}
    for number, model in enumerate(models):
        say(f"reading {model.name}", number / 6)
        expected |= _gather(model)
    problems = _problems(models)
    if problems and not allow_any_size:
        raise NotFit(problems)
    for model in models:
        _attach(model, evaluations)
    files = {name: entry for model in models for name, entry in model.files.items()}
    absent = {model.name: model.absent for model in models if model.absent}
    if diversity is not None and {each.get("model_sha256") for each in diversity["members"]} == {_digest(model) for model in models}:
        files["diversity.json"] = Entry.of(_json(diversity))
    else:
        absent["diversity"] = {"diversity.json": _why_no_diversity(diversity)}
    files[EXPECTED] = Entry.of(save(expected))
    files["README.md"] = Entry.of(_readme(models, problems).encode())
    manifest: dict[str, Any] = {
        "format": 1,
        "cognate": __version__,
        "fit_for_phase_2": not problems,
        "not_fit_because": problems,
        "allow_any_size": allow_any_size,
        "probe": PROBE,
        "models": spelled([model.described for model in models]),
        "absent": absent,
        "files": {name: {"bytes": entry.size, "sha256": entry.sha256} for name, entry in sorted(files.items())},
    }
    manifest["sha256"] = digest_of_manifest(manifest)
    say("writing the archive", 0.5)
    _write(target, {MANIFEST: Entry.of(_json(manifest)), **dict(sorted(files.items()))}, say)
    return manifest


def perform(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `handoff`: run_ids of three runs, evaluations and diversity as build() has them, allow_any_size; makes archive.tar.

    as_of: what the service will know the archive's age by; handed back
    """
    target = context.folder / "archive.tar"
    try:
        manifest = build(
            [context.run(run_id) for run_id in spec["run_ids"]],
            target,
            evaluations=spec["evaluations"],
            diversity=spec["diversity"],
            allow_any_size=spec["allow_any_size"],
            say=context.say,
        )
    except NotFit as error:
        raise JobFailed("not_fit", str(error)) from error
    except NothingSaved as error:
        raise JobFailed("checkpoint_missing", str(error)) from error
    except (CorruptCheckpoint, FileNotFoundError) as error:  # also one that training has replaced meanwhile
        raise JobFailed("checkpoint_corrupt", str(error)) from error
    except BadArchive as error:
        raise JobFailed("archive_refused", str(error)) from error
    made = {"file": target.name, "bytes": target.stat().st_size, "sha256": file_digest(target), "manifest": manifest}
    return {**made, "as_of": spec["as_of"]}


# --- the models -------------------------------------------------------------------------------------------


def _name(found: Sequence[tuple[RunDir, Chosen]]) -> list[Model]:
    """In the order of the specialists, whatever the order asked for; a preset that comes twice is numbered."""
    histories = [(read_history(run), chosen) for run, chosen in found]
    presets = [history.config.preset for history, _ in histories]

    def place(each: tuple[History, Chosen]) -> tuple[int, str, str]:
        preset = each[0].config.preset
        return SPECIALISTS.index(preset) if preset in SPECIALISTS else len(SPECIALISTS), preset, each[0].run.path.name

    models: list[Model] = []
    for history, chosen in sorted(histories, key=place):
        preset = history.config.preset
        number = 1 + sum(model.history.config.preset == preset for model in models)
        models.append(Model(preset if presets.count(preset) == 1 else f"{preset}_{number}", history.run, history, chosen))
    return models


def _gather(model: Model) -> dict[str, torch.Tensor]:
    """Take up the files of a model and what is said of it; the tensors by which it will be recognised."""
    of_best = verify_checkpoint(model.chosen.path)
    net, tokenizer = load_model(model.chosen.path)
    tokens = tokenizer.encode(PROBE)
    config, history = model.history.config, model.history
    model.files |= {
        f"{model.name}_best.safetensors": _file(model.chosen.path, of_best, weights_file(model.chosen.path).name),
        f"{model.name}_config.json": _file(model.chosen.path, of_best, "config.json"),
        f"{model.name}_tokenizer.json": _file(model.chosen.path, of_best, "tokenizer.json"),
        f"{model.name}_metrics.csv": Entry.of(metrics_csv(history).encode()),
    }
    model.described |= {
        "name": model.name,
        "run": model.run.path.name,
        "preset": config.preset,
        "seed": config.seed,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "best": {"step": model.chosen.step, "val_loss": model.chosen.val_loss, "chosen_because": model.chosen.why},
        "trained_steps": history.rows[-1].step if history.rows else None,
        "training_is_finished": history.is_finished,
        "tokenizer_sha256": tokenizer.digest,
        "versions": of_best["versions"],
    }
    if (end := last_epoch_end(history)) is not None:
        epoch, chosen = end
        model.files[f"{model.name}_epoch_{epoch}.safetensors"] = _file(
            chosen.path, verify_checkpoint(chosen.path), weights_file(chosen.path).name
        )
        model.described["last_epoch_end"] = {"epoch": epoch, "step": chosen.step, "val_loss": chosen.val_loss}
    else:
        model.absent[f"{model.name}_epoch_N.safetensors"] = "no checkpoint of the end of an epoch is kept"
    return {f"{model.name}.tokens": torch.tensor(tokens), f"{model.name}.logits": logits_of(net, tokens)}


def _file(folder: Path, manifest: Mapping[str, Any], name: str) -> Entry:
    known = manifest["files"][name]
    return Entry(folder / name, known["bytes"], known["sha256"])


def _digest(model: Model) -> str:
    return model.files[f"{model.name}_best.safetensors"].sha256


def _problems(models: Sequence[Model]) -> list[str]:
    """Why the models are not those that Phase 2 was promised."""
    least, most = PARAMETERS
    problems = [
        f"{model.name} ({model.run.path.name}) has {model.described['parameters']:,} parameters, not {least:,} to {most:,}"
        for model in models
        if not least <= model.described["parameters"] <= most
    ]
    presets = [model.history.config.preset for model in models]
    if presets != list(SPECIALISTS):
        problems.append(f"the presets are {', '.join(presets)}, not {', '.join(SPECIALISTS)}")
    return problems


def _attach(model: Model, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Enclose the most thorough evaluation of these weights, of equals the newest."""
    of_best = [each for each in evaluations if each["checkpoint"]["model_sha256"] == _digest(model)]
    name = f"{model.name}_evaluation.json"
    if of_best:
        model.files[name] = Entry.of(_json(max(reversed(of_best), key=_items)))
    else:
        model.absent[name] = "no evaluation of these weights was given"


def _items(evaluation: Mapping[str, Any]) -> int:
    """How much it stands on: items, over all datasets. Not n of a figure: WikiText's counts tokens."""
    return sum(found.get("item_count", 0) for found in evaluation["datasets"].values())


def _why_no_diversity(diversity: Mapping[str, Any] | None) -> str:
    return "no diversity report was given" if diversity is None else "the diversity report that was given is of other weights"


# --- the archive ------------------------------------------------------------------------------------------


def _write(target: Path, files: Mapping[str, Entry], say: Say) -> None:
    """Write beside the target, have it checked by a new process, then give it its name."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for name, entry in files.items():
                    with _open(entry) as content:
                        archive.addfile(_header(name, entry), content)
            out.flush()
            os.fsync(out.fileno())
        say("loading the archive in a new process", 0.75)
        verify_in_new_process(temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _header(name: str, entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(f"{FOLDER}/{name}")  # owner 0, time 0, no names: the same wherever it is made
    header.size, header.mode = entry.size, 0o644
    return header


def _open(entry: Entry) -> io.BufferedIOBase:
    return io.BytesIO(entry.content) if isinstance(entry.content, bytes) else entry.content.open("rb")


def _json(value: Any) -> bytes:
    return json.dumps(spelled(value), indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


# --- how to load it ---------------------------------------------------------------------------------------


def _readme(models: Sequence[Model], problems: Sequence[str]) -> str:
    rows = "\n".join(
        f"| {model.name} | {model.described['parameters']:,} | {model.described['seed']} | {model.chosen.step} | {_loss(model)} "
        f"| {model.chosen.why} | {'yes' if model.history.is_finished else 'no'} |"
        for model in models
    )
    warning = "".join(f"\n**Not fit for Phase 2:** {problem}.\n" for problem in problems)
    names = ", ".join(repr(model.name) for model in models)
    return _README.format(rows=rows, warning=warning, names=names, version=__version__)


def _loss(model: Model) -> str:
    return "not measured" if model.chosen.val_loss is None else f"{model.chosen.val_loss:.4f}"


_README: Final = """# Cognate, Phase 1: three models
{warning}
| model | parameters | seed | step | held-out loss, nats/token | chosen for | training finished |
|---|---|---|---|---|---|---|
{rows}

`manifest.json` has the sha-256 of every file, and what is absent and why. To check everything, the loaded models' answers included:

    python -m cognate.report.verify .

To load them, with cognate {version} installed:

```python
import json
from pathlib import Path

from safetensors.torch import load_file

from cognate.config import parse
from cognate.data.tokenizer import Tokenizer
from cognate.model import Cognate


def load(name, folder=Path()):
    model = Cognate(parse(json.loads((folder / f"{{name}}_config.json").read_text())).model)
    model.load_state_dict(load_file(folder / f"{{name}}_best.safetensors"))
    return model.eval(), Tokenizer.load(folder / f"{{name}}_tokenizer.json")


models = {{name: load(name) for name in ({names})}}


def write(name, prompt, max_new_tokens=64):
    model, tokenizer = models[name]
    made = model.generate([tokenizer.encode(prompt)], max_new_tokens, stop={{tokenizer.end_id}}, vocab_size=tokenizer.vocab_size)
    return tokenizer.decode(made.tokens[0])
```

`write` continues a prompt, in the form of manifest.json's `probe`. `model(tokens).logits` are those of the next token at every position,
[batch, time, vocabulary]; a tokenizer may have fewer tokens than its model has places.
"""
