"""Batches: documents packed into rows of a fixed length, in an order that only (seed, epoch) decides.

A document of n tokens gives n - 1 pairs of input and target, so no target ever comes from the next document.
A document with more pairs than a row has places is cut into pieces; a piece is treated as a document of its own
(no piece sees the one before it), and every pair is still trained exactly once an epoch.

A position in training is (epoch, index): batch() can be asked for any of them, in any order, and answers the same.
Rows that do not fill the last batch are not dropped: empty rows join them, one to a batch wherever there are enough
batches, so shapes are static, no batch is thin, and an epoch is every document once.

Packing is best fit, longest first (Johnson et al., SIAM J. Comput. 3(4), 1974).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cognate.config import TrainingConfig
from cognate.data.corpus import Corpus, Documents
from cognate.data.curriculum import stage_for
from cognate.data.sources import Stage

IGNORED: Final = -100  # a target that is not trained on; cross_entropy's own default

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Packed rows. A token attends within its own document only; padding is one more document, its targets are IGNORED.

    tokens, targets, documents: int64 [batch, time]; documents are numbered from 0 in each row.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor


@final
class TrainingBatches:
    """The batches of a run. Keeps the layout of the epoch that was last asked for."""

    def __init__(self, corpus: Corpus, training: TrainingConfig, seed: int) -> None:
        self._curriculum, self._training, self._seed = corpus.curriculum, training, seed
        self._pad = corpus.tokenizer.end_id
        self._ids, self._pieces = _cut_all(corpus.training, training.sequence_length)
        self._bases = np.cumsum([0, *(len(each.ids) for each in corpus.training.values())])  # where each dataset's tokens begin
        self._first_epochs = [corpus.curriculum.first_epoch(name) for name in corpus.training]
        self._packings: dict[Stage, tuple[Pieces, Shape]] = {}
        self._layout: tuple[int, Layout] | None = None

    def steps_in_epoch(self, epoch: int) -> int:
        """Batches of the epoch (not optimizer updates: those are fewer when gradients are accumulated)."""
        _, shape = self._packing(epoch)
        return -(-shape.n_rows // self._training.batch_size)

    def tokens_in_epoch(self, epoch: int) -> int:
        """Targets that are trained on."""
        pieces, _ = self._packing(epoch)
        return int(pieces.lengths.sum())

    def fill_ratio(self, epoch: int) -> float:
        """Share of the places in the epoch's batches that hold a trained target."""
        places = self.steps_in_epoch(epoch) * self._training.batch_size * self._training.sequence_length
        return self.tokens_in_epoch(epoch) / places

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` of the epoch, counted from 0; epochs are counted from 1."""
        steps = self.steps_in_epoch(epoch)
        assert 0 <= index < steps, f"epoch {epoch} has {steps} batches, so none has the index {index}"
        # Rows are dealt out like cards: the empty ones, which come last, go to different batches.
        rows = range(index, steps * self._training.batch_size, steps)
        return _fill(self._ids, self._epoch_layout(epoch), rows, self._training.sequence_length, self._pad)

    def times_seen(self, epoch: int, index: int) -> Tensor:
        """The how many-th time it is that each token of a batch is trained on: 1 in its dataset's first epoch. 0 is padding.

        int64 [batch, time]
        """
        layout, length = self._epoch_layout(epoch), self._training.sequence_length
        rows = range(index, self.steps_in_epoch(epoch) * self._training.batch_size, self.steps_in_epoch(epoch))
        seen = np.zeros((len(rows), length), np.int64)
        for at, row in enumerate(rows):
            first, last = layout.bounds[row : row + 2] if row < len(layout.bounds) - 1 else (0, 0)
            for piece in range(first, last):
                dataset = int(np.searchsorted(self._bases, layout.pieces.starts[piece], side="right")) - 1
                place = slice(layout.offsets[piece], layout.offsets[piece] + layout.pieces.lengths[piece])
                seen[at, place] = epoch - self._first_epochs[dataset] + 1
        return torch.from_numpy(seen)

    def _packing(self, epoch: int) -> tuple[Pieces, Shape]:
        stage = stage_for(epoch)
        if stage not in self._packings:
            pieces = _join(self._pieces[part.dataset] for part in self._curriculum.parts_of(stage))
            self._packings[stage] = pieces, best_fit(pieces.lengths, self._training.sequence_length)
        return self._packings[stage]

    def _epoch_layout(self, epoch: int) -> Layout:
        if self._layout is None or self._layout[0] != epoch:
            pieces, shape = self._packing(epoch)
            self._layout = epoch, _lay_out(pieces, shape, _random_keys(self._seed, epoch, len(pieces.lengths) + shape.n_rows))
        return self._layout[1]


def validation_batches(corpus: Corpus, training: TrainingConfig, count: int) -> list[Batch]:
    """At most `count` batches of held-out text, the same in every run: equal shares of tokens from each dataset of the plan.

    Fewer batches when there is less text, with empty rows to fill the last; none when nothing is held out.
    """
    wanted = count * training.batch_size * training.sequence_length
    ids, pieces_by_name = _cut_all(corpus.validation, training.sequence_length)
    shares = _even_shares(pieces_by_name, wanted)
    if not shares:
        return []
    pieces = _join(shares)
    shape = best_fit(pieces.lengths, training.sequence_length)
    layout = _lay_out(pieces, shape, _random_keys(0, 0, len(pieces.lengths) + shape.n_rows))
    batches = min(count, -(-shape.n_rows // training.batch_size))
    return [
        _fill(ids, layout, range(index, batches * training.batch_size, batches), training.sequence_length, corpus.tokenizer.end_id)
        for index in range(batches)
    ]


# --- pieces -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pieces:
    """Runs of pairs: piece i has inputs ids[starts[i] : starts[i] + lengths[i]] and the same run one later as targets."""

    starts: _Ints  # [pieces]
    lengths: _Ints  # [pieces]


def cut(offsets: _Ints, sequence_length: int) -> Pieces:
    """Documents as pieces of at most `sequence_length` pairs, in order. offsets: [documents + 1]"""
    pairs = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-pairs // sequence_length)  # pieces of each document
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of the piece in its document
    within = number * sequence_length
    return Pieces(np.repeat(offsets[:-1], counts) + within, np.minimum(sequence_length, np.repeat(pairs, counts) - within))


def _cut_all(documents: Mapping[str, Documents], sequence_length: int) -> tuple[npt.NDArray[np.uint16], dict[str, Pieces]]:
    """All tokens end to end, and the pieces of each dataset as places in them."""
    bases = np.cumsum([0, *(len(each.ids) for each in documents.values())], dtype=np.int64)
    pieces = {name: cut(each.offsets + base, sequence_length) for (name, each), base in zip(documents.items(), bases, strict=False)}
    return np.concatenate([each.ids for each in documents.values()]), pieces


def _join(pieces: Iterable[Pieces]) -> Pieces:
    every = list(pieces)
    return Pieces(np.concatenate([each.starts for each in every]), np.concatenate([each.lengths for each in every]))


def _even_shares(pieces: Mapping[str, Pieces], wanted: int) -> list[Pieces]:
    """The first pieces of each dataset, so many that all have about the same number of tokens and `wanted` in all.

    A dataset that has less than its share gives all it has, and the others fill the gap.
    """
    totals = {name: np.cumsum(each.lengths) for name, each in pieces.items() if len(each.lengths)}
    chosen, left = [], wanted
    for rank, (name, running) in enumerate(sorted(totals.items(), key=lambda item: int(item[1][-1]))):
        share = -(-left // (len(totals) - rank))
        n_pieces = min(int(np.searchsorted(running, share)) + 1, len(running))
        chosen.append(Pieces(pieces[name].starts[:n_pieces], pieces[name].lengths[:n_pieces]))
        left = max(left - int(running[n_pieces - 1]), 0)
    return chosen


# --- packing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Where pieces go, longest first. It depends on their lengths only, so every epoch of a stage has the same one."""

    rows: _Ints  # [pieces]
    offsets: _Ints  # [pieces] in the row
    n_rows: int


def best_fit(lengths: _Ints, sequence_length: int) -> Shape:
    """Each piece, longest first, into the row with the least room that it fits, or into a new row."""
    rows: list[int] = []
    offsets: list[int] = []
    with_room: list[list[int]] = [[] for _ in range(sequence_length + 1)]  # rows by the room they have left
    rooms = 0  # bit r is set while some row has room r: the smallest room that fits is one shift away
    n_rows = 0
    for length in sorted(lengths.tolist(), reverse=True):
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row, n_rows = sequence_length, n_rows, n_rows + 1
        rows.append(row)
        offsets.append(sequence_length - room)
        if left := room - length:
            with_room[left].append(row)
            rooms |= 1 << left
    return Shape(np.array(rows, np.int64), np.array(offsets, np.int64), n_rows)


@dataclass(frozen=True)
class Layout:
    """An epoch's rows: row r holds pieces bounds[r] to bounds[r + 1], each at its offset."""

    pieces: Pieces
    offsets: _Ints  # [pieces]
    bounds: _Ints  # [rows + 1]


def _lay_out(pieces: Pieces, shape: Shape, keys: npt.NDArray[np.uint64]) -> Layout:
    """Pieces into the places of `shape`. keys: [pieces + rows], which decide among pieces of one length, and the order of rows."""
    n_pieces = len(pieces.lengths)
    longest_first = np.lexsort((keys[:n_pieces], -pieces.lengths))
    rows = np.argsort(keys[n_pieces:], kind="stable")[shape.rows]
    by_row = np.argsort(rows, kind="stable")
    order = longest_first[by_row]
    bounds = np.searchsorted(rows[by_row], np.arange(shape.n_rows + 1))
    return Layout(Pieces(pieces.starts[order], pieces.lengths[order]), shape.offsets[by_row], bounds)


def _random_keys(seed: int, epoch: int, count: int) -> npt.NDArray[np.uint64]:
    # Raw bits are the part of numpy's generators that is promised never to change between versions.
    return np.asarray(np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count))


def _fill(ids: npt.NDArray[np.uint16], layout: Layout, rows: Sequence[int], sequence_length: int, pad: int) -> Batch:
    """The rows as a batch; a number beyond the last row is an empty row."""
    tokens = np.full((len(rows), sequence_length), pad, np.int64)  # [batch, time]
    targets = np.full_like(tokens, IGNORED)
    documents = np.zeros_like(tokens)
    n_rows = len(layout.bounds) - 1
    for at, row in enumerate(rows):
        first, last = layout.bounds[row : row + 2] if row < n_rows else (0, 0)
        for document, piece in enumerate(range(first, last)):
            start, length, offset = layout.pieces.starts[piece], layout.pieces.lengths[piece], layout.offsets[piece]
            place = slice(offset, offset + length)
            tokens[at, place] = ids[start : start + length]
            targets[at, place] = ids[start + 1 : start + length + 1]
            documents[at, place] = document
        documents[at, targets[at] == IGNORED] = last - first
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(documents))
