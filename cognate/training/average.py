"""Means of weights: over the steps of a run (WeightAverage), and over several runs (soup).

Source: Polyak & Juditsky, SIAM J. Control Optim. 30(4), 1992, for the first, with an exponential memory; Wortsman et al., Model soups,
arXiv:2203.05482, for the second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from cognate.config import parse
from cognate.rundir import read_json, verify_checkpoint, write_json
from cognate.training import checkpoint


@final
class WeightAverage:
    """An exponential running mean of a model's parameters, on their device. Buffers are not averaged: they are means already."""

    def __init__(self, model: nn.Module, decay: float, saved: Mapping[str, Tensor] | None) -> None:
        """saved: state() of an attempt before; None begins with the weights as they are"""
        self._model, self._decay = model, decay
        self._parameters = dict(model.named_parameters())
        self._mean = {
            name: (parameter if saved is None else saved[name].to(parameter.device)).detach().clone()
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`. Early on the memory is shorter, else the mean would be that of the random beginning."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._mean.values()), [parameter.detach() for parameter in self._parameters.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the mean for its weights, for as long as the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """What the model's state_dict() would be with the mean for its weights."""
        return {**self._model.state_dict(), **self._mean}

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._mean[name] = self._mean[name], parameter.data


class NotAlike(ValueError):
    """Checkpoints whose weights cannot be averaged."""


def soup(folders: Sequence[Path], output: Path) -> list[str]:
    """Write a checkpoint whose weights are the mean of those of `folders`; what differs between them, in sentences.

    It has the first one's configuration, tokenizer and, where shapes differ, its tensors. It can be evaluated and can generate, but has
    no optimizer to go on with. Raises NotAlike, CorruptCheckpoint, or FileExistsError.
    """
    for folder in folders:
        verify_checkpoint(folder)
    if len({(folder / "tokenizer.json").read_bytes() for folder in folders}) > 1:
        raise NotAlike("the checkpoints have different tokenizers: their embeddings speak of different tokens")
    states = [checkpoint.load_weights(folder) for folder in folders]
    first, *others = states
    if any(each.keys() != first.keys() for each in others):
        raise NotAlike("the checkpoints are of different architectures")
    unlike = sorted(name for name, tensor in first.items() if any(each[name].shape != tensor.shape for each in others))
    if parameters := [name for name in unlike if not name.startswith("halting.")]:
        raise NotAlike(f"the checkpoints have other shapes of {', '.join(parameters)}")
    mean = {name: tensor if name in unlike else torch.stack([each[name] for each in states]).mean(0) for name, tensor in first.items()}
    if output.exists():
        raise FileExistsError(output)
    beside = output.with_name(f".{output.name}.{os.getpid()}")  # whole or not at all
    beside.mkdir(parents=True)
    try:
        for name in ("tokenizer.json", "config.json"):
            shutil.copyfile(folders[0] / name, beside / name)
        of_first = read_json(folders[0] / "state.json")
        data = {name: of_first[name] for name in ("data", "data_files") if name in of_first}
        write_json(beside / "state.json", {"averaged": [str(folder) for folder in folders], **data})
        checkpoint.write_weights(mean, beside)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [*_remarks(folders), *(f"{name} is the first one's: the others have another shape" for name in unlike)]


def _remarks(folders: Sequence[Path]) -> list[str]:
    configs = [parse(read_json(folder / "config.json")) for folder in folders]
    remarks = []
    if len({config.seed for config in configs}) > 1:
        remarks.append("the runs began from different random weights (seeds): the mean of unrelated networks is seldom one that works")
    if len({config.model for config in configs}) > 1:
        remarks.append("the runs' model settings differ; the first one's are kept")
    return remarks
