"""The real data, where COGNATE_DATA_DIR names it: the counts of docs/model.md, nothing leaked, rows well filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cognate.config import SIX_DATASETS, RunConfig, resolve
from cognate.data import files
from cognate.data.batches import IGNORED, TrainingBatches, validation_batches
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.formats import FORMATS
from cognate.data.report import describe_sources, stage_samples
from cognate.data.rows import Rows, plan
from cognate.data.sources import SOURCES
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.writing import LONGEST_PROMPT, choose_prompts

pytestmark = pytest.mark.slow

FOURTEEN = resolve("reasoning")
SIX = resolve("reasoning", {"data": {"datasets": list(SIX_DATASETS)}})

# (rows in the files trained, validated and tested on), samples used: the data folder's README and docs/model.md's table
COUNTS = {
    "gsm8k": (7473, 0, 1319, 7473),
    "svamp": (700, 0, 300, 700),
    "asdiv": (2305, 0, 0, 2084),
    "mbpp": (374, 90, 500, 374),
    "codexglue": (2000, 0, 2000, 1000),
    "arc_easy": (2251, 570, 2376, 2251),
    "arc_challenge": (1119, 299, 1172, 1119),
    "hotpotqa": (10_000, 1000, 0, 10_000),
    "drop": (3420, 1000, 8525, 3420),
    "strategyqa": (2061, 229, 0, 2061),
    "piqa": (16_113, 1838, 0, 16_113),
    "hellaswag": (10_000, 10_042, 0, 10_000),
    "boolq": (9427, 3270, 0, 9427),
    "wikitext": (36_718, 3760, 4358, 5000),
}


@pytest.fixture(scope="module")
def rows(data_dir: Path) -> Rows:
    return plan(FOURTEEN.data, data_dir).read()


@pytest.fixture(scope="module")
def fourteen(data_dir: Path, real_cache: Path) -> Corpus:
    return load_corpus(FOURTEEN, data_dir, real_cache)


@pytest.fixture(scope="module")
def six(data_dir: Path, real_cache: Path) -> Corpus:
    return load_corpus(SIX, data_dir, real_cache)


def test_every_file_has_the_rows_it_should(data_dir: Path) -> None:
    rows = describe_sources(data_dir)
    assert {row.name: (row.train, row.validation, row.test, row.samples) for row in rows} == COUNTS
    assert stage_samples(rows, SIX_DATASETS) == {1: 20_798, 2: 21_917, 3: 21_917}


def test_the_six_dataset_plan_has_exactly_the_promised_samples(six: Corpus) -> None:
    assert [six.curriculum.samples(stage) for stage in (1, 2, 3)] == [20_798, 21_917, 21_917]


def test_the_plan_adds_up(rows: Rows) -> None:
    for part in rows.parts:
        assert part.samples == COUNTS[part.dataset][3]
        assert part.trained == len(rows.training[part.dataset])
        assert part.held_out == (part.validation if SOURCES[part.dataset].held_out == "hash" else 0)
        assert part.held_out == 0 or 0.04 < part.held_out / part.samples < 0.06


def test_the_known_duplicates_are_found(rows: Rows) -> None:
    """At least those that the data folder's README names: 1 + 7 in ARC-Easy, 6 in ARC-Challenge, 4 in PIQA."""
    duplicates = {part.dataset: part.duplicates for part in rows.parts}
    assert duplicates["arc_easy"] >= 8
    assert duplicates["arc_challenge"] >= 6
    assert duplicates["piqa"] >= 4


def test_no_evaluation_item_is_trained_on(data_dir: Path, rows: Rows) -> None:
    forbidden = {example.key for examples in rows.validation.values() for example in examples}
    for source in SOURCES.values():
        forbidden.update(example.key for example in files.read_every(data_dir, source, source.evaluation))
    leaked = {name: sum(example.key in forbidden for example in examples) for name, examples in rows.training.items()}
    assert leaked == dict.fromkeys(rows.training, 0)


@pytest.mark.parametrize(
    ("name", "column"), [("gsm8k", "question"), ("arc_easy", "question"), ("arc_challenge", "question"), ("mbpp", "text")]
)
def test_no_question_of_a_test_file_is_in_the_tokens(data_dir: Path, fourteen: Corpus, name: str, column: str) -> None:
    """The same again, from the other end and without our keys: the decoded documents against the raw column."""
    source = SOURCES[name]
    questions = set(pq.read_table(files.split_file(data_dir, source, "test"), columns=[column]).column(0).to_pylist())
    documents = fourteen.training[name]
    first_lines = {
        fourteen.tokenizer.decode(ids.tolist()).splitlines()[0].removeprefix("Question: ")
        for ids in np.split(documents.ids, documents.offsets[1:-1])
    }
    assert len(first_lines) > 300
    assert not first_lines & questions


@pytest.mark.parametrize("epoch", [1, 4, 7])
def test_rows_are_well_filled(fourteen: Corpus, six: Corpus, epoch: int) -> None:
    for corpus, config in ((fourteen, FOURTEEN), (six, SIX)):
        assert TrainingBatches(corpus, config.training, 1).fill_ratio(epoch) >= 0.97


def test_an_epoch_is_eight_million_tokens(fourteen: Corpus) -> None:
    batches = TrainingBatches(fourteen, FOURTEEN.training, 1)
    batch = batches.batch(7, 0)
    assert (batch.targets != IGNORED).float().mean() > 0.9
    assert 8_000_000 < batches.tokens_in_epoch(7) < 8_400_000


def test_validation_is_full_and_speaks_for_every_dataset(fourteen: Corpus) -> None:
    batches = validation_batches(fourteen, FOURTEEN.training, 8)
    assert len(batches) == 8
    assert np.mean([(batch.targets != IGNORED).float().mean() for batch in batches]) > 0.97


def test_every_dataset_has_prompts_to_write_on_from(fourteen: Corpus, rows: Rows) -> None:
    *chosen, last = choose_prompts(fourteen, len(SOURCES))
    assert [each.dataset for each in (*chosen, last)] == list(SOURCES)
    for each in chosen:
        answers = [example.answer for example in rows.validation[each.dataset] if example.prompt == each.prompt]
        assert any(answer.startswith(each.expected) for answer in answers)
        assert len(fourteen.tokenizer.encode(each.prompt)) <= LONGEST_PROMPT
    assert any(example.answer.startswith(last.prompt + last.expected) for example in rows.validation["wikitext"])


@pytest.mark.parametrize("config", [FOURTEEN, SIX], ids=["fourteen", "six"])
def test_a_warm_load_neither_formats_nor_tokenises(
    data_dir: Path, real_cache: Path, fourteen: Corpus, six: Corpus, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes a cold one most of a minute."""
    for where, name in ((files, "read_rows"), (Tokenizer, "train"), (Tokenizer, "encode_batch")):
        monkeypatch.setattr(where, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    warm = load_corpus(config, data_dir, real_cache)
    assert warm.tokenizer.digest == (fourteen if config is FOURTEEN else six).tokenizer.digest


def test_every_formatter_reads_every_row(data_dir: Path) -> None:
    for source in SOURCES.values():
        for example in files.read_usable(data_dir, source, source.train):
            assert example.answer.strip()
            assert example.prompt or FORMATS[source.name] is FORMATS["wikitext"]
            assert example.key or source.name == "wikitext"
