"""`cognate train | data | generate | evaluate | average | report | mirror`: the service's runs, here, with progress on the terminal.

A run made here is a run directory like any other; Ctrl-C, SIGTERM or a closed terminal saves it, and --resume goes on with it. generate
lets a checkpoint write; evaluate measures it on held-out data; average makes one of several; mirror brings Weights & Biases up to what a
run's journals say.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cognate import offline, wandbfile, worker
from cognate.config import SPECIALISTS, ConfigError, RunConfig, overrides, resolve
from cognate.data.cli import DataOption, cache_dir, dataset_names
from cognate.data.cli import app as datasets
from cognate.data.files import DataUnreadable, has_any
from cognate.data.tokenizer import Tokenizer
from cognate.events import Event, Kind, spelled
from cognate.model.generate import NewToken, seed_of_row
from cognate.precision import use_whole_vectors
from cognate.report.cli import app as reports
from cognate.report.cli import show_diversity
from cognate.report.diversity import measure_runs
from cognate.report.evaluation import evaluate_checkpoint
from cognate.report.history import NothingSaved, read_history
from cognate.rundir import (
    MANIFEST,
    Control,
    CorruptCheckpoint,
    Places,
    RunDir,
    append_afterwards,
    lease_is_free,
    read_json,
    take_lease,
    write_control,
)
from cognate.training.average import NotAlike, soup
from cognate.training.checkpoint import load_model
from cognate.visible import Screen, echo, visible

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.add_typer(datasets, name="data")
app.add_typer(reports, name="report")
console = Screen(highlight=False)

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# As shells know them: 130 is what Ctrl-C leaves.
_EXIT_CODES = {Kind.FINISHED: 0, Kind.FAILED: 1, Kind.PAUSED: 130, Kind.STOPPED: 130}


@app.command()
def train(
    preset: Annotated[str | None, typer.Argument(help="reasoning, memory, speed or quickstart.")] = None,
    specialization: Annotated[str | None, typer.Option(help="The same as PRESET.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The three specialists, one after another, and how they differ.")] = False,
    settings: Annotated[list[str], typer.Option("--set", help="A parameter, such as training.batch_size=8; may be repeated.")] = [],  # noqa: B006
    batch_size: Annotated[int | None, typer.Option(help="The same as --set training.batch_size=N.")] = None,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="The same as --set training.precision=bf16.")] = False,
    data: DataOption = None,
    output: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("var/cli"),
    resume: Annotated[Path | None, typer.Option(help="Go on with this run directory.")] = None,
) -> None:
    """Train a preset here, in this process, without the service."""
    places = Places(data, cache_dir())
    if resume is not None:
        if preset or specialization or every or settings or batch_size or mixed_precision:
            raise typer.BadParameter("--resume goes on with a run as it was configured; it takes no preset and no settings")
        raise typer.Exit(_EXIT_CODES[_attempt(_resumable(resume), places)])
    named = tuple(name for name in (preset, specialization) if name is not None)
    if len(named) + every != 1:
        raise typer.BadParameter("name one preset, or --all")
    shortcuts = [f"training.batch_size={batch_size}"] if batch_size is not None else []
    shortcuts += ["training.precision=bf16"] if mixed_precision else []
    try:
        configs = [resolve(name, overrides([*shortcuts, *settings])) for name in (SPECIALISTS if every else named)]
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    runs = []
    for config in configs:
        runs.append(_new_run(output, config))
        if (ending := _attempt(runs[-1], places)) is not Kind.FINISHED:
            raise typer.Exit(_EXIT_CODES[ending])
    if every:
        _compare(runs, places)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory: its newest checkpoint.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help='What to continue, such as "Question: ... Answer:"; may be repeated.')
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token; above, one is drawn.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from this many likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    halting: Annotated[bool, typer.Option(help="Stop thinking about a token once the halting head says so.")] = True,
    recursions: Annotated[int | None, typer.Option(min=1, max=64, help="The most recursions to spend on a token.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object a prompt: text, tokens, depths, seconds.")] = False,
) -> None:
    """Let a checkpoint continue prompts; from standard input, a line each, where none is given."""
    try:
        model, tokenizer = load_model(_checkpoint_in(checkpoint))
    except CorruptCheckpoint as error:
        raise typer.BadParameter(visible(str(error), sys.stderr)) from error
    use_whole_vectors(model.embedding.weight.device)
    for number, text in enumerate(prompt or _lines_of_input()):
        if any("\udc80" <= letter <= "\udcff" for letter in text):  # os.fsdecode, of bytes that are none
            raise typer.BadParameter("the prompt is not UTF-8")
        prompt_tokens = tokenizer.encode(text)
        if not prompt_tokens:
            raise typer.BadParameter("the prompt is empty: there is nothing to continue")
        written = model.stream(
            [prompt_tokens], max_new_tokens, temperature=temperature, top_k=top_k, stop={tokenizer.end_id},
            seed=[seed_of_row(seed, number)], vocab_size=tokenizer.vocab_size, adaptive=halting, recursions=recursions,
        )  # fmt: skip
        _tell(text, written, tokenizer, as_json)


def _lines_of_input() -> Iterator[str]:
    """Read as bytes, so that the locale does not decide what is refused."""
    return (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory: its newest checkpoint.")],
    datasets: Annotated[str | None, typer.Option(help="Names with commas between; without it, all that are there.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="A fixed sample of so many items a dataset; without it, every item.")] = None,
    with_untrained: Annotated[bool, typer.Option("--untrained/--no-untrained", help="Measure the untrained model as well.")] = True,
    calculator: Annotated[bool, typer.Option("--calculator", help="Also measure numbers with a calculator behind <<expression=.")] = False,
    vote: Annotated[int | None, typer.Option(min=2, max=100, help="Also measure the majority of so many drawn answers.")] = None,
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="Count the items that share 13 words in a row with the training text.")
    ] = True,
    with_referee: Annotated[bool, typer.Option("--referee", help="Let lm-evaluation-harness measure the same items.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as one object.")] = False,
    data: DataOption = None,
) -> None:
    """Measure a checkpoint on held-out data of the 14 datasets."""
    if data is None and not has_any(None, cache_dir()):
        raise typer.BadParameter("name the folder with --data or COGNATE_DATA_DIR: evaluation items come from real datasets only")
    places = Places(data, cache_dir())
    try:
        made = evaluate_checkpoint(
            _checkpoint_in(checkpoint),
            places,
            worker.choose_device("auto"),
            dataset_names(datasets),
            limit,
            calculator=calculator,
            votes=vote or 0,
            with_untrained=with_untrained,
            with_overlap=overlap,
            with_referee=with_referee,
            say=lambda line: echo(line, err=True),
        )
    except CorruptCheckpoint as error:
        raise typer.BadParameter(visible(str(error), sys.stderr)) from error
    if as_json:
        echo(json.dumps(spelled(made), ensure_ascii=False))
    else:
        _show_evaluation(made)


@app.command("average")
def average_runs(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints, or run directories: their newest checkpoints.")],
    output: Annotated[Path, typer.Option(help="Folder to make for the checkpoint.")],
) -> None:
    """Average the weights of several checkpoints into one that can be evaluated (a model soup)."""
    if len(checkpoints) < 2:
        raise typer.BadParameter("name two checkpoints or more")
    try:
        remarks = soup([_checkpoint_in(folder) for folder in checkpoints], output)
    except (NotAlike, CorruptCheckpoint) as error:
        raise typer.BadParameter(visible(str(error), sys.stderr)) from error
    except FileExistsError as error:
        raise typer.BadParameter(f"{output} exists already") from error
    for sentence in remarks:
        console.print(f"[yellow]warning:[/yellow] {escape(sentence)}")
    console.print(escape(f"the mean of {len(checkpoints)} checkpoints; measure it with: cognate evaluate {output}"))


def main() -> None:
    app(prog_name="cognate")


def _tell(prompt: str, written: Iterable[NewToken], tokenizer: Tokenizer, as_json: bool) -> None:
    """Print a text as it comes, or an object when it is whole."""
    tokens: list[int] = []
    depths: list[int] = []
    text, shown = "", 0
    began = time.monotonic()
    for new in written:
        tokens.append(new.token)
        depths.append(new.depth)
        text = tokenizer.decode(tokens)
        if not as_json and not text.endswith("\ufffd"):  # else a character is still incomplete
            echo(text[shown:], nl=False)
            shown = len(text)
    seconds = time.monotonic() - began
    if as_json:
        echo(json.dumps({"prompt": prompt, "text": text, "tokens": tokens, "depths": depths, "seconds": seconds}, ensure_ascii=False))
    else:
        echo(text[shown:])
        mean = sum(depths) / len(depths)
        echo(f"{len(tokens)} tokens, {len(tokens) / seconds:.0f} a second, {mean:.2f} recursions a token", err=True)


def _show_evaluation(made: dict[str, Any]) -> None:
    """One line a figure, then what the table has no room for."""
    table = Table("dataset", "figure", "n", "value", "95 %", "chance", "untrained", "target", "forecast", "", box=None)
    for name, each in made["datasets"].items():
        for figure, found in each["figures"].items():
            interval = f"{found['low']:.3f}-{found['high']:.3f}" if "low" in found else ""
            chance = f"{each['chance']:.3f}" if figure in (each["figure"], "acc") else ""
            before = f"{each['untrained'][figure]['value']:.3f}" if figure in (each["untrained"] or {}) else ""
            ranges = ("-".join(f"{end:g}" for end in each[kind].get(figure, ())) for kind in ("targets", "forecasts"))
            told = {True: "met", False: "not met", None: "undecided"}
            met = told[each["met"][figure]] if figure in each["met"] else "no target" if figure == each["figure"] else ""
            table.add_row(name, figure, f"{found['n']:,}", f"{found['value']:.3f}", interval, chance, before, *ranges, met)
    console.print(table)
    for name, each in made["datasets"].items():
        notes = [each["rows"], *each["remarks"], *(f"no {figure}: {reason}" for figure, reason in each["absent"].items())]
        console.print(f"{name}: {'; '.join(notes)}", markup=False)
    for title in ("absent", "overlap", "referee"):
        for name, found in made.get(title, {}).items():
            console.print(f"{title}: {name}: {found if isinstance(found, str) else json.dumps(found)}", markup=False)
    for sentence in made["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(sentence)}")


@app.command("mirror")
def mirror_run(
    folder: Annotated[Path, typer.Argument(help="A run directory.")],
    online: Annotated[bool, typer.Option("--online", help="Send it to W&B (WANDB_API_KEY) instead of writing files.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only read the offline files back and compare them with the journals.")] = False,
) -> None:
    """Bring a run's Weights & Biases files up to now, or only check them."""
    run = RunDir(folder.resolve())
    if not run.config_file.is_file():
        raise typer.BadParameter(f"{folder} is no run directory: it has no {run.config_file.name}")
    try:
        if not check:
            made = subprocess.run([sys.executable, "-m", "cognate.mirror", *["--online"] * online, str(run.path)], stdin=subprocess.DEVNULL)
            if made.returncode or read_json(run.mirror)["mode"] == "online":
                raise typer.Exit(made.returncode)
        found = offline.compare(run)
    except (offline.NoFiles, wandbfile.DamagedFile) as error:
        raise typer.BadParameter(visible(str(error), sys.stderr)) from error
    table = Table("metric", "steps with a value")
    for key, count in found.keys.items():
        table.add_row(key, f"{count:,}" if count else "-")
    console.print(table)
    for name in ("missing", "doubled", "differing"):
        if steps := getattr(found, name):
            console.print(f"{name}: {len(steps):,} steps, the first is {steps[0]}")
    for folder in found.unfinished:
        console.print(f"without an end: {folder}", soft_wrap=True, markup=False)
    if found.removed:
        console.print(f"removed since they were made: {found.removed} files; what was in them counts as missing")
    console.print(f"steps complete: {'yes' if found.is_complete else 'no'}")
    console.print("send it with: wandb sync", *found.folders, soft_wrap=True, markup=False)
    raise typer.Exit(0 if found.is_complete else 1)


def _new_run(output: Path, config: RunConfig) -> RunDir:
    run = RunDir(output / f"{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    run.create(config)
    return run


def _resumable(folder: Path) -> RunDir:
    run = RunDir(folder)
    if not run.config_file.is_file():
        raise typer.BadParameter(f"{folder} is no run directory: it has no {run.config_file.name}")
    if not all(lease_is_free(attempt) for attempt in run.attempts()):
        raise typer.BadParameter(f"{folder} is being trained by another process")
    return run


def _checkpoint_in(folder: Path) -> Path:
    complete = RunDir(folder).complete_checkpoints() if (folder / "checkpoints").is_dir() else []
    if complete:
        return complete[-1][1]
    if not (folder / MANIFEST).is_file():
        raise typer.BadParameter(f"{folder} is no checkpoint, nor a run directory that has one")
    return folder


def _attempt(run: RunDir, places: Places) -> Kind:
    """Train one more attempt of `run` here; how it ended."""
    attempt = run.attempt(max((attempt.number for attempt in run.attempts()), default=0) + 1)
    attempt.create()
    lease = take_lease(attempt)
    assert lease is not None, "a new attempt's lease is free"
    console.print(f"[bold]{run.config().preset}[/bold] in {escape(str(run.path))}")
    # Ctrl-C, a closed terminal and a shutdown ask for a pause; a second Ctrl-C insists. What was ignored (nohup) stays so.
    previous = {number: handler for number in _ENDS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}

    def pause(*_: object) -> None:
        if signal.SIGINT in previous:
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
        write_control(attempt, Control("pause", 1))
        with contextlib.suppress(RuntimeError):  # it came while a line was being written: then this one is left out
            _say("pausing after this step; Ctrl-C again ends it at once")

    for number in previous:
        signal.signal(number, pause)
    try:
        return worker.run_attempt(attempt, places, None, _Printer(run))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(lease)


def _say(line: str) -> None:
    """A terminal that was closed takes no more; training ends by the signal that tells of it, not by this."""
    try:
        console.print(line)
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _compare(runs: Sequence[RunDir], places: Places) -> None:
    """Measure how a group's models differ; the diversity metrics join the last row of the last one, as in the service."""
    try:
        made = measure_runs(runs, places, worker.choose_device("auto"), lambda sentence, _: console.print(escape(sentence)))
    except (NothingSaved, CorruptCheckpoint, DataUnreadable) as error:
        console.print(f"[yellow]warning:[/yellow] how the models differ was not measured: {escape(str(error))}")
        return
    last = read_history(runs[-1]).rows[-1]
    append_afterwards(runs[-1], last.step, last.epoch, {name: value for name, value in made["metrics"].items() if value is not None})
    show_diversity(made)


class _Printer:
    """Says on the terminal what the journal is told."""

    def __init__(self, run: RunDir) -> None:
        self._path = escape(str(run.path))

    def __call__(self, event: Event) -> None:
        line = self._line(event.kind, event.data)
        if line:
            _say(line)

    def _line(self, kind: Kind, data: dict[str, Any]) -> str | None:
        match kind:
            case Kind.METRICS:
                values, progress = data["values"], data["progress"]
                shown = [f"{name} {values[name]:.4g}" for name in ("loss", "loss_ce", "val_loss", "grad_norm") if name in values]
                pace = f"  {progress['tokens_per_s']:,.0f} tokens/s  {progress['eta_s']:,.0f} s to go" if progress else ""
                return f"step {data['step']:>6}  " + "  ".join(shown) + pace
            case Kind.PLAN:
                return f"{data['total_params']:,} parameters, {data['total_steps']:,} steps"
            case Kind.CHECKPOINT:
                return f"saved {data['name']}"
            case Kind.WARNING:
                return f"[yellow]warning:[/yellow] {escape(data['message'])}"
            case Kind.FAILED:
                return f"[red]failed:[/red] {data['reason']}: {escape(data['detail'])}"
            case Kind.PAUSED:
                return f"paused at step {data['step']}; go on with: cognate train --resume {self._path}"
            case Kind.FINISHED:
                return f"finished at step {data['step']}: {self._path}"
        return None
