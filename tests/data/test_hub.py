"""hub.py: what is fetched, that it is whole or not at all, and how the library is asked. tests/data/fake_hub.py is the hub."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_folders import row, small_config
from fake_hub import Repositories, serve

from cognate.config import DatasetName
from cognate.data import files, hub
from cognate.data.corpus import load_corpus
from cognate.data.formats import FORMATS
from cognate.data.hub import HUB, HubSource, Loaded, fetch
from cognate.data.sources import SOURCES
from cognate.jobdir import JobFailed
from cognate.rundir import file_digest, read_json

COMMIT = "c" * 40
NOWHERE = "http://127.0.0.1:1"
UNPINNED = {"codexglue", "strategyqa"}


def quiet(_: str, __: float | None) -> None:
    pass


def pretend(name: DatasetName, **more: Any) -> Callable[[HubSource, str], Loaded]:
    """A hub that has 30 rows to train on and 4 in every other split, with a column that nobody uses."""

    def load(asked: HubSource, wanted: str) -> Loaded:
        assert asked is HUB[name]
        split = next(split for split, each in asked.splits.items() if each == wanted)
        count = 30 if split in SOURCES[name].train else 4
        passage = {"passage": split} if name == "drop" else {}
        return Loaded(
            pa.Table.from_pylist([row(name, number, split) | {"unused": 1, **passage, **more} for number in range(count)]), COMMIT
        )

    return load


@pytest.mark.parametrize("name", SOURCES)
def test_every_dataset_says_what_to_take_of_it(name: DatasetName) -> None:
    taken = HUB[name]
    assert set(taken.splits) == set(SOURCES[name].splits) <= set(taken.rows)
    assert SOURCES[name].hub == taken.id + (f" ({taken.config})" if taken.config and name != "asdiv" else "")
    assert (taken.revision is None) == (name in UNPINNED)
    assert taken.revision is None or re.fullmatch("[0-9a-f]{40}", taken.revision)
    used = {column: value for column, value in row(name, 1).items() if column in taken.columns}
    assert FORMATS[name](used) == FORMATS[name](row(name, 1))


def test_what_is_fetched_is_trained_on(tmp_path: Path) -> None:
    """All fourteen, only the columns that are used, and without a data folder of one's own."""
    for name in SOURCES:
        manifest = fetch(name, tmp_path / "datasets", quiet, pretend(name))
        folder = tmp_path / "datasets" / SOURCES[name].folder
        assert manifest == read_json(folder / "manifest.json")
        assert (manifest["commit"], manifest["revision"], manifest["licence"]) == (COMMIT, HUB[name].revision, HUB[name].licence)
        for split in SOURCES[name].splits:
            file = folder / f"{split}.parquet"
            assert set(pq.read_schema(file).names) <= set(HUB[name].columns)
            described = {"rows": pq.read_metadata(file).num_rows, "bytes": file.stat().st_size, "sha256": file_digest(file)}
            assert manifest["files"][file.name] == described
    corpus = load_corpus(small_config(), None, tmp_path)
    assert list(corpus.training) == list(SOURCES)
    assert sorted(path.name for path in (tmp_path / "datasets").iterdir()) == sorted(source.folder for source in SOURCES.values())


def test_drops_further_validation_rows_share_no_passage_with_the_first(tmp_path: Path) -> None:
    """Else what the first thousand are scored on would stand in the passages of the rest (the data folder's README)."""

    def load(_: HubSource, wanted: str) -> Loaded:
        passages = {"train[:10000]": ["a"], "validation[:1000]": ["b", "c"], "validation[1000:]": ["c", "d", "b", "d"]}[wanted]
        return Loaded(pa.Table.from_pylist([row("drop", n, wanted) | {"passage": passage} for n, passage in enumerate(passages)]), COMMIT)

    fetch("drop", tmp_path, quiet, load)
    assert pq.read_table(tmp_path / "drop" / "validation_rest.parquet")["passage"].to_pylist() == ["d", "d"]


def fails_later(asked: HubSource, wanted: str) -> Loaded:
    if wanted == "train":
        return pretend("boolq")(asked, wanted)
    raise JobFailed("offline", "gone")


def other_commits(asked: HubSource, wanted: str) -> Loaded:
    return Loaded(pretend("boolq")(asked, wanted).rows, wanted[0] * 40)


@pytest.mark.parametrize(
    ("load", "reason", "words"),
    [
        (fails_later, "offline", "gone"),
        (other_commits, "unexpected_data", "different commits"),
        (pretend("boolq", answer=None), "unexpected_data", "does not look like google/boolq: ValueError answer is null"),
        (lambda *_: Loaded(pa.table({"question": ["x"]}), COMMIT), "unexpected_data", "boolq has no column passage, answer on the hub"),
        (lambda *_: Loaded(pa.Table.from_pylist([row("boolq", 1)]).slice(0, 0), COMMIT), "unexpected_data", "no rows in train, validation"),
    ],
)
def test_what_cannot_be_used_changes_nothing(tmp_path: Path, load: Callable[..., Loaded], reason: str, words: str) -> None:
    fetch("boolq", tmp_path, quiet, pretend("boolq"))
    before = {file.name: file.read_bytes() for file in (tmp_path / "boolq").iterdir()}
    with pytest.raises(JobFailed, match=words) as failed:
        fetch("boolq", tmp_path, quiet, load)
    assert failed.value.reason == reason
    assert {file.name: file.read_bytes() for file in (tmp_path / "boolq").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["boolq"]


def test_a_second_fetch_takes_the_place_of_the_first(tmp_path: Path) -> None:
    fetch("boolq", tmp_path, quiet, pretend("boolq"))
    fetch("boolq", tmp_path, quiet, pretend("boolq", question="is it new"))
    assert next(files.read_usable(tmp_path, SOURCES["boolq"], ("train",))).key == "is it new"
    assert [path.name for path in tmp_path.iterdir()] == ["boolq"]


# --- the library ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_the_library_is_asked_for_the_pinned_commit_and_runs_no_code(name: DatasetName, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    commit = HUB[name].revision or COMMIT

    def load_dataset(*positional: Any, **named: Any) -> Any:
        asked.append((positional, named))
        return SimpleNamespace(cache_files=[{"filename": f"/cache/x/{commit}/x.arrow"}], with_format=lambda _: ["rows"])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_reach", lambda _: commit)
    for wanted in HUB[name].splits.values():
        assert hub.from_hub(HUB[name], wanted).commit == commit
    for (positional, named), wanted in zip(asked, HUB[name].splits.values(), strict=True):
        assert positional == (HUB[name].id, HUB[name].config)
        more = {"data_files": dict(HUB[name].data_files)} if name == "piqa" else {}
        assert named == {"split": wanted, "revision": commit, **more}


def test_another_commit_than_the_pinned_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives what it has in its cache when the hub fails under it."""
    loaded = SimpleNamespace(cache_files=[{"filename": f"/cache/x/{'d' * 40}/x.arrow"}])
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: loaded)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_reach", lambda source: source.revision)
    with pytest.raises(JobFailed, match=r"d{40} is in the Hugging Face cache") as failed:
        hub.from_hub(HUB["gsm8k"], "train")
    assert failed.value.reason == "not_on_hub"


def parquet(name: DatasetName, split: str, count: int) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row(name, number, split) | {"unused": 1} for number in range(count)]), written)
    return written.getvalue()


CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
---
"""


def in_a_process(cache: Path, address: str, *names: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """`cognate data fetch`: the library reads where the hub is when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(cache / "hf"), "COGNATE_CACHE_DIR": str(cache), "COLUMNS": "500"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    return subprocess.run(
        [sys.executable, "-m", "cognate", "data", "fetch", *names], env=environment, capture_output=True, text=True, timeout=110
    )


@pytest.mark.slow
def test_the_real_library_fetches_from_a_hub(tmp_path: Path) -> None:
    """Once by the card's layout, once from Parquet that the hub made of a script, once the newest; then from the library's own cache."""
    strategy = pa.Table.from_pylist([row("strategyqa", number) for number in range(2070)])
    written = io.BytesIO()
    pq.write_table(strategy, written)
    repositories: Repositories = {
        "openai/gsm8k": (
            str(HUB["gsm8k"].revision),
            {"README.md": CARD, "main/train-0.parquet": parquet("gsm8k", "train", 30), "main/test-0.parquet": parquet("gsm8k", "test", 4)},
        ),
        "ybisk/piqa": (
            str(HUB["piqa"].revision),
            {f"plain_text/{split}/0000.parquet": parquet("piqa", split, 5) for split in ("train", "validation")},
        ),
        "tasksource/strategy-qa": (COMMIT, {"train.parquet": written.getvalue()}),
    }
    names = ("gsm8k", "piqa", "strategyqa")
    with serve(repositories) as (address, asked):
        done = in_a_process(tmp_path, address, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (commit, _) in zip(("gsm8k", "piqa", "strategy_qa"), repositories.values(), strict=True):
        assert read_json(tmp_path / "datasets" / name / "manifest.json")["commit"] == commit
    assert files.count_rows(tmp_path / "datasets", SOURCES["gsm8k"], ("train", "test")) == 34
    assert files.count_rows(tmp_path / "datasets", SOURCES["strategyqa"], ("validation",)) == 9
    assert not [path for path in asked if path.endswith(".py") and path.startswith("GET")]
    # The pinned ones need no network now; that without a pin is asked for, and taken from the cache where the hub is out of reach.
    before = {name: file_digest(tmp_path / "datasets" / SOURCES[name].folder / "train.parquet") for name in names}
    newer = {**repositories, "openai/gsm8k": ("e" * 40, {})}
    with serve(newer) as (address, asked):
        for hub_at, offline in ((address, False), (NOWHERE, False), (NOWHERE, True)):
            shutil.rmtree(tmp_path / "datasets")
            again = in_a_process(tmp_path, hub_at, *names, offline=offline)
            assert again.returncode == 0, again.stdout + again.stderr
            assert {name: file_digest(tmp_path / "datasets" / SOURCES[name].folder / "train.parquet") for name in names} == before
    datasets_asked_for = {name for name in newer for request in asked if name in request}
    assert datasets_asked_for == {"tasksource/strategy-qa"}


def test_what_the_hub_does_not_have_is_named(tmp_path: Path) -> None:
    with serve({"openai/gsm8k": (COMMIT, {})}) as (address, _):
        done = in_a_process(tmp_path, address, "gsm8k", "boolq")
    assert done.returncode == 1
    assert done.stdout.count("not_on_hub") == 2
    assert str(HUB["gsm8k"].revision) in done.stdout
    assert "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_given_up_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = in_a_process(tmp_path, NOWHERE, "gsm8k", "boolq")
    assert done.returncode == 1
    assert done.stdout.count("was not fetched: offline: the hub cannot be reached") == 1
    assert time.monotonic() - begun < 60  # the library alone tries for half a minute a dataset, on an idle machine
