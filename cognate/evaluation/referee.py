"""A second opinion: EleutherAI's lm-evaluation-harness asks the same model, and its figures stand beside ours.

The harness gets our items, in our prompts, from Parquet files in a folder of its own; how it asks, compares and counts is its own
affair. `Answering` is what it asks of a model; it needs no harness, and shares nothing with scoring.py: every answer comes of plain
forward passes over one whole text. Nothing is fetched.

acc must agree; our acc_norm is per byte, which the harness calls acc_bytes (its own acc_norm is per character).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cognate.config import DatasetName
from cognate.evaluation.items import Items
from cognate.evaluation.tasks import TASKS, Model

REFEREED: Final[tuple[DatasetName, ...]] = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "boolq", "gsm8k")
_GUESSED_AT_ONCE: Final = 32  # texts
_OUR_NAMES: Final = {"acc,none": "acc", "acc_bytes,none": "acc_norm", "exact_match,strict-match": "exact_match"}


class RefereeMissing(RuntimeError):
    """lm-evaluation-harness is not installed."""


@dataclass(frozen=True)
class Answering:
    """A model in the terms of the harness: every request is a tuple of arguments."""

    model: Model

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(nats, whether it is what greedy decoding would say) of each (context, continuation)"""
        encode = self.model.tokenizer.encode
        return [self._weigh(encode(context), encode(continuation)) for context, continuation in requests]

    def loglikelihood_rolling(self, requests: Sequence[tuple[str]]) -> list[float]:
        """Nats of whole texts, but for their first token."""
        encoded = [[*self.model.tokenizer.encode(text), self.model.tokenizer.end_id] for (text,) in requests]
        return [self._weigh(tokens[:1], tokens[1:])[0] for tokens in encoded]

    def generate_until(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Greedy text of each (context, {until, max_gen_toks}), cut before the first of `until`."""
        most = max(settings.get("max_gen_toks", 256) for _, settings in requests)
        prompts = [self.model.tokenizer.encode(context) for context, _ in requests]
        starts = range(0, len(prompts), _GUESSED_AT_ONCE)
        guesses = [guess for start in starts for guess in self._guess(prompts[start : start + _GUESSED_AT_ONCE], most)]
        written = [self._write(prompt, guess, most) for prompt, guess in zip(prompts, guesses, strict=True)]
        texts = [self.model.tokenizer.decode(tokens) for tokens in written]
        return [_cut(text, settings.get("until", [])) for text, (_, settings) in zip(texts, requests, strict=True)]

    def _weigh(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        logits = self._read([*context, *continuation])[len(context) - 1 : -1]  # [token of the continuation, vocabulary]
        wanted = torch.tensor(continuation)
        nats = torch.log_softmax(logits, dim=-1)[torch.arange(len(wanted)), wanted]
        return float(nats.sum()), bool((logits.argmax(-1) == wanted).all())

    def _write(self, prompt: list[int], guess: list[int], most: int) -> list[int]:
        """The likeliest token each time, by a pass over all before it. `guess` saves passes, for one judges all its tokens at once."""
        written: list[int] = []
        while True:
            logits = self._read([*prompt, *written, *guess])[len(prompt) + len(written) - 1 :, : self.model.tokenizer.vocab_size]
            likeliest = logits.argmax(-1).tolist()
            right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(guess, likeliest, strict=False)))
            written = [*written, *likeliest[: right + 1]][:most]  # what is likeliest after a wrong token counts no more
            if self.model.tokenizer.end_id in written:
                return written[: written.index(self.model.tokenizer.end_id) + 1]
            if len(written) == most:
                return written
            (guess,) = self._guess([[*prompt, *written]], most - len(written))

    def _guess(self, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        net, tokenizer = self.model.net, self.model.tokenizer
        return net.generate(prompts, most, stop={tokenizer.end_id}, vocab_size=tokenizer.vocab_size, adaptive=False).tokens

    @torch.no_grad()
    def _read(self, tokens: list[int]) -> Tensor:
        """The logits behind each token, [time, vocabulary], float64: by the whole text at once, without a state and in no batch."""
        device = self.model.net.embedding.weight.device
        logits: Tensor = self.model.net(torch.tensor([tokens], device=device)).logits
        return logits[0].double().cpu()


def referee(model: Model, chosen: Sequence[Items]) -> dict[str, dict[str, float]]:
    """The harness's figures on the items, by our names, for each dataset that it can judge. Raises RefereeMissing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import simple_evaluate
    except ImportError as error:
        raise RefereeMissing("lm-evaluation-harness is not installed; it comes with the extra 'eval'") from error
    answering = Answering(model)

    class Asked(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return answering.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            return answering.loglikelihood_rolling([request.args for request in requests])

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            return answering.generate_until([request.args for request in requests])

    with tempfile.TemporaryDirectory(prefix="referee-") as folder:
        tasks = [ConfigurableTask(config=task_config(each, Path(folder))) for each in chosen if each.name in REFEREED]
        if not tasks:
            return {}
        done = simple_evaluate(model=Asked(), tasks=tasks, num_fewshot=0, bootstrap_iters=0, log_samples=False)
    figures = done["results"]
    return {
        name.removeprefix("cognate_"): {_OUR_NAMES[key]: float(value) for key, value in each.items() if key in _OUR_NAMES}
        for name, each in figures.items()
    }


def task_config(chosen: Items, folder: Path) -> dict[str, Any]:
    """The items as a task of the harness, its rows in a Parquet file in `folder`."""
    # The harness puts the space between prompt and answer itself.
    rows = [
        {"prompt": item.prompt, "answer": item.answer, "choices": [text[1:] for text in item.candidates], "gold": item.correct}
        for item in chosen.items
    ]
    file = folder / f"{chosen.name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    config: dict[str, Any] = {
        "task": f"cognate_{chosen.name}",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": " ",
    }
    if TASKS[chosen.name].figure == "exact_match":
        number = r"#### (\-?[0-9\.\,]+)"  # as in the harness's own task for GSM8K
        return config | {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [], "max_gen_toks": 288, "do_sample": False},
            "filter_list": [
                {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": number}, {"function": "take_first"}]}
            ],
            "metric_list": [
                {
                    "metric": "exact_match", "aggregation": "mean", "higher_is_better": True,
                    "ignore_case": True, "ignore_punctuation": False, "regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"],
                }
            ],
        }  # fmt: skip
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")]
    return config | {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": metrics}


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for place in (text.find(end) for end in until if end) if place >= 0]
    return text[: min(ends, default=len(text))]
