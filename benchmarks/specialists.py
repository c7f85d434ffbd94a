"""The three specialists from launch to hand-off, through the service: trained, evaluated, compared, packed, reported.

    make bench-specialists ARGS="--data FOLDER [--datasets six|all] [--size full|small] [--rows N] [--steps N] [--set NAME=VALUE ...]
                                [--output DIR]"

Starts a service of its own with its state in DIR, launches the group, waits, and leaves in DIR the hand-off archive, the training
report, every answer of the API that the table is made from, and results.md: expected against measured, with digests.
`--size small` is what two CPU cores train for longer than a fraction of an epoch; its archive says that it is not fit for Phase 2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import torch

from benchmarks.sidebyside import describe_machine
from cognate.config import SIX_DATASETS, SPECIALISTS, overrides
from cognate.data.files import split_file
from cognate.data.sources import SOURCES
from cognate.training.checkpoint import weights_digest

SMALL: dict[str, Any] = {
    "model": {
        "vocab_size": 4096, "d_model": 128, "n_layers": 3, "n_heads": 4, "d_ff": 384, "trm_d_ff": 384, "window": 128,
        "memory_key_dim": 16, "memory_value_dim": 32,
    },
    "optimizer": {"muon_lr": 5e-3, "embedding_lr": 1e-2, "adamw_lr": 3e-3, "grokfast_lambda": 0.0},
    "training": {"batch_size": 8, "sequence_length": 256, "log_every_steps": 25, "checkpoint_every_steps": 250},
    "evaluation": {"epoch_items": 8, "at_end": "sample"},
}  # fmt: skip
EVERY_S = 5.0
SAY_EVERY_S = 60.0
ENDED = ("completed", "stopped", "failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("COGNATE_DATA_DIR"))
    parser.add_argument("--datasets", choices=("six", "all"), default="six")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--rows", type=int, help="Cut every training file to its first rows, so that ten epochs are short.")
    parser.add_argument("--steps", type=int, help="Most steps of a model; without it the whole curriculum, ten epochs.")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="A parameter of all three; may be repeated.")
    parser.add_argument("--output", type=Path, default=Path("var/specialists"))
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of Parquet datasets with --data or COGNATE_DATA_DIR")
    data = options.data if options.rows is None else cut(options.data, options.output / "data", options.rows)
    with service(options.output, data) as client:
        record = train_and_report(client, options.output, wanted(options))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record["machine"], record["command"] = describe_machine(device), "make bench-specialists ARGS=" + json.dumps(" ".join(sys.argv[1:]))
    (options.output / "record.json").write_text(json.dumps(record, indent=1))
    (options.output / "results.md").write_text(results_page(record))
    print((options.output / "results.md").read_text())


def cut(data: Path, target: Path, rows: int) -> Path:
    """A data folder with the first rows of every training file; what is evaluated on stays whole, and so does a file that is both."""
    for source in SOURCES.values():
        for split in source.splits:
            file = split_file(data, source, split)
            if file.is_file():
                table = pq.read_table(file)
                copy = split_file(target, source, split)
                copy.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table.slice(0, rows) if split in source.train and source.held_out != "rest" else table, copy)
    return target


def wanted(options: argparse.Namespace) -> dict[str, Any]:
    """The overrides of every run of the group."""
    sections = SMALL if options.size == "small" else {}
    settings = [f"{section}.{name}={json.dumps(value)}" for section, values in sections.items() for name, value in values.items()]
    settings += [f"data.datasets={json.dumps(SIX_DATASETS if options.datasets == 'six' else None)}"]
    settings += [f"training.max_steps={options.steps}"] if options.steps is not None else []
    return overrides([*settings, *options.set])


# --- through the service ------------------------------------------------------------------------------------------


@contextmanager
def service(home: Path, data: Path) -> Iterator[httpx.Client]:
    """A service of our own on a free port; ended as Ctrl-C would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "COGNATE_HOME": str(home), "COGNATE_PORT": str(port), "COGNATE_DATA_DIR": str(data)}
    with (home / "service.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "app", "--no-quickstart"], env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: answers(client))
            print(f"service: {client.base_url} (log: {home / 'service.log'})", flush=True)
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


def train_and_report(client: httpx.Client, output: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Everything the table is made from; the archive and the report are written to `output`."""
    answer = client.post("/v1/groups", json={"name": "specialists", "presets": list(SPECIALISTS), "config": config}).raise_for_status()
    url = answer.headers["Location"]
    print(f"group: {url}", flush=True)
    group = until(lambda: ended(client, url))
    if unfinished := [run["name"] for run in group["runs"] if run["state"] != "completed"]:
        sys.exit(f"not completed: {', '.join(unfinished)}; see {client.base_url}")
    until(lambda: at_rest(client))
    archive = job(client, client.post(f"{url}/handoff", json={"allow_any_size": "model" in config}))
    (output / "handoff.tar").write_bytes(client.get(f"{url}/handoff").raise_for_status().content)
    for suffix, form in (("md", "text/markdown"), ("html", "text/html")):
        report = until(lambda form=form: reported(client, f"{url}/report", form))
        (output / f"report.{suffix}").write_text(report)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": {run["preset"]: described(client, run["id"]) for run in group["runs"]},
        "diversity": client.get(f"{url}/diversity").raise_for_status().json(),
        "handoff": {name: archive[name] for name in ("bytes", "sha256")},
    }


def described(client: httpx.Client, run_id: str) -> dict[str, Any]:
    evaluations = [found for found in client.get(f"/v1/runs/{run_id}/evaluations").json()["data"] if found["state"] == "completed"]
    return {
        **client.get(f"/v1/runs/{run_id}").json(),
        "checkpoints": client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"],
        "evaluation": evaluations[0] if evaluations else None,
    }


def reported(client: httpx.Client, url: str, form: str) -> str | None:
    """The training report, once its job is done."""
    answer = client.get(url, headers={"Accept": form}).raise_for_status()
    return answer.text if answer.status_code == 200 else None


said_at = 0.0


def ended(client: httpx.Client, url: str) -> dict[str, Any] | None:
    """The group once all its runs have ended."""
    global said_at
    group: dict[str, Any] = client.get(url).json()
    if time.monotonic() - said_at > SAY_EVERY_S:
        said_at = time.monotonic()
        shares = [(run["progress"] or {}).get("percent") or 0 for run in group["runs"]]
        print(
            *(f"{run['preset']} {run['state']} {share:.0f} %" for run, share in zip(group["runs"], shares, strict=True)),
            sep=", ",
            flush=True,
        )
    return group if all(run["state"] in ENDED for run in group["runs"]) else None


def at_rest(client: httpx.Client) -> bool:
    """Whether no job waits or works: evaluations and the diversity report begin by themselves."""
    return not [found for found in client.get("/v1/jobs", params={"limit": 100}).json()["data"] if found["ended_at"] is None]


def job(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    """What came of a job, once it has ended."""
    location = answer.raise_for_status().headers["Location"]
    done = until(lambda: (found := client.get(location).json())["ended_at"] and found)
    if done["state"] != "completed":
        sys.exit(f"{done['kind']} {done['state']}: {done['reason']}: {done['detail']}")
    return dict(done["result"])


def until(look: Callable[[], Any]) -> Any:
    while not (found := look()):
        time.sleep(EVERY_S)
    return found


# --- the page -----------------------------------------------------------------------------------------------------


def results_page(record: dict[str, Any]) -> str:
    """Expected against measured, as Markdown."""
    runs: dict[str, Any] = record["runs"]
    lines = [f"{record['at']}, {', '.join(f'{name} {value}' for name, value in record['machine'].items())}. `{record['command']}`", ""]
    lines += row("", *runs) + row("---", *("---" for _ in runs))
    for name, read in FACTS.items():
        lines += row(name, *(read(run) for run in runs.values()))
    lines += [
        "",
        "Held-out items, best checkpoint: value, 95 % interval, number of items; target of the report, forecast from published work.",
        "",
    ]
    lines += row("figure", "target", "forecast", "chance", *runs) + row(*("---" for _ in range(4 + len(runs))))
    tables = {preset: run["evaluation"]["result"]["datasets"] for preset, run in runs.items() if run["evaluation"]}
    for dataset, one in next(iter(tables.values()), {}).items():
        figure = one["figure"]
        ends = (spread(one[kind].get(figure)) for kind in ("targets", "forecasts"))
        lines += row(f"{dataset} {figure}", *ends, f"{one['chance']:.3g}", *(shown(tables.get(preset, {}).get(dataset)) for preset in runs))
    found = record["diversity"]["result"]
    lines += ["", "Diversity, on the same held-out texts:", ""]
    lines += [f"- {line}" for line in told(found)]
    lines += ["", f"Hand-off archive: {record['handoff']['bytes']:,} bytes, sha-256 `{record['handoff']['sha256']}`."]
    return "\n".join(lines) + "\n"


def row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def shown(one: dict[str, Any] | None) -> str:
    if one is None or one["figure"] not in one["figures"]:
        return "not measured"
    found = one["figures"][one["figure"]]
    interval = f" ({found['low']:.3f} to {found['high']:.3f})" if "low" in found else ""
    return f"{found['value']:.3f}{interval}, {found['n']:,}"


def spread(ends: list[float] | None) -> str:
    return "-".join(f"{end:g}" for end in ends) if ends else ""


def told(found: dict[str, Any]) -> list[str]:
    """The diversity report on a few lines."""
    spreads = [f"{name}: {value:.4g}" for name, value in found["metrics"].items() if value is not None]
    order = found["required_order"]
    texts = f"{found['texts']['count']} texts: {found['texts']['source']}"
    return [texts, *spreads, f"{order['rule']}: {json.dumps(order['holds'])}"]


def best(run: dict[str, Any]) -> dict[str, Any]:
    step = run["evaluation"]["spec"]["step"] if run["evaluation"] else run["progress"]["step"]
    return next((found for found in run["checkpoints"] if found["step"] == step), run["checkpoints"][-1])


FACTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "parameters": lambda run: f"{run['plan']['total_params']:,}",
    "steps": lambda run: f"{run['progress']['step']:,} of {sum(run['plan']['steps_per_epoch']):,}",
    "epochs": lambda run: f"{run['progress']['epoch']:.2f}",
    "hours of training": lambda run: f"{run['metrics']['training_time_hours']:.3f}",
    "loss (expected after ten epochs: 2.0 to 2.5)": lambda run: f"{run['metrics']['loss_ce']:.3f}",
    "held-out loss": lambda run: f"{run['metrics']['val_loss']:.3f}",
    "held-out perplexity (expected: 7 to 10)": lambda run: f"{run['metrics']['val_perplexity']:.1f}",
    "best checkpoint, step": lambda run: f"{best(run)['step']:,}",
    "sha-256 of its weights": lambda run: f"`{weights_digest(best(run)['files'])}`",
}


if __name__ == "__main__":
    main()
