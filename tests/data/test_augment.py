"""augment.py: what is added is counted apart, is never an evaluation item, and leaves everything as it was when it is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import row, small_config, spell, write_folder, write_split

from cognate.data.augment import ingredients, samples
from cognate.data.batches import TrainingBatches, validation_batches
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.formats import Example, gsm8k
from cognate.data.rows import NOTHING_KEPT, plan

FIGS = {"question": "Ann has 30 figs and 14 nuts. How many in all?", "answer": "<<30+14=44>>44\n#### 44"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", ["gsm8k", "svamp", "arc_easy"])
    rows = [{**FIGS, "question": f"{row('gsm8k', number)['question']} {FIGS['question']}"} for number in range(90)]
    write_split(tmp_path / "data", "gsm8k", "train", rows)
    return tmp_path / "data"


def corpus_of(folder: Path, augment: dict[str, Any] | None = None, cache: Path | None = None) -> Corpus:
    return load_corpus(small_config({"augment": augment} if augment else None), folder, cache)


def test_off_is_as_if_it_did_not_exist(folder: Path) -> None:
    """The cache key, too: a corpus from before is found again."""
    assert ingredients(small_config().data.augment) is None
    planned = plan(small_config().data, folder)
    assert planned.augmentation is None
    assert "augment" not in planned.ingredients
    rows = planned.read()
    assert not rows.augmented
    assert all(len(rows.training[part.dataset]) == part.trained and part.augmented == 0 for part in rows.parts)


def test_the_fingerprint_of_a_corpus_without_levers_is_what_it_was() -> None:
    """Computed before there were any: the runs of that time can be resumed."""
    assert load_corpus(small_config(), None, None).fingerprint == FINGERPRINT


FINGERPRINT = "dd03f3b1f838b45f6dbb63ace3b1a7b50e5f662276f610856f1d75c5ac49cdfc"


def test_variants_follow_the_rows_and_are_counted_apart(folder: Path) -> None:
    plain, more = corpus_of(folder), corpus_of(folder, {"renumber": 2})
    before, after = ({part.dataset: part for part in corpus.curriculum.parts} for corpus in (plain, more))
    assert after["gsm8k"].augmented == 2 * after["gsm8k"].trained > 0
    assert after["arc_easy"].augmented == 0
    assert [part.trained for part in before.values()] == [part.trained for part in after.values()]
    assert len(more.training["gsm8k"]) == after["gsm8k"].trained + after["gsm8k"].augmented
    shared = len(plain.training["gsm8k"].ids)
    assert np.array_equal(more.training["gsm8k"].ids[:shared], plain.training["gsm8k"].ids)
    assert more.curriculum.describe()["stages"][0]["augmented"] == sum(part.augmented for part in after.values())


def test_tokenizer_and_validation_stay_so_that_losses_compare(folder: Path) -> None:
    plain, more = corpus_of(folder), corpus_of(folder, {"renumber": 2})
    assert more.tokenizer.digest == plain.tokenizer.digest
    assert more.fingerprint != plain.fingerprint
    for name, documents in plain.validation.items():
        assert np.array_equal(more.validation[name].ids, documents.ids)


def test_the_cache_tells_augmented_from_plain(folder: Path, tmp_path: Path) -> None:
    prints = [corpus_of(folder, augment, tmp_path / "cache").fingerprint for augment in (None, {"renumber": 1}, {"renumber": 2}, None)]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]
    assert len(list((tmp_path / "cache").glob("documents-*"))) == 3
    assert len(list((tmp_path / "cache").glob("tokenizer-*"))) == 1


def test_nothing_comes_from_a_row_that_is_held_out(folder: Path) -> None:
    rows = plan(small_config({"augment": {"renumber": 3}}).data, folder).read()
    assert len(rows.validation["gsm8k"]) > 0
    beginnings = {example.identity.split("?")[0] for example in rows.training["gsm8k"]}
    held_out = {example.identity.split("?")[0] for example in rows.validation["gsm8k"]}
    made_from = {example.identity.split("?")[0] for example in rows.augmented["gsm8k"]}
    assert made_from == beginnings
    assert not made_from & held_out


def test_a_variant_that_equals_an_evaluation_item_is_left_out() -> None:
    training = {"gsm8k": [gsm8k(FIGS)]}
    made = samples(small_config({"augment": {"renumber": 3}}).data.augment, training, (), NOTHING_KEPT)["gsm8k"]
    tested = Example("other", "layout", made[1].identity.upper())
    left = samples(small_config({"augment": {"renumber": 3}}).data.augment, training, {tested.key}, NOTHING_KEPT)["gsm8k"]
    assert left == [made[0], made[2]]


def test_graphs_are_a_dataset_of_augmented_samples_only(folder: Path) -> None:
    corpus = corpus_of(folder, {"graphs": 25})
    part = corpus.curriculum.parts[-1]
    assert (part.dataset, part.stage, part.samples, part.trained, part.augmented) == ("graphs", 1, 0, 0, 25)
    assert len(corpus.training["graphs"]) == 25
    assert len(corpus.validation["graphs"]) == 0
    batches = TrainingBatches(corpus, small_config().training, seed=1)
    plain = TrainingBatches(corpus_of(folder), small_config().training, seed=1)
    assert batches.tokens_in_epoch(1) - plain.tokens_in_epoch(1) == len(corpus.training["graphs"].ids) - 25
    assert [batch.tokens.tolist() for batch in validation_batches(corpus, small_config().training, 2)] == [
        batch.tokens.tolist() for batch in validation_batches(corpus_of(folder), small_config().training, 2)
    ]


def test_graphs_need_no_data() -> None:
    corpus = corpus_of_generated({"graphs": 25})
    assert [part.augmented for part in corpus.curriculum.parts] == [0, 0, 25]
    assert corpus.tokenizer.digest == corpus_of_generated({}).tokenizer.digest


def corpus_of_generated(augment: dict[str, Any]) -> Corpus:
    return load_corpus(small_config({"source": "synthetic", "augment": augment}), None, None)


def test_graphs_join_the_first_stage_there_is(tmp_path: Path) -> None:
    """Else the epochs before it would consist of them alone."""
    corpus = corpus_of(write_folder(tmp_path, ["arc_challenge"]), {"graphs": 10})
    assert [part.stage for part in corpus.curriculum.parts] == [2, 2]


def test_mutated_programs_are_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "data", ["mbpp"])
    code = "def add(a, b):\n    return a + b"
    rows = [{"text": f"Add {spell(n)}.", "code": code, "test_list": [f"assert add({n}, 7) == {n + 7}"]} for n in range(4)]
    write_split(folder, "mbpp", "train", rows)
    made = corpus_of(folder, {"mbpp_mutations": 2}, tmp_path / "cache")
    assert made.curriculum.parts[0].augmented == 8
    monkeypatch.setattr("cognate.data.augment.mutated", None)
    (documents,) = (tmp_path / "cache").glob("documents-*")
    documents.rename(tmp_path / "elsewhere")
    assert corpus_of(folder, {"mbpp_mutations": 2}, tmp_path / "cache").fingerprint == made.fingerprint
