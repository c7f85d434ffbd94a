"""renumber.py: other numbers, the same problem. Wrong answers in training data are worse than none, so most of this is refusals."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from cognate.data import files, renumber
from cognate.data.formats import Example, gsm8k, svamp
from cognate.data.renumber import NotRenumberable, chain_holds, read, renumbered
from cognate.data.sources import SOURCES

CLIPS = gsm8k(
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many clips did she sell?",
        "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    }
)


def problem(question: str, answer: str) -> Example:
    return gsm8k({"question": question, "answer": answer})


def refused(question: str, answer: str) -> str:
    with pytest.raises(NotRenumberable) as caught:
        read(question, answer)
    return str(caught.value)


def test_a_number_is_replaced_wherever_it_stands() -> None:
    variants = renumbered(CLIPS, 5, seed=0)
    assert len({variant.key for variant in variants} | {CLIPS.key}) == 6
    for variant in variants:
        clips = int(re.search(r"to (\d+) of", variant.prompt)[1])  # type: ignore[index]
        may, total = clips // 2, clips + clips // 2
        assert clips % 2 == 0, "natural numbers stay natural"
        assert variant.answer == (
            f" She sold {clips}/2 = <<{clips}/2={may}>>{may} clips in May.\n"
            f"She sold {clips}+{may} = <<{clips}+{may}={total}>>{total} clips altogether.\n#### {total}"
        )
        assert variant.prompt == f"Question: {variant.identity}\nAnswer:"


def test_variants_depend_on_the_seed_and_the_problem_alone() -> None:
    assert renumbered(CLIPS, 3, seed=1) == renumbered(CLIPS, 3, seed=1) != renumbered(CLIPS, 3, seed=2)
    assert renumbered(CLIPS, 3, seed=1)[:2] == renumbered(CLIPS, 2, seed=1), "more variants add to the ones before"


def test_svamp_goes_through_its_equation() -> None:
    row = {"question_concat": "Marco has 11 figs. Together they have 30. How many has Dad?", "Equation": "( 30.0 - 11.0 )", "Answer": "19"}
    for variant in renumbered(svamp(row), 5, seed=0):
        less, more = (int(text) for text in re.findall(r"\d+", variant.identity))
        assert variant.answer == f" {more}-{less} = <<{more}-{less}={more - less}>>{more - less}\n#### {more - less}"
        assert more > less


def test_an_equation_without_marks_is_a_chain_too() -> None:
    for variant in renumbered(Example("", " 7*3=21\n#### 21", "There are 7 buses with 3 seats. How many seats?"), 4, seed=0):
        buses, seats = (int(text) for text in re.findall(r"\d+", variant.identity))
        assert variant.answer == f" {buses}*{seats}={buses * seats}\n#### {buses * seats}"


def test_a_percentage_takes_its_other_forms_along() -> None:
    discount = problem("A coat costs $80 and is 25% off. What is the price?", "It is 80*.75 = $<<80*.75=60>>60.\n#### 60")
    for variant in renumbered(discount, 5, seed=0):
        price, percent = (int(text) for text in re.findall(r"\d+", variant.identity))
        assert variant.answer.endswith(f"#### {price * (100 - percent) // 100}")
        assert 1 < percent < 100


def test_commas_and_cents_are_written_as_before() -> None:
    bought = problem("A shop buys 1,200 cups at $0.25. What does it pay?", "It pays 1,200*.25 = $<<1200*.25=300>>300.\n#### 300")
    texts = [variant.identity + variant.answer for variant in renumbered(bought, 8, seed=0)]
    assert all("$0.25" in text for text in texts), "a price that is no whole number stays"
    assert any(re.search(r"buys \d,\d00 cups.* \d,\d00\*\.25 = \$<<\d{4}\*", text) for text in texts)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("He has 5 figs.", "5\n#### 5", "no annotated steps"),
        ("He has 10 figs and 3 friends.", "10/3=<<10/3=3.33>>3.33\n#### 3.33", "not exactly true"),
        ("He has 10 figs and eats 3.", "<<10-3=7>>7\n#### 8", "not exactly true"),
        ("He has 10 figs and eats 3.", "<<10-3=7>>7 <<7*6=42>>42\n#### 42", "nothing explains 6"),
        ("He has 10 figs and eats 3.", "There are 9 so <<10-3=7>>7\n#### 7", "nothing explains 9"),
        ("He eats 4 of 9 figs and 2 more.", "<<7-4=3>>3 <<9-2=7>>7 <<3+4=7>>7\n#### 7", "nothing explains 7"),
        ("30 pupils, 20 girls and 10 boys, sit in rows. How many girls less boys?", "<<20-10=10>>10\n#### 10", "30 follows"),
        ("He has five figs and eats 2 of the 5, twice.", "<<5-2=3>>3\n#### 3", "no number that could be another"),
        ("He eats 3/4 of a cake.", "<<3/4=.75>>.75\n#### .75", "no number that could be another"),
        ("Born in 1932, she was in school in 1939.", "<<1939-1932=7>>7\n#### 7", "no number that could be another"),
    ],
)
def test_what_cannot_be_read_safely_is_left_out(question: str, answer: str, reason: str) -> None:
    assert reason in refused(question, answer)


def test_a_value_that_would_become_two_is_never_made() -> None:
    """12 is given and computed: the text does not say which of them a later 12 is."""
    both = problem("He has 12 figs and buys 3 boxes of 4.", "<<3*4=12>>12 more, <<12+12=24>>24 in all\n#### 24")
    for variant in renumbered(both, 5, seed=0):
        assert chain_holds(variant.answer)
        given, boxes, each = (int(text) for text in re.findall(r"\d+", variant.identity))
        assert given == boxes * each


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ("<<2+3=5>>5\n#### 5", True),
        ("<<2+3=6>>6\n#### 6", False),
        ("<<2+3=5>>5\n#### 6", False),
        ("2+3 is 5\n#### 5", False),
        ("<<2+3=5>>5", False),
        ("<<1/3=.33>>.33\n#### .33", False),
    ],
)
def test_a_chain_holds_only_if_every_step_does(answer: str, holds: bool) -> None:
    assert chain_holds(answer) is holds


@pytest.mark.parametrize(("name", "least"), [("gsm8k", 0.55), ("svamp", 0.9), ("asdiv", 0.5)])
def test_real_problems(data_dir: Path, name: str, least: float) -> None:
    """Every variant of real problems is checked again: exact steps, natural where the original is, the same words around the numbers."""
    source = SOURCES[name]  # type: ignore[index]
    examples = list(files.read_usable(data_dir, source, source.train))[:600]
    varied = 0
    for example in examples:
        try:
            variants = renumbered(example, 2, seed=0)
        except NotRenumberable:
            continue
        varied += bool(variants)
        for variant in variants:
            assert chain_holds(variant.answer)
            for one, other in ((example.identity, variant.identity), (example.answer, variant.answer)):
                assert renumber._NUMBER.sub("#", one) == renumber._NUMBER.sub("#", other)
                pairs = zip(renumber._NUMBER.findall(one), renumber._NUMBER.findall(other), strict=True)
                assert all("." in old or Fraction(new.replace(",", "")).denominator == 1 for old, new in pairs)
    assert varied >= least * len(examples)
