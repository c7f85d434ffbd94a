"""answers.py: right or wrong, by each dataset's own rules, on cases worked out by hand."""

from __future__ import annotations

import builtins
import math
import sys
from decimal import Decimal
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.evaluation import answers
from cognate.evaluation.answers import drop_scores, final_number, hotpot_scores, last_number, ratio, same_code, wilson


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" so 70+2 = <<70+2=72>>72 figs.\n#### 72", "72"),
        ("#### 72.", "72"),
        ("#### 72.0", "72"),
        ("#### 72.50", "72.5"),
        ("#### -3", "-3"),
        ("#### \u22123", "-3"),
        ("####7", "7"),
        ("####    7   ", "7"),
        ("#### 007", "7"),
        ("#### .5", "0.5"),
        ("#### $1,234.50 in all", "1234.50"),
        ("#### -$5", "-5"),
        ("#### 1,234,567", "1234567"),
        ("#### 15%", "15"),
        ("#### 72 apples", "72"),
        ("#### 72apples", "72"),
        ("#### 72\n#### 73", "72"),
        ("#### 72#### 73", "72"),
        ("#### 5 eggs and 3 hens", "5"),
        ("#### 12, as said", "12"),
        ("#### 99999999999999999999999", "99999999999999999999999"),
        ("", None),
        ("72", None),
        ("The answer is 72", None),
        ("### 72", None),
        ("#### ", None),
        ("####\n72", None),
        ("#### seventy-two", None),
        ("#### x = 72", None),
        ("#### 3/4", None),
        ("#### 10:30", None),
        ("#### 12,5", None),
        ("#### 1,23", None),
        ("#### 1,2345", None),
        ("#### 1e5", None),
        ("#### 1.2.3", None),
        ("#### 3 + 4 = 7", None),
        ("#### 3*(4)", None),
        ("#### --3", None),
        ("#### \u0667\u0662", None),  # digits of another script
    ],
)
def test_the_number_behind_the_mark(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**12), 10**12))
def test_every_number_is_read_back(number: int) -> None:
    assert final_number(f"thus\n#### {number}") == final_number(f"#### {number:,}") == last_number(f"it is {number:,}.") == number


@given(st.text(alphabet="#0123456789.,-+$ /e\n", max_size=30))
def test_no_text_is_too_strange(text: str) -> None:
    final_number(text), last_number(text)


def test_the_lenient_rule_takes_the_last_number() -> None:
    assert last_number("3 + 4 = 7 figs.") == 7
    assert last_number("from 5 to -2.5") == Decimal("-2.5")
    assert last_number("none") is None


@pytest.mark.parametrize(
    ("answer", "gold", "scores"),
    [
        ("The Animorphs!", "animorphs", (1, 1)),
        ("yes", "yes", (1, 1)),
        ("yes it is", "yes", (0, 0)),
        ("yes", "yes it is", (0, 0)),
        ("no", "yes", (0, 0)),
        ("Ann Lee", "Ann", (0, 2 / 3)),
        ("Ann Ann", "Ann", (0, 2 / 3)),
        ("", "Ann", (0, 0)),
        ("the", "a", (1, 1)),
    ],
)
def test_hotpotqa_counts_words(answer: str, gold: str, scores: tuple[float, float]) -> None:
    assert hotpot_scores(answer, gold) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("answer", "accepted", "scores"),
    [
        ("2", [["2"]], (1, 1)),
        ("2.0", [["2"]], (1, 1)),
        ("3", [["2"]], (0, 0)),
        ("2 yards", [["2"]], (0, 0.67)),
        ("3 yards", [["2 yards"]], (0, 0)),  # the wrong number is not half right
        ("16,800 marks", [["16,800 marks"], ["16800"]], (1, 1)),
        ("the Ann-Lee", [["ann lee"]], (1, 1)),
        ("Ann, Bea", [["Ann"], ["Bea"], ["Ann", "Bea"]], (1, 1)),
        ("Bea, Ann", [["Ann", "Bea"]], (1, 1)),
        ("Ann", [["Ann", "Bea"]], (0, 0.5)),
        ("Ann, Cia", [["Ann", "Bea"]], (0, 0.5)),
        ("Ann, Bea, Cia", [["Ann", "Bea"]], (0, 0.67)),
        ("", [["Ann"]], (0, 0)),
    ],
)
def test_drop_compares_numbers_by_value_and_lists_by_their_best_pairing(
    answer: str, accepted: list[list[str]], scores: tuple[float, float]
) -> None:
    assert drop_scores(answer, accepted) == pytest.approx(scores)


def test_a_long_list_is_paired_at_once() -> None:
    """By sets of the shorter list: by those of the longer one, 26 names take minutes."""
    many = [chr(ord("a") + number) * 3 for number in range(26)]
    few = [*many[9:19], "other", "names"]
    assert drop_scores(", ".join(many), [few]) == drop_scores(", ".join(few), [many]) == (0, pytest.approx(10 / 26, abs=0.005))


def test_code_is_compared_by_its_tokens() -> None:
    assert same_code("\nint  f ( )", "int f ( )")
    assert not same_code("int f()", "int f ( )")


def test_without_the_library_there_is_no_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "sacrebleu":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "sacrebleu", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert answers.bleu() is None


def test_bleu_is_the_librarys() -> None:
    pytest.importorskip("sacrebleu")
    score = answers.bleu()
    assert score is not None
    right, almost = "int f ( ) { return a ; }", "int f ( ) { return b ; }"
    assert score([right], [f"\n{right}"])[0] == pytest.approx(1)
    value, low, high = score([right, almost, almost, "x"], [right] * 4)
    assert low is not None
    assert high is not None
    assert 0 < low < value < high <= 1
    assert score(["x"], [right]) == (0, None, None)


def test_wilson_is_the_textbooks() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for count, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson(count / n, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0.0, 0) == (0.0, 1.0)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_the_interval_holds_the_value(n: int, share: float) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert not math.isnan(low + high)


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 0.25]
    assert ratio(values, [1] * 5) == pytest.approx((fmean(values), stdev(values) / math.sqrt(5)))
    assert ratio([3.0], [5]) == (0.6, None)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=2, max_size=30))
def test_a_line_that_says_everything_twice_tells_no_more(lines: list[tuple[int, int]]) -> None:
    """What is inside a line does not count as independent."""
    totals, sizes = zip(*lines, strict=True)
    assert ratio([2 * total for total in totals], [2 * size for size in sizes]) == pytest.approx(ratio(totals, sizes))
