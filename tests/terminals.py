"""A terminal that a test writes to, and text that would command it."""

import io

TITLE = "\x1b]0;owned\x07"
CLIPBOARD = "\x1b]52;c;aGk=\x07"
CLEAR = "\x1b[2J"
HOSTILE = f"{TITLE}{CLEAR}{CLIPBOARD}\x9b2J\x7f\r"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def is_harmless(shown: str) -> bool:
    return not any(command in shown for command in ("\x1b]", CLEAR, "\x07", "\x9b", "\x7f", "\x08"))
