"""What others wrote commands no terminal: it can rename a window, clear a screen, or fill the clipboard by a few characters of text."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from cognate import cli
from cognate.data.tokenizer import Tokenizer
from cognate.model.generate import NewToken
from cognate.visible import Screen, echo, visible
from tests.data.data_folders import write_split
from tests.terminals import HOSTILE, TITLE, Terminal, is_harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("grün, 数, 🙂", "grün, 数, 🙂"),
        (TITLE, "\\u001b]0;owned\\u0007"),
        ("\x9b2J", "\\u009b2J"),
        ("\r\x00\x7f\b", "\\u000d\\u0000\\u007f\\u0008"),
    ],
)
def test_what_would_command_a_terminal_is_shown(text: str, shown: str) -> None:
    assert visible(text, Terminal()) == shown
    assert visible(text, io.StringIO()) == text


def test_json_stays_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    echo(json.dumps({"name": HOSTILE}, ensure_ascii=False))
    assert is_harmless(out.getvalue())
    assert json.loads(out.getvalue()) == {"name": HOSTILE}


@pytest.mark.parametrize("width", [200, 20])
def test_a_screen_has_its_own_colours_and_nobody_elses(width: int) -> None:
    out = Screen(file=Terminal(), width=width, force_terminal=True, color_system="standard", _environ={})
    table = Table(f"head {HOSTILE}")
    table.add_row(Text(f"cell {HOSTILE}", "bold red"))
    out.print(table, f"plain {HOSTILE}", Text(HOSTILE, "green"), markup=False)
    out.rule(f"rule {HOSTILE}")
    out.out(HOSTILE, style="dim")
    assert isinstance(out.file, Terminal)
    shown = out.file.getvalue()
    assert "\x1b[1;31m" in shown
    assert is_harmless(shown)


def test_a_screen_that_is_a_pipe_passes_on_what_it_is_given() -> None:
    out = Screen(file=io.StringIO(), width=200, highlight=False)
    out.out(TITLE)
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().startswith("\x1b]0;owned")


def test_samples_of_a_dataset_are_shown_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_DATA_DIR", str(tmp_path / "of-others"))  # what is said counts for more, wherever it is said
    rows = [{"question": f"How many? {HOSTILE} {number}", "answer": f"{HOSTILE}\n#### 1"} for number in range(30)]
    write_split(tmp_path, "gsm8k", "train", rows)
    write_split(tmp_path, "gsm8k", "test", rows[:4])
    shown = on_a_terminal("data", "--data", str(tmp_path), "show", "gsm8k")
    assert "owned" in shown
    assert is_harmless(shown)


def test_what_a_model_writes_is_shown_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train([HOSTILE, "12"], 300)
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    cli._tell("12", [NewToken(0, token, 1) for token in tokenizer.encode(f"so {HOSTILE}")], tokenizer, as_json=False)
    assert "owned" in out.getvalue()
    assert is_harmless(out.getvalue())


def on_a_terminal(*arguments: str) -> str:
    """What `cognate` writes to one."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "cognate", *arguments], stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65536):
                shown += block
        except OSError:  # its end
            pass
        finally:
            os.close(ours)
    return shown.decode()
