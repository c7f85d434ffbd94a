"""Tokenizer: byte-level BPE, digits one by one unless told otherwise, learned from the training text and identified by its digest.

decode(encode(text)) == text for any text: every byte is a token, and nothing is normalised away.
A text that happens to contain "<|end|>" is ordinary text; only `end_id` itself ends a document.

Source: Sennrich et al., arXiv:1508.07909 (BPE); the byte-level variant and its word pattern are GPT-2's.
Where we differ: digits are separate words, so that no number is a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

END: Final = "<|end|>"


class TokenizerUnreadable(RuntimeError):
    """A tokenizer file that is damaged or is not ours."""


@final
class Tokenizer:
    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._inner.encode_special_tokens = True  # "<|end|>" in a text is text
        self.digest: str = hashlib.sha256(self._json().encode()).hexdigest()
        end_id = inner.token_to_id(END)
        if end_id is None:
            raise TokenizerUnreadable(f"the tokenizer has no {END} token; it was not made by Cognate")
        self.end_id: int = end_id
        self.vocab_size: int = inner.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, merge_digits: bool = False) -> Tokenizer:
        """At most `vocab_size` tokens; fewer when the texts have no more pairs that occur twice."""
        inner = tokenizers.Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.pre_tokenizer = words if merge_digits else pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer that save() wrote."""
        return cls.read(path.read_bytes(), path.name)

    @classmethod
    def read(cls, content: bytes, name: str) -> Tokenizer:
        """load(), of a file's content."""
        try:
            inner = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerUnreadable(f"{name} is not a tokenizer: {error}") from error
        return cls(inner)

    def save(self, path: Path) -> None:
        path.write_text(self._json(), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; the end of a document has no text."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def _json(self) -> str:
        return self._inner.to_str()
