"""How each of the 14 datasets is measured: a table of tasks, and the few kinds of measuring that they are made of.

A measure puts the items to a model and gives its figures, each with an interval where there is one that can be defended. Nothing
here depends on the batch size or on what was measured before. suite.py puts together what a report says of them.

Source of targets and forecasts: docs/evaluation.md, "Targets and forecasts".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import fmean
from typing import Final

from cognate import sandbox
from cognate.config import DatasetName
from cognate.data.curriculum import text_hash
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation import answers
from cognate.evaluation.items import Item, Items
from cognate.evaluation.scoring import USUAL, Batching, Likelihood, continue_texts, likelihoods, read_on
from cognate.model import Cognate

Range = tuple[float, float]
VOTING_TEMPERATURE: Final = 0.7  # that of Wang et al., arXiv:2203.11171, for most of their models


@dataclass(frozen=True)
class Figure:
    """A measured number. low, high: its 95 % interval, None where it has none that we could defend; n: of what it is a mean."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a model did on the items. `right`: of each item, its share of the headline figure, 0..1"""

    figures: Mapping[str, Figure]
    right: tuple[float, ...] = ()
    chance: float = 0.0
    absent: Mapping[str, str] = field(default_factory=dict)  # figures that could not be measured, and why
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """How a dataset is measured. `figure` is the one that speaks for it; targets and forecasts are for figures by name."""

    figure: str
    measure: Callable[[Model, Sequence[Item]], Outcome]
    targets: Mapping[str, Range] = field(default_factory=dict)
    forecasts: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model as it is asked. calculator, votes: figures wanted beside the usual ones, of datasets whose answers are numbers"""

    net: Cognate
    tokenizer: Tokenizer
    batching: Batching = USUAL
    calculator: bool = False
    votes: int = 0

    def write(self, prompts: Sequence[str], max_new_tokens: int, *, calculator: bool = False) -> list[str]:
        return continue_texts(self.net, self.tokenizer, prompts, max_new_tokens, self.batching, calculator=calculator)

    def draw(self, prompts: Sequence[str], max_new_tokens: int, number: int) -> list[str]:
        """The `number`-th of many drawn answers to each prompt; by prompt and number the same, whatever else is asked."""
        seeds = [text_hash(f"{number}\0{prompt}") >> 1 for prompt in prompts]
        return continue_texts(self.net, self.tokenizer, prompts, max_new_tokens, self.batching, temperature=VOTING_TEMPERATURE, seeds=seeds)

    def weigh(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        return likelihoods(self.net, self.tokenizer, prompts, candidates, self.batching)


def measure(model: Model, chosen: Items) -> Outcome:
    """What the model does on the items; it is left in the mode it was in."""
    was_training = model.net.training
    model.net.eval()
    try:
        return TASKS[chosen.name].measure(model, chosen.items)
    finally:
        model.net.train(was_training)


def share(values: Sequence[float]) -> Figure:
    """The mean of values within 0..1, with its interval."""
    mean = fmean(values)
    return Figure(mean, len(values), *answers.wilson(mean, len(values)))


# --- how each kind is measured ----------------------------------------------------------------------------


def numbers(max_new_tokens: int) -> Callable[[Model, Sequence[Item]], Outcome]:
    """Greedy answers, right when the number behind "####" is."""

    def of(model: Model, items: Sequence[Item]) -> Outcome:
        written = model.write([item.prompt for item in items], max_new_tokens)
        gold = [answers.final_number(item.answer) for item in items]
        assert None not in gold, "every answer of the training format ends with its number"
        right = [float(answers.final_number(text) == number) for text, number in zip(written, gold, strict=True)]
        lenient = [float(answers.last_number(text) == number) for text, number in zip(written, gold, strict=True)]
        formed = [float(answers.final_number(text) is not None) for text in written]
        figures = {"exact_match": share(right), "last_number": share(lenient), "has_answer": share(formed)}
        return Outcome(figures | _with_help(model, [item.prompt for item in items], gold, max_new_tokens), tuple(right))

    return of


def _with_help(model: Model, prompts: Sequence[str], gold: Sequence[Decimal | None], max_new_tokens: int) -> dict[str, Figure]:
    """Exact match with a calculator, and of the majority of drawn answers, where they are wanted."""
    figures = {}
    if model.calculator:
        written = model.write(prompts, max_new_tokens, calculator=True)
        figures["exact_match_calculator"] = share(
            [float(answers.final_number(text) == each) for text, each in zip(written, gold, strict=True)]
        )
    if model.votes:
        drawn = [map(answers.final_number, model.draw(prompts, max_new_tokens, number)) for number in range(model.votes)]
        elected = map(answers.majority, zip(*drawn, strict=True))
        figures[f"maj@{model.votes}"] = share([float(number == each) for number, each in zip(elected, gold, strict=True)])
    return figures


def programs(max_new_tokens: int) -> Callable[[Model, Sequence[Item]], Outcome]:
    """Greedy programs, right when all tests pass in the sandbox."""

    def of(model: Model, items: Sequence[Item]) -> Outcome:
        written = model.write([item.prompt for item in items], max_new_tokens)
        with ThreadPoolExecutor(max_workers=2) as pool:
            verdicts = list(pool.map(lambda code, item: sandbox.run(code, item.tests, item.setup), written, items))
        right = [float(verdict.passed) for verdict in verdicts]
        reasons = {reason: sum(verdict.reason == reason for verdict in verdicts) for reason in {verdict.reason for verdict in verdicts}}
        isolation = sorted({" + ".join(verdict.isolation) for verdict in verdicts if verdict.isolation})
        remarks = (
            f"isolation: {'; '.join(isolation) or 'none reported'}",
            "verdicts: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())),
        )
        return Outcome({"pass@1": share(right)}, tuple(right), remarks=remarks)

    return of


def choices(model: Model, items: Sequence[Item]) -> Outcome:
    """The likeliest candidate: as it is (acc), and by nats per byte (acc_norm)."""
    weighed = model.weigh([item.prompt for item in items], [item.candidates for item in items])
    plain = [_first_best([each.nats for each in found]) for found in weighed]
    by_byte = [
        _first_best([each.nats / len(text.strip().encode()) for each, text in zip(found, item.candidates, strict=True)])
        for found, item in zip(weighed, items, strict=True)
    ]
    right, right_by_byte = ([float(one == item.correct) for one, item in zip(some, items, strict=True)] for some in (plain, by_byte))
    return Outcome({"acc_norm": share(right_by_byte), "acc": share(right)}, tuple(right_by_byte), _chance(items), remarks=_commonest(items))


def reasoned_choices(max_new_tokens: int) -> Callable[[Model, Sequence[Item]], Outcome]:
    """The model writes its facts; then the likelier of the candidates behind "####"."""

    def of(model: Model, items: Sequence[Item]) -> Outcome:
        written = model.write([item.prompt for item in items], max_new_tokens)
        facts = [text.partition(answers.MARK)[0].rstrip() for text in written]
        prompts = [f"{item.prompt}{fact}\n{answers.MARK}" for item, fact in zip(items, facts, strict=True)]
        weighed = model.weigh(prompts, [item.candidates for item in items])
        right = [float(_first_best([each.nats for each in found]) == item.correct) for found, item in zip(weighed, items, strict=True)]
        return Outcome({"acc": share(right)}, tuple(right), _chance(items), remarks=_commonest(items))

    return of


def spans(max_new_tokens: int, score: Callable[[str, Item], answers.Pair]) -> Callable[[Model, Sequence[Item]], Outcome]:
    """Greedy answers, by exact match and by shared words."""

    def of(model: Model, items: Sequence[Item]) -> Outcome:
        written = model.write([item.prompt for item in items], max_new_tokens)
        pairs = [score(text.strip(), item) for text, item in zip(written, items, strict=True)]
        exact = tuple(pair[0] for pair in pairs)
        return Outcome({"exact_match": share(exact), "f1": share([pair[1] for pair in pairs])}, exact)

    return of


def java(max_new_tokens: int) -> Callable[[Model, Sequence[Item]], Outcome]:
    """Greedy code, by exact match of its tokens and by BLEU."""

    def of(model: Model, items: Sequence[Item]) -> Outcome:
        written, gold = model.write([item.prompt for item in items], max_new_tokens), [item.answer for item in items]
        exact = tuple(float(answers.same_code(text, wanted)) for text, wanted in zip(written, gold, strict=True))
        figures, absent = {"exact_match": share(exact)}, {}
        if (bleu := answers.bleu()) is not None:
            value, low, high = bleu(written, gold)
            figures["bleu"] = Figure(value, len(items), low, high)
        else:
            absent["bleu"] = "sacrebleu is not installed; it comes with the extra 'eval'"
        return Outcome(figures, exact, absent=absent)

    return of


def lines(model: Model, items: Sequence[Item]) -> Outcome:
    """Next-token accuracy and perplexity of lines and their ends."""
    read = read_on(model.net, model.tokenizer, [item.answer for item in items], model.batching)
    tokens, words = [each.tokens for each in read], [len(item.answer.split()) + 1 for item in items]
    # Nothing predicts a line's first token. By words it is charged as one drawn evenly, so that whole lines are paid for.
    first = math.log(model.tokenizer.vocab_size)
    figures = {
        "token_accuracy": _share_of_parts([each.hits for each in read], tokens),
        "token_perplexity": _perplexity([-each.nats for each in read], tokens),
        "word_perplexity": _perplexity([first - each.nats for each in read], words),
    }
    return Outcome(figures, tuple(each.hits / each.tokens for each in read), 1 / model.tokenizer.vocab_size)


def _share_of_parts(hits: Sequence[int], parts: Sequence[int]) -> Figure:
    """Wilson's interval for as many parts as their lines are worth: those of one line depend on each other."""
    mean, error = answers.ratio(hits, parts)
    worth = min(sum(parts), mean * (1 - mean) / error**2) if error else len(parts)
    return Figure(mean, sum(parts), *answers.wilson(mean, worth))


def _perplexity(nats: Sequence[float], parts: Sequence[int]) -> Figure:
    mean, error = answers.ratio(nats, parts)
    ends = (_exp(mean - answers.Z * error), _exp(mean + answers.Z * error)) if error is not None else (None, None)
    return Figure(_exp(mean), sum(parts), *ends)


def _chance(items: Sequence[Item]) -> float:
    return fmean(1 / len(item.candidates) for item in items)


def _commonest(items: Sequence[Item]) -> tuple[str, ...]:
    """Where all items have the same candidates, the score of always choosing the one that is most often right."""
    if len({item.candidates for item in items}) > 1:
        return ()
    counts = {text: sum(item.correct == number for item in items) for number, text in enumerate(items[0].candidates)}
    text = max(counts, key=lambda text: counts[text])
    return (f"always answering {text.strip()!r} gives {counts[text] / len(items):.3f}",)


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda number: values[number])


def _exp(nats: float) -> float:
    return math.exp(nats) if not nats > 700 else math.inf


# --- the table --------------------------------------------------------------------------------------------

# The longest answers are those of all but one in a hundred of the training rows, rounded up.
TASKS: Final[Mapping[DatasetName, Task]] = {
    "gsm8k": Task("exact_match", numbers(288), {"exact_match": (0.30, 0.40)}, {"exact_match": (0.01, 0.03)}),
    "svamp": Task("exact_match", numbers(64)),
    "asdiv": Task("exact_match", numbers(64)),
    "mbpp": Task("pass@1", programs(256), {"pass@1": (0.20, 0.30)}, {"pass@1": (0.0, 0.0)}),
    "codexglue": Task("exact_match", java(144)),
    "arc_easy": Task("acc_norm", choices, {"acc_norm": (0.40, 0.50)}, {"acc_norm": (0.26, 0.32)}),
    "arc_challenge": Task("acc_norm", choices, {"acc_norm": (0.40, 0.50)}, {"acc_norm": (0.26, 0.32)}),
    "hotpotqa": Task("exact_match", spans(32, lambda text, item: answers.hotpot_scores(text, item.answer.strip()))),
    "drop": Task("exact_match", spans(32, lambda text, item: answers.drop_scores(text, item.accepted))),
    "strategyqa": Task("acc", reasoned_choices(112)),
    "piqa": Task("acc_norm", choices),
    "hellaswag": Task("acc_norm", choices, {"acc_norm": (0.30, 0.40)}, {"acc_norm": (0.26, 0.33)}),
    "boolq": Task("acc_norm", choices),
    "wikitext": Task("token_accuracy", lines, {"token_perplexity": (7.0, 10.0)}),
}
