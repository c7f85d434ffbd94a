"""The Hugging Face hub: which copy of each dataset is taken from there, and fetch(), which takes it.

A fetched dataset is a folder of Parquet files like any other (files.py), with only the columns and rows that are used,
beside a manifest of where they came from. Training never comes here; `cognate data fetch` and the service's job do.

A dataset is pinned to a commit. Where none could be established (revision None) the newest is taken, and the manifest says which it
was. Code from the hub is never run: the one dataset that is a script there is taken from the hub's own conversion to Parquet.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cognate.config import DatasetName
from cognate.data import files
from cognate.data.files import DataUnreadable
from cognate.data.sources import SOURCES
from cognate.jobdir import JobContext, JobFailed
from cognate.rundir import file_digest, sync_directory, write_json

MANIFEST: Final = "manifest.json"
REACH_S: Final = 5.0  # how long the hub may take to say that it is there


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub. By the names of our files: `splits` is what to load for each, `rows` how many the hub has with an answer."""

    id: str
    config: str | None
    revision: str | None
    licence: str
    columns: tuple[str, ...]
    splits: Mapping[str, str]
    rows: Mapping[str, int]
    data_files: Mapping[str, str] = field(default_factory=dict)  # by split, where the layout says nothing of splits


def _same(*splits: str) -> dict[str, str]:
    return {split: split for split in splits}


_CHOICE: Final = ("question", "choices", "answerKey")
HUB: Final[Mapping[DatasetName, HubSource]] = {
    "gsm8k": HubSource(
        "openai/gsm8k", "main", "740312add88f781978c0658806c59bc2815b9866", "MIT",
        ("question", "answer"), _same("train", "test"), {"train": 7473, "test": 1319},
    ),
    "svamp": HubSource(
        "ChilleD/SVAMP", None, "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef", "MIT",
        ("question_concat", "Equation", "Answer"), _same("train", "test"), {"train": 700, "test": 300},
    ),
    "asdiv": HubSource(
        "EleutherAI/asdiv", "asdiv", "8f95807222d87b4c688c3c22a6ba2801e1fa03e2", "CC BY-NC 4.0",
        ("body", "question", "answer", "formula"), _same("validation"), {"validation": 2305},
    ),
    "mbpp": HubSource(
        "google-research-datasets/mbpp", "full", "4bb6404fdc6cacfda99d4ac4205087b89d32030c", "CC BY 4.0",
        ("text", "code", "test_list", "test_setup_code"), _same("train", "validation", "test"),
        {"train": 374, "validation": 90, "test": 500},
    ),
    # Of its train rows none is used (sources.py).
    "codexglue": HubSource(
        "google/code_x_glue_tc_text_to_code", None, None, "C-UDA",
        ("nl", "code"), _same("validation", "test"), {"train": 100_000, "validation": 2000, "test": 2000},
    ),
    "arc_easy": HubSource(
        "allenai/ai2_arc", "ARC-Easy", "210d026faf9955653af8916fad021475a3f00453", "CC BY-SA 4.0",
        _CHOICE, _same("train", "validation", "test"), {"train": 2251, "validation": 570, "test": 2376},
    ),
    "arc_challenge": HubSource(
        "allenai/ai2_arc", "ARC-Challenge", "210d026faf9955653af8916fad021475a3f00453", "CC BY-SA 4.0",
        _CHOICE, _same("train", "validation", "test"), {"train": 1119, "validation": 299, "test": 1172},
    ),
    "hotpotqa": HubSource(
        "hotpotqa/hotpot_qa", "distractor", "1908d6afbbead072334abe2965f91bd2709910ab", "CC BY-SA 4.0",
        ("question", "answer", "supporting_facts", "context"), {"train": "train[:10000]", "validation": "validation"},
        {"train": 90_447, "validation": 7405},
    ),
    "drop": HubSource(
        "ucinlp/drop", None, "95cda593fae71b60b5b19f82de3fcf3298c1239c", "CC BY-SA 4.0",
        ("passage", "question", "answers_spans"),
        {"train": "train[:10000]", "validation": "validation[:1000]", "validation_rest": "validation[1000:]"},
        {"train": 77_400, "validation": 1000, "validation_rest": 8525},
    ),
    # The hub has one split; the last tenth of it is held out.
    "strategyqa": HubSource(
        "tasksource/strategy-qa", None, None, "MIT (source repository)",
        ("question", "answer", "facts"), {"train": "train[:2061]", "validation": "train[2061:]"}, {"train": 2061, "validation": 229},
    ),
    # A script on the hub; this is the commit of its refs/convert/parquet.
    "piqa": HubSource(
        "ybisk/piqa", None, "142c51238b3ca2bc61e9a075913871b8b600e8e1", "AFL-3.0",
        ("goal", "sol1", "sol2", "label"), _same("train", "validation"), {"train": 16_113, "validation": 1838},
        {split: f"plain_text/{split}/*.parquet" for split in ("train", "validation")},
    ),
    "hellaswag": HubSource(
        "Rowan/hellaswag", None, "218ec52e09a7e7462a5400043bb9a69a41d06b76", "MIT",
        ("activity_label", "ctx", "endings", "label"), {"train": "train[:10000]", "validation": "validation"},
        {"train": 39_905, "validation": 10_042},
    ),
    "boolq": HubSource(
        "google/boolq", None, "35b264d03638db9f4ce671b711558bf7ff0f80d5", "CC BY-SA 3.0",
        ("question", "passage", "answer"), _same("train", "validation"), {"train": 9427, "validation": 3270},
    ),
    "wikitext": HubSource(
        "Salesforce/wikitext", "wikitext-2-v1", "b08601e04326c79dfdd32d625aee71d232d685c3", "CC BY-SA 3.0 and GFDL",
        ("text",), _same("train", "validation", "test"), {"train": 36_718, "validation": 3760, "test": 4358},
    ),
}  # fmt: skip


# --- fetching ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """Rows of one split, and the commit they are of."""

    rows: pa.Table
    commit: str


Say = Callable[[str, float | None], None]
Load = Callable[[HubSource, str], Loaded]


def fetch(name: DatasetName, target: Path, say: Say, load: Load | None = None) -> dict[str, Any]:
    """Download a dataset into the data folder `target`, whole or not at all, in place of what was there; its manifest.

    say: told in a sentence what is done, and which share is done already
    Raises JobFailed with the reason offline, not_on_hub or unexpected_data; OSError when it cannot be written.
    """
    source, hub = SOURCES[name], HUB[name]
    load = load or from_hub
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{source.folder}-", dir=target) as temporary:
        fresh = Path(temporary) / source.folder
        fresh.mkdir()
        commits = set()
        for number, (split, wanted) in enumerate(hub.splits.items()):
            say(f"{name}: {wanted} of {hub.id}", number / len(hub.splits))
            loaded = load(hub, wanted)
            commits.add(loaded.commit)
            pq.write_table(_choose(name, loaded.rows, split, fresh), fresh / f"{split}.parquet", compression="zstd")
        _check(name, Path(temporary), commits)
        described = {file.name: _describe(file) for file in sorted(fresh.iterdir())}
        manifest = {
            "name": name, "hub": hub.id, "config": hub.config, "revision": hub.revision, "commit": commits.pop(),
            "licence": hub.licence, "fetched_at": time.time(), "files": described,
        }  # fmt: skip
        write_json(fresh / MANIFEST, manifest)
        _put(fresh, target / source.folder)
    say(f"{name}: {sum(file['rows'] for file in described.values()):,} rows", 1.0)
    return manifest


def _choose(name: DatasetName, rows: pa.Table, split: str, fresh: Path) -> pa.Table:
    """The columns that are used; of DROP's further validation rows only those about other passages than the first thousand's."""
    if missing := [column for column in HUB[name].columns if column not in rows.column_names]:
        raise JobFailed("unexpected_data", f"{name} has no column {', '.join(missing)} on the hub; it has {', '.join(rows.column_names)}")
    rows = rows.select(HUB[name].columns)
    if split != "validation_rest":
        return rows
    known = pq.read_table(fresh / "validation.parquet", columns=["passage"])["passage"].combine_chunks()
    return rows.filter(pc.invert(pc.is_in(rows["passage"], known)))


def _check(name: DatasetName, folder: Path, commits: set[str]) -> None:
    """Every row must be what the formatters expect, before anything is trained on it."""
    source = SOURCES[name]
    try:
        counts = {split: sum(1 for _ in files.read_every(folder, source, [split])) for split in source.splits}
    except DataUnreadable as error:
        raise JobFailed("unexpected_data", str(error)) from error
    if empty := [split for split, count in counts.items() if not count]:
        raise JobFailed("unexpected_data", f"{name} has no rows in {', '.join(empty)} on the hub")
    if len(commits) > 1:
        raise JobFailed("unexpected_data", f"the splits of {name} are of different commits: {', '.join(sorted(commits))}; fetch it again")


def _describe(file: Path) -> dict[str, Any]:
    return {"rows": pq.read_metadata(file).num_rows, "bytes": file.stat().st_size, "sha256": file_digest(file)}


def _put(fresh: Path, place: Path) -> None:
    """Into its place in one move; what was there goes with the temporary folder."""
    for file in fresh.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if place.exists():
        place.rename(fresh.with_name("before"))
    fresh.rename(place)
    sync_directory(place.parent)


def perform_fetch(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `fetch`: of the dataset `name`; the manifest."""
    assert context.places.fetched is not None, "the service has a cache folder"
    return fetch(spec["name"], context.places.fetched, context.say)


# --- the library ------------------------------------------------------------------------------------------


def from_hub(hub: HubSource, split: str) -> Loaded:
    """Rows of a split, by the `datasets` library: of the pinned commit from the library's own cache, where an earlier program
    has loaded it; else from the hub; where that cannot be reached and no commit is pinned, what the cache has."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if hub.revision is not None and (cached := _from_cache(hub, split)) is not None:
        return cached
    try:
        return _from_the_network(hub, split)
    except JobFailed as error:
        cached = _from_cache(hub, split) if error.reason == "offline" else None
        if cached is None:
            raise
        return cached


def _from_the_network(hub: HubSource, split: str) -> Loaded:
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise JobFailed("offline", f"HF_HUB_OFFLINE is set, and {_wanted(hub)} is not in the Hugging Face cache")
    revision = _reach(hub)
    more: dict[str, Any] = {"data_files": dict(hub.data_files)} if hub.data_files else {}
    try:
        loaded = datasets.load_dataset(hub.id, hub.config, split=split, revision=revision, **more)
    except ConnectionError as error:
        raise JobFailed("offline", f"the hub could no longer be reached for {hub.id}: {error}") from error
    except (datasets.exceptions.DatasetNotFoundError, HfHubHTTPError, FileNotFoundError, ValueError) as error:
        raise JobFailed("not_on_hub", f"the hub does not give {_wanted(hub)}: {error}") from error
    commit = Path(loaded.cache_files[0]["filename"]).parent.name
    if commit != revision:  # the library falls back to whatever it has of a dataset in its cache
        raise JobFailed("not_on_hub", f"of {hub.id} commit {commit} is in the Hugging Face cache, but {revision} is wanted")
    return Loaded(loaded.with_format("arrow")[:], commit)


def _from_cache(hub: HubSource, split: str) -> Loaded | None:
    """What load_dataset has left of the pinned commit; where none is pinned, of the commit that it loaded last.

    It lies in <owner>___<name>/<config>/<version>/<commit>. Offline load_dataset gives the newest whatever is asked for, and
    nothing where it was given data_files, so the folder is found here and read by the library's own reader of such folders.
    """
    from datasets import config, naming
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, name = hub.id.partition("/")
    place = Path(config.HF_DATASETS_CACHE) / f"{owner}___{naming.camelcase_to_snakecase(name)}"
    found = [folder for folder in place.glob(f"{hub.config or '*'}/*/{hub.revision or '?' * 40}") if folder.is_dir()]
    if not found:
        return None
    newest = max(found, key=lambda folder: folder.stat().st_mtime)
    config_name, version, commit = newest.parts[-3:]
    reader = Cache(repo_id=hub.id, dataset_name=name, config_name=config_name, version=version, hash=commit)
    try:
        return Loaded(reader.as_dataset(split=split).with_format("arrow")[:], commit)
    except (OSError, ValueError):  # not this split, or damaged
        return None


def _wanted(hub: HubSource) -> str:
    return f"{hub.id} at {hub.revision or 'its newest commit'}"


def _reach(hub: HubSource) -> str:
    """The commit that the hub has for the dataset's revision. Asked first, because the library tries for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi().dataset_info(hub.id, revision=hub.revision, timeout=REACH_S).sha
    except HfHubHTTPError as error:
        raise JobFailed("not_on_hub", f"the hub does not give {_wanted(hub)}: {error}") from error
    except Exception as error:  # the HTTP library's, which changes with the hub's own
        raise JobFailed("offline", f"the hub cannot be reached ({type(error).__name__}: {error})") from error
    assert commit is not None, "dataset_info answers with a commit"
    return commit
