"""The file that has a bearer token, as Docker hands out secrets: in the environment, `docker inspect` shows it."""

from __future__ import annotations

from pathlib import Path


class BadToken(ValueError):
    """The token that was given cannot be read, or guards nothing."""


def token_in(file: Path) -> str:
    """What COGNATE_TOKEN_FILE names; raises BadToken."""
    try:
        token = file.read_text("utf-8").strip()
    except OSError as error:
        raise BadToken(f"COGNATE_TOKEN_FILE {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadToken(f"COGNATE_TOKEN_FILE {file}: it is no text") from error
    if not token:
        raise BadToken(f"COGNATE_TOKEN_FILE {file} is empty")
    if not token.isascii() or not token.isprintable():
        raise BadToken(f"COGNATE_TOKEN_FILE {file}: a header cannot carry all of it; take one line of letters, digits and signs of ASCII")
    return token
