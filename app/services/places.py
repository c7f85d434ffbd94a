"""Which slot a queued run gets, and what it is told where there is none for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_WAITS = "waits for "


def fitting(wanted: str, free: Sequence[str], slots: Sequence[str]) -> str | None:
    """A free slot for a run that asks for `wanted`; auto waits for a GPU where there is one."""
    if wanted == "auto":
        wanted = "cuda" if any(slot.startswith("cuda") for slot in slots) else "cpu"
    return next((slot for slot in free if slot == wanted or (wanted == "cuda" and slot.startswith("cuda:"))), None)


def rested(slot: str, why: str) -> str:
    """What a run is told that would be launched if `slot` were not rested."""
    return f"{_WAITS}{slot}, which is rested: {why}"


def is_news(why: str | None, told: str | None) -> bool:
    """Whether a queued run is to be told anew why it waits; None: for its turn. What else it was told stays until then."""
    return why != told and (why is not None or (told or "").startswith(_WAITS))
