"""formats.py: what a row becomes, dataset by dataset."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import pytest

from cognate.config import DatasetName
from cognate.data.formats import FORMATS, Example, is_usable

ROWS: dict[DatasetName, dict[str, Any]] = {
    "gsm8k": {"question": "Ann has 2 bags of 3 figs. How many figs?", "answer": "Ann has 2*3 = <<2*3=6>>6 figs.\n#### 6"},
    "svamp": {"question_concat": "Ann had 5 figs and ate 2. How many are left?", "Equation": "( 5.0 - 2.0 )", "Answer": "3"},
    "asdiv": {
        "body": "Seven red and two green apples are in the basket.",
        "question": "How many apples are in the basket?",
        "answer": "9 (apples)",
        "formula": "7+2=9",
    },
    "mbpp": {
        "text": "Write a function to double a number.",
        "code": "def double(n):\r\n    return 2 * n",
        "test_list": ["assert double(2) == 4"],
    },
    "codexglue": {
        "nl": "get the name . concode_field_sep String name concode_elem_sep int id concode_field_sep void setName",
        "code": "String function ( ) { return name ; }",
    },
    "arc_easy": {"question": "Which is a liquid?", "choices": {"text": ["iron", "water"], "label": ["1", "2"]}, "answerKey": "2"},
    "arc_challenge": {"question": "Which is a liquid?", "choices": {"text": ["iron", "water"], "label": ["A", "B"]}, "answerKey": "B"},
    "hotpotqa": {
        "question": "What science fantasy young adult series is told in first person?",
        "answer": "Animorphs",
        "supporting_facts": {"title": ["Animorphs", "Animorphs"], "sent_id": [0, None]},
        "context": {
            "title": ["Left Behind", "Animorphs"],
            "sentences": [["Another series."], ["Animorphs is a science fantasy", " series of young adult books."]],
        },
    },
    "drop": {
        "passage": "The Lions scored a 23-yard and a 28-yard field goal.",
        "question": "How many field goals did the Lions score?",
        "answers_spans": {"spans": ["2", "two"], "types": ["number", "span"]},
    },
    "strategyqa": {
        "question": "Could a llama give birth twice during the War in Vietnam?",
        "answer": True,
        "facts": ["The War in Vietnam lasted 20 years.", "A llama is pregnant for 11 months."],
    },
    "piqa": {"goal": "boil water", "sol1": "heat it ", "sol2": "freeze it", "label": 0},
    "hellaswag": {
        "activity_label": "Baking cookies",
        "ctx": "A chef shows a stack of pans. the pans",
        "endings": ["are filled with pastries.", "contain egg yolks."],
        "label": "0",
    },
    "boolq": {
        "passage": "Persian is spoken in Iran and Afghanistan.",
        "question": "do iran and afghanistan speak the same language",
        "answer": True,
    },
    "wikitext": {"text": " A line of an article; there is nothing to answer. \n"},
}


@pytest.mark.parametrize("name", get_args(DatasetName))
def test_a_row_becomes_the_text_in_its_formatters_docstring(name: DatasetName) -> None:
    """The docstrings are the documentation of the prompts; the evaluation relies on them too."""
    example = FORMATS[name](ROWS[name])
    assert example.prompt + example.answer == inspect.getdoc(FORMATS[name])


@pytest.mark.parametrize("name", [name for name in get_args(DatasetName) if name != "wikitext"])
def test_prompt_and_answer_meet_at_white_space(name: DatasetName) -> None:
    """No token spans the two, so a prompt alone has the same tokens as in training."""
    example = FORMATS[name](ROWS[name])
    assert example.prompt.endswith(("Answer:", "Code:"))
    assert example.answer[0] in " \n"
    assert example.answer[1] not in " \n"


def test_gsm8k_keeps_its_calculations_and_its_last_line() -> None:
    answer = FORMATS["gsm8k"](ROWS["gsm8k"]).answer
    assert "<<2*3=6>>" in answer
    assert answer.splitlines()[-1] == "#### 6"


@pytest.mark.parametrize(
    ("equation", "tidy"),
    [("( 290.0 / 2.0 )", "290/2"), ("( ( 4.0 + 6.0 ) * 3.0 )", "(4+6)*3"), ("( 0.5 * 10.0 )", "0.5*10"), ("7.0", "7")],
)
def test_an_svamp_equation_is_written_as_a_person_would(equation: str, tidy: str) -> None:
    answer = FORMATS["svamp"]({"question_concat": "How many?", "Equation": equation, "Answer": "1"}).answer
    assert answer == f" {tidy} = <<{tidy}=1>>1\n#### 1"


def test_several_spans_are_a_list_without_repetition() -> None:
    spans = {"spans": ["Ann", "Ben", "Ann"], "types": ["span", "span", "span"]}
    assert FORMATS["drop"](ROWS["drop"] | {"answers_spans": spans}).answer == " Ann, Ben"


def test_a_question_without_context_is_asked_closed_book() -> None:
    """9,084 of the local HotpotQA training rows are like this."""
    empty = {"context": {"title": [], "sentences": []}, "supporting_facts": {"title": [], "sent_id": []}}
    example = FORMATS["hotpotqa"](ROWS["hotpotqa"] | empty)
    assert example.prompt == f"Question: {ROWS['hotpotqa']['question']}\nAnswer:"


@pytest.mark.parametrize(
    ("name", "row", "usable"),
    [
        ("wikitext", {"text": " \n"}, False),
        ("wikitext", {"text": " = Title = \n"}, True),
        ("codexglue", {"nl": "x", "code": ""}, False),
        ("codexglue", {"nl": "x", "code": "y"}, True),
        ("asdiv", {"answer": "9 (apples)"}, True),
        ("asdiv", {"answer": "0.46 (dollars)"}, True),
        ("asdiv", {"answer": "36 (sq. inches)"}, True),
        ("asdiv", {"answer": "17"}, True),
        ("asdiv", {"answer": "17 (units); 9 (units)"}, False),
        ("asdiv", {"answer": "7:6"}, False),
        ("asdiv", {"answer": "3:30 p.m."}, False),
        ("asdiv", {"answer": "5/13"}, False),
        ("asdiv", {"answer": "Red"}, False),
        ("boolq", {}, True),
    ],
)
def test_rows_that_are_no_samples_are_told_apart(name: DatasetName, row: dict[str, Any], usable: bool) -> None:
    assert is_usable(name, row) is usable


def test_the_key_ignores_case_spacing_and_punctuation() -> None:
    assert Example("", "", "  How many -- FIGS?\n").key == Example("", "", "how many figs").key == "how many figs"


def test_the_options_of_a_choice_are_no_part_of_its_identity() -> None:
    """The same question with its options in another order is the same question."""
    other = ROWS["arc_easy"] | {"choices": {"text": ["water", "tea"], "label": ["A", "B"]}, "answerKey": "A"}
    assert FORMATS["arc_easy"](other).key == FORMATS["arc_easy"](ROWS["arc_easy"]).key


def test_the_same_question_on_another_passage_is_another_problem() -> None:
    assert FORMATS["drop"](ROWS["drop"] | {"passage": "Another game."}).key != FORMATS["drop"](ROWS["drop"]).key
