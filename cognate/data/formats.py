"""One pure formatter per dataset: a row of the hub's columns becomes an Example.

Training and evaluation use the same prompts. The conventions, everywhere:
a prompt ends with "Answer:" (or "Code:"), an answer begins with a space (or a new line);
a multiple choice lists its options with letters and answers with letter and text;
an answer that is reasoned for ends with the line "#### answer", as GSM8K's do.

FORMATS maps a dataset's name to its formatter; is_usable says which rows are samples at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cognate.config import DatasetName

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """A problem as text. `identity` is what makes two problems the same one, however they are laid out."""

    prompt: str
    answer: str
    identity: str

    @property
    def key(self) -> str:
        """The identity in lower-case words: equal keys are the same problem."""
        return words(self.identity)


def words(text: str) -> str:
    """The text in lower-case words, one space between."""
    return " ".join(_WORDS.findall(text.lower()))


_WORDS = re.compile(r"\w+")
_PLAIN_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)\s*(?:\([^()]*\))?")


def is_usable(name: DatasetName, row: Row) -> bool:
    """Whether the row is a sample: wikitext's empty lines, ASDiv's answers that are not one plain number, and missing code are not."""
    if name == "wikitext":
        return bool(row["text"].strip())
    if name == "asdiv":
        return _PLAIN_NUMBER.fullmatch(row["answer"].strip()) is not None
    if name == "codexglue":
        return bool(row["code"])
    return True


# --- mathematics ------------------------------------------------------------------------------------------


def gsm8k(row: Row) -> Example:
    """Question: Ann has 2 bags of 3 figs. How many figs?
    Answer: Ann has 2*3 = <<2*3=6>>6 figs.
    #### 6
    """
    return _question(row["question"], row["answer"])


def svamp(row: Row) -> Example:
    """Question: Ann had 5 figs and ate 2. How many are left?
    Answer: 5-2 = <<5-2=3>>3
    #### 3
    """
    equation = _tidy_equation(row["Equation"])
    return _question(row["question_concat"], f"{equation} = <<{equation}={row['Answer']}>>{row['Answer']}\n#### {row['Answer']}")


def asdiv(row: Row) -> Example:
    """Question: Seven red and two green apples are in the basket. How many apples are in the basket?
    Answer: 7+2=9
    #### 9
    """
    number = _PLAIN_NUMBER.match(row["answer"].strip())
    return _question(f"{row['body']} {row['question']}", f"{row['formula']}\n#### {number[1] if number else row['answer']}")


def _tidy_equation(equation: str) -> str:
    """ "( ( 4.0 + 6.0 ) * 3.0 )" -> "(4+6)*3" """
    tight = re.sub(r"(\d)\.0\b", r"\1", equation).replace(" ", "")
    return tight[1:-1] if tight.startswith("(") and tight.endswith(")") else tight


# --- code -------------------------------------------------------------------------------------------------


def mbpp(row: Row) -> Example:
    """Write a function to double a number.
    assert double(2) == 4
    Code:
    def double(n):
        return 2 * n
    """
    tests = "".join(f"{test}\n" for test in row["test_list"])
    return Example(f"{row['text']}\n{_unix(tests)}Code:", "\n" + _unix(row["code"]), row["text"])


def codexglue(row: Row) -> Example:
    """Write a Java method: get the name .
    Fields: String name; int id
    Methods: void setName
    Code:
    String function ( ) { return name ; }
    """
    description, *members = (part.strip() for part in row["nl"].split("concode_field_sep"))
    lines = [f"Write a Java method: {description}"]
    for title, names in zip(("Fields", "Methods"), members, strict=False):
        lines.append(f"{title}: " + "; ".join(name.strip() for name in names.split("concode_elem_sep")))
    return Example("\n".join([*lines, "Code:"]), "\n" + row["code"], row["nl"])


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


# --- multiple choice --------------------------------------------------------------------------------------


def arc(row: Row) -> Example:
    """Question: Which is a liquid?
    A. iron
    B. water
    Answer: B. water
    """
    correct = row["choices"]["label"].index(row["answerKey"])
    return _choice(f"Question: {row['question']}", row["choices"]["text"], correct, identity=row["question"])


def hellaswag(row: Row) -> Example:
    """Baking cookies: A chef shows a stack of pans. the pans
    A. are filled with pastries.
    B. contain egg yolks.
    Answer: A. are filled with pastries.
    """
    return _choice(f"{row['activity_label']}: {row['ctx']}", row["endings"], int(row["label"]), identity=row["ctx"])


def piqa(row: Row) -> Example:
    """Goal: boil water
    A. heat it
    B. freeze it
    Answer: A. heat it
    """
    # The goal alone is often one word ("dresser"), so the right solution belongs to the identity.
    solutions = (row["sol1"], row["sol2"])
    return _choice(f"Goal: {row['goal']}", solutions, row["label"], identity=f"{row['goal']} {solutions[row['label']]}")


def _choice(question: str, options: Sequence[str], correct: int, identity: str) -> Example:
    lines = [f"{chr(ord('A') + number)}. {option.strip()}" for number, option in enumerate(options)]
    return Example("\n".join([question, *lines, "Answer:"]), f" {lines[correct]}", identity)


# --- reading and reasoning --------------------------------------------------------------------------------


def boolq(row: Row) -> Example:
    """Persian is spoken in Iran and Afghanistan.
    Question: do iran and afghanistan speak the same language?
    Answer: yes
    """
    return _question(f"{row['question']}?", _yes_no(row["answer"]), passage=row["passage"])


def drop(row: Row) -> Example:
    """The Lions scored a 23-yard and a 28-yard field goal.
    Question: How many field goals did the Lions score?
    Answer: 2
    """
    # "How many points were scored?" is asked of many passages: the passage belongs to the identity.
    return _question(row["question"], _drop_answer(row["answers_spans"]), passage=row["passage"], identity=row["passage"] + row["question"])


def _drop_answer(spans: Row) -> str:
    """A number or date is the whole answer; several different spans are one list.

    The validation rows hold the answers of several people; there, this is one of the acceptable ones or a list of them.
    """
    first, kind = spans["spans"][0], spans["types"][0]
    if kind != "span":
        return str(first)
    return ", ".join(dict.fromkeys(text for text, kind in zip(spans["spans"], spans["types"], strict=True) if kind == "span"))


def hotpotqa(row: Row) -> Example:
    """Animorphs: Animorphs is a science fantasy series of young adult books.
    Question: What science fantasy young adult series is told in first person?
    Answer: Animorphs
    """
    # Only the paragraphs that hold the answer, not the distractors: ten paragraphs are about 1,300 tokens, and the question
    # would be cut off from them. So this is an easier task than the official one. Rows without context are asked closed-book.
    needed = set(row["supporting_facts"]["title"])
    context = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
    passage = "\n".join(f"{title}: {''.join(sentences).strip()}" for title, sentences in context if title in needed)
    return _question(row["question"], row["answer"], passage=passage)


def strategyqa(row: Row) -> Example:
    """Question: Could a llama give birth twice during the War in Vietnam?
    Answer: The War in Vietnam lasted 20 years. A llama is pregnant for 11 months.
    #### yes
    """
    return _question(row["question"], f"{' '.join(row['facts'])}\n#### {_yes_no(row['answer'])}")


def wikitext(row: Row) -> Example:
    """A line of an article; there is nothing to answer."""
    line = row["text"].strip()
    return Example("", line, line)


def _question(question: str, answer: str, passage: str = "", identity: str = "") -> Example:
    lines = [passage, f"Question: {question}", "Answer:"] if passage else [f"Question: {question}", "Answer:"]
    return Example("\n".join(lines), f" {answer}", identity or question)


def _yes_no(answer: bool) -> str:
    return "yes" if answer else "no"


FORMATS: Final[Mapping[DatasetName, Callable[[Row], Example]]] = {
    "gsm8k": gsm8k,
    "svamp": svamp,
    "asdiv": asdiv,
    "mbpp": mbpp,
    "codexglue": codexglue,
    "arc_easy": arc,
    "arc_challenge": arc,
    "hotpotqa": hotpotqa,
    "drop": drop,
    "strategyqa": strategyqa,
    "piqa": piqa,
    "hellaswag": hellaswag,
    "boolq": boolq,
    "wikitext": wikitext,
}
