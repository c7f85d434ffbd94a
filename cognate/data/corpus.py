"""Corpus: everything a run trains on and is validated on, as tokens. load_corpus() makes it.

rows.py decides which rows those are. The tokenizer and the tokens are kept in a cache, named by all that went into
them; nothing here depends on the run's seed. What was missing or done other than asked is in `warnings`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import tokenizers

from cognate.config import RunConfig
from cognate.data.cache import Cache, key_of
from cognate.data.curriculum import STAGES, Curriculum, Part, text_hash
from cognate.data.files import DataMissing
from cognate.data.formats import Example
from cognate.data.rows import Rows, plan
from cognate.data.tokenizer import Tokenizer
from cognate.rundir import read_json, write_json

# Enough for any sample we validate on; more would only lengthen the first start.
VALIDATION_DOCUMENTS: Final = 1000


@dataclass(frozen=True)
class Documents:
    """Token sequences end to end: document i is ids[offsets[i] : offsets[i + 1]], and its last token is the end token.

    Its first prompts[i] tokens are its prompt; 0: it is a text without one.
    """

    ids: npt.NDArray[np.uint16]  # [tokens]
    offsets: npt.NDArray[np.int64]  # [documents + 1]
    prompts: npt.NDArray[np.int64]  # [documents]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    curriculum: Curriculum
    training: Mapping[str, Documents]
    validation: Mapping[str, Documents]  # at most VALIDATION_DOCUMENTS of each dataset, in the order of their hash
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    digests: Mapping[str, str]  # sha-256 of every data file, by its path inside its data folder; none of generated problems

    @property
    def fingerprint(self) -> str:
        """sha-256 over all that is trained on, token by token."""
        digest = hashlib.sha256()
        for name, documents in sorted(self.training.items()):
            for part in (name.encode(), documents.ids.tobytes(), documents.offsets.tobytes()):
                digest.update(part)
        return digest.hexdigest()


def load_corpus(
    config: RunConfig,
    data_dir: Path | None,
    cache_dir: Path | None,
    tokenizer: Tokenizer | None = None,
    digests: Mapping[str, str] | None = None,
) -> Corpus:
    """The corpus of a run. `tokenizer` and `digests` are those of a checkpoint; without, the one is learned from the training text,
    and the data are those that are there now.

    Raises DataMissing or DataUnreadable. Without `cache_dir` there is nothing fetched, and everything is worked out anew.
    """
    warnings: list[str] = []
    kept = Cache(cache_dir, warnings.append)
    planned = plan(config.data, data_dir, cache_dir, digests, kept)
    warnings += planned.warnings
    read = cache(planned.read)
    key = key_of([planned.ingredients, _CODE, tokenizers.__version__])
    vocab_size, merge_digits = config.model.vocab_size, config.data.digits == "merged"
    if tokenizer is None:
        ingredients = [key, vocab_size, *(["merged digits"] if merge_digits else [])]
        tokenizer = kept.get(
            "tokenizer", key_of(ingredients), lambda: _learn(read(), vocab_size, merge_digits), _write_tokenizer, _read_tokenizer
        )
    assert tokenizer.vocab_size <= vocab_size, f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}"
    augmentation = [] if planned.augmentation is None else [planned.augmentation]
    tokens = kept.get(
        "documents", key_of([key, tokenizer.digest, *augmentation]), _tokenising(read, tokenizer), _write_tokens, _read_tokens
    )
    curriculum = Curriculum(tokens.parts)
    warnings += _remarks(curriculum, tokenizer.vocab_size, vocab_size)
    return Corpus(tokenizer, curriculum, tokens.training, tokens.validation, planned.missing, tuple(warnings), planned.digests)


def _remarks(curriculum: Curriculum, n_tokens: int, vocab_size: int) -> list[str]:
    """What a run should say about its data although nothing is missing."""
    remarks = [
        f"{part.dataset}: {part.malformed:,} of {part.malformed + part.samples:,} rows are left out, for prompt or answer is no text"
        for part in curriculum.parts
        if part.malformed
    ]
    remarks += [
        f"{part.dataset}: nothing of it is trained on; of its {part.samples:,} rows {part.held_out:,} are held out, "
        f"and {part.duplicates:,} equal an evaluation item"
        for part in curriculum.parts
        if not part.trained and not part.augmented
    ]
    if n_tokens < vocab_size:
        remarks.append(f"the training text has only {n_tokens:,} different tokens; {vocab_size - n_tokens:,} of the vocabulary stay unused")
    for stage in STAGES:
        if stage < curriculum.first_stage:
            remarks.append(f"no dataset of stage {stage} is available; its epochs use those of stage {curriculum.first_stage}")
    return remarks


# --- rows to tokens ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    parts: tuple[Part, ...]
    training: Mapping[str, Documents]
    validation: Mapping[str, Documents]


def _learn(rows: Rows, vocab_size: int, merge_digits: bool) -> Tokenizer:
    """The tokenizer of the training text of all stages; of nothing that is held out.

    Nor of augmented samples: with and without them losses are in nats of the same tokens, and can be compared.
    """
    examples = chain.from_iterable(rows.training.values())
    return Tokenizer.train((example.prompt + example.answer for example in examples), vocab_size, merge_digits=merge_digits)


def _tokenising(read: Callable[[], Rows], tokenizer: Tokenizer) -> Callable[[], _Tokens]:
    def tokenise() -> _Tokens:
        rows = read()
        if not any(rows.training.values()):
            raise DataMissing("every row of the chosen datasets is held out or equals an evaluation item; nothing is left to train on")
        return _Tokens(
            rows.parts,
            training={name: encode([*examples, *rows.augmented.get(name, ())], tokenizer) for name, examples in rows.training.items()},
            validation={name: encode(_sample(examples), tokenizer) for name, examples in rows.validation.items()},
        )

    return tokenise


def _sample(examples: Sequence[Example]) -> list[Example]:
    """A fixed sample: the same rows on every machine and in every run."""
    return sorted(examples, key=lambda example: text_hash(example.key))[:VALIDATION_DOCUMENTS]


def encode(examples: Sequence[Example], tokenizer: Tokenizer) -> Documents:
    """prompt + answer + end of each example. The two are encoded apart, so that a prompt's tokens never depend on its answer."""
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    answers = tokenizer.encode_batch([example.answer for example in examples])
    documents = [[*prompt, *answer, tokenizer.end_id] for prompt, answer in zip(prompts, answers, strict=True)]
    offsets = np.array([0, *map(len, documents)], np.int64).cumsum()
    ids = np.fromiter(chain.from_iterable(documents), np.uint16, offsets[-1])
    return Documents(ids, offsets, np.fromiter(map(len, prompts), np.int64, len(prompts)))


# --- what the cache keeps ---------------------------------------------------------------------------------


def _write_tokenizer(tokenizer: Tokenizer, entry: Path) -> None:
    tokenizer.save(entry / "tokenizer.json")


def _read_tokenizer(entry: Path) -> Tokenizer:
    return Tokenizer.load(entry / "tokenizer.json")


def _write_tokens(tokens: _Tokens, entry: Path) -> None:
    arrays: dict[str, npt.NDArray[np.integer]] = {}
    for side, by_name in (("training", tokens.training), ("validation", tokens.validation)):
        for name, documents in by_name.items():
            arrays |= {f"{side}.{name}.{field}": array for field, array in vars(documents).items()}
    safetensors.numpy.save_file(arrays, entry / "tokens.safetensors")
    write_json(entry / "parts.json", [asdict(part) for part in tokens.parts])


def _read_tokens(entry: Path) -> _Tokens:
    parts = tuple(Part(**part) for part in read_json(entry / "parts.json"))
    arrays = safetensors.numpy.load_file(entry / "tokens.safetensors")
    training, validation = (
        {part.dataset: Documents(*(arrays[f"{side}.{part.dataset}.{field.name}"] for field in fields(Documents))) for part in parts}
        for side in ("training", "validation")
    )
    return _Tokens(parts, training, validation)


def _digest_code() -> str:
    """A version that nobody can forget to raise: the text of the files that decide which tokens come out."""
    names = ("sources", "formats", "curriculum", "files", "extra", "synthetic", "rows", "tokenizer", "corpus")
    here = Path(__file__).parent
    return hashlib.sha256(b"\0".join((here / f"{name}.py").read_bytes() for name in names)).hexdigest()


_CODE: Final = _digest_code()
