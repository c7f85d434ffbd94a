"""From an answer in words to right or wrong, by each dataset's own rules. Pure functions of text.

A number is what stands behind the first "####", as in training; text is compared as SQuAD (HotpotQA) and DROP do; Java by its
tokens. A share comes with its 95 % interval.

Source: openai/grade-school-math, dataset.py; HotpotQA, hotpot_evaluate_v1.py; DROP, drop_eval.py of allenai/allennlp-reading-comprehension;
CodeXGLUE, Text-Code/text-to-code/evaluator; Wilson, JASA 22 (1927); Cochran, Sampling Techniques (1977), chapter 6.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final

MARK: Final = "####"
_RESAMPLED: Final = 1000  # as sacrebleu does by default
_SIGNED = r"[-+\u2212]?\s?[$£€]?\s?"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
# What would make another number of it: 3/4, 10:30, 12,5, 1e5, 3 + 4. A unit, a per cent sign or a full stop do not.
_NOT_ALONE = r"(?![\d]|[,.:/]\d|[eE][-+]?\d|\s*[-+*/=^×]\s*[\d(])"
_AT_START = re.compile(rf"\s*({_SIGNED}{_DIGITS}){_NOT_ALONE}", re.ASCII)
_ANYWHERE = re.compile(rf"(?<![\w.,])([-\u2212]?{_DIGITS})", re.ASCII)


def final_number(text: str) -> Decimal | None:
    """The number right behind the first "####", on its line: "#### $1,234.50 in all" is 1234.50. None: no plain one."""
    _, mark, rest = text.partition(MARK)
    found = _AT_START.match(rest.split("\n")[0]) if mark else None
    return _number(found[1]) if found else None


def last_number(text: str) -> Decimal | None:
    """The last number anywhere: the more lenient rule that some publications report."""
    found = _ANYWHERE.findall(text)
    return _number(found[-1]) if found else None


def majority(numbers: Sequence[Decimal | None]) -> Decimal | None:
    """The number that most answers give, of equally many the one given first; answers without one have no vote."""
    counts = Counter(number for number in numbers if number is not None)
    return counts.most_common(1)[0][0] if counts else None


def _number(text: str) -> Decimal:
    return Decimal(re.sub(r"[^\d.-]", "", text.replace("\u2212", "-")))


# --- text -------------------------------------------------------------------------------------------------

Pair = tuple[float, float]  # exact match and F1, 0..1


def hotpot_scores(answer: str, gold: str) -> Pair:
    """Exact match and F1 as HotpotQA defines them: yes, no and noanswer share no words with anything else."""
    ours, theirs = normalised(answer), normalised(gold)
    if ours != theirs and not {ours, theirs}.isdisjoint(("yes", "no", "noanswer")):
        return 0.0, 0.0
    return float(ours == theirs), _f1(Counter(ours.split()), Counter(theirs.split()))


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def drop_scores(answer: str, accepted: Sequence[Sequence[str]]) -> Pair:
    """The best exact match and the best F1 over the accepted answers, each a list of spans; for several, ours is cut at its commas."""
    pairs = [_drop_pair([answer] if len(gold) == 1 else answer.split(", "), gold) for gold in accepted]
    return max((exact for exact, _ in pairs), default=0.0), max((f1 for _, f1 in pairs), default=0.0)


def _drop_pair(ours: Sequence[str], theirs: Sequence[str]) -> Pair:
    our_bags, their_bags = ([_drop_words(span) for span in spans] for spans in (ours, theirs))
    exact = len(ours) == len(theirs) and {" ".join(bag) for bag in our_bags} == {" ".join(bag) for bag in their_bags}
    return float(exact), round(_aligned([[_drop_f1(set(our), set(their)) for their in their_bags] for our in our_bags]), 2)


def _drop_words(span: str) -> list[str]:
    """Words as DROP compares them: divided at spaces and hyphens, numbers by their value."""
    return [word for word in (_drop_word(token) for token in re.split(r"[ -]", span)) if word]


def _drop_word(token: str) -> str:
    token = token.lower()
    if (number := _float(token)) is None:
        token = "".join(letter for letter in token if letter not in string.punctuation)
        number = _float(token)
    token = str(number) if number is not None else re.sub(r"\b(a|an|the)\b", " ", token)
    return " ".join(token.split())


def _float(token: str) -> float | None:
    try:
        return float(token)
    except ValueError:
        return None


def _drop_f1(ours: set[str], theirs: set[str]) -> float:
    numbers = {word for word in theirs if _float(word) is not None}
    if numbers and numbers.isdisjoint(ours):  # the wrong number is not half right
        return 0.0
    return _f1(Counter(ours), Counter(theirs))


def _f1(ours: Counter[str], theirs: Counter[str]) -> float:
    """The harmonic mean of precision and recall over words."""
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total())


def _aligned(scores: list[list[float]]) -> float:
    """The mean over the best one-to-one pairing of ours [row] with theirs [column]; whoever is left over counts 0."""
    if len(scores) < len(scores[0]):
        scores = [list(column) for column in zip(*scores, strict=True)]
    best = {0: 0.0}  # by the set of columns taken, as bits: a row takes one of those left, or none
    for row in scores:
        longer = dict(best)
        for taken, total in best.items():
            for column, score in enumerate(row):
                if not taken >> column & 1:
                    key = taken | 1 << column
                    longer[key] = max(longer.get(key, 0.0), total + score)
        best = longer
    return max(best.values()) / len(scores)


def same_code(answer: str, gold: str) -> bool:
    """CodeXGLUE's exact match: the same tokens, however they are spaced."""
    return answer.split() == gold.split()


def bleu() -> Callable[[Sequence[str], Sequence[str]], tuple[float, float | None, float | None]] | None:
    """Corpus BLEU of answers against gold, 0..1, and its 95 % interval by resampling the pairs, unless no resample has a match.

    None where sacrebleu is not installed. Tokens are divided at spaces. Where we differ from CodeXGLUE's script: sacrebleu smooths only
    orders without a match, the script adds one to all counts.
    """
    try:
        import sacrebleu
    except ImportError:
        return None

    def score(answers: Sequence[str], gold: Sequence[str]) -> tuple[float, float | None, float | None]:
        metric = sacrebleu.BLEU(tokenize="none")
        found = metric.corpus_score(_lines(answers), [_lines(gold)], n_bootstrap=_RESAMPLED)
        told = json.loads(found.format(width=6, is_json=True, signature=metric.get_signature().format()))
        if "confidence_mean" not in told:
            return found.score / 100, None, None
        low, high = (told["confidence_mean"] + side * told["confidence_var"] for side in (-1, 1))
        return found.score / 100, max(0.0, low / 100), min(1.0, high / 100)

    return score


def _lines(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


# --- shares -----------------------------------------------------------------------------------------------


Z: Final = 1.959964  # of the normal distribution, 95 % lie within so many standard deviations


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a share over n items. For a mean of values within 0..1 it is wider than needed, never too narrow."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def ratio(totals: Sequence[float], sizes: Sequence[int]) -> tuple[float, float | None]:
    """Sum of totals by sum of sizes, and its standard error where the pairs, not what is inside one, are independent; None for one pair."""
    mean, n = sum(totals) / sum(sizes), len(sizes)
    if n == 1:
        return mean, None
    squares = sum((total - mean * size) ** 2 for total, size in zip(totals, sizes, strict=True))
    return mean, math.sqrt(n / (n - 1) * squares) / sum(sizes)
