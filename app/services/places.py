"""Which slot a queued run gets, and what it is told where there is none for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_WAITS = "waits for "


def asked_for(device: str, slots: Sequence[str], trouble: str | None, last: str | None) -> str:
    """What a run that asks for `device` is given: auto is a GPU where there is one or may be, and where the run was on one before.

    trouble: what the driver says that does not tell of its GPUs; last: the slot of the run's last attempt
    """
    if device != "auto":
        return device
    has_gpu = any(slot.startswith("cuda") for slot in slots)
    return "cuda" if has_gpu or trouble is not None or (last or "").startswith("cuda") else "cpu"


def fitting(wanted: str, free: Iterable[str]) -> str | None:
    """A free slot for a run that is to be given `wanted`."""
    return next((slot for slot in free if slot == wanted or (wanted == "cuda" and slot.startswith("cuda:"))), None)


def missing(device: str, wanted: str, slots: Sequence[str], trouble: str | None) -> str | None:
    """What a run is told whose device is not here; None where it only waits for its turn."""
    if fitting(wanted, slots) is not None:
        return None
    what = "a GPU" if wanted == "cuda" else wanted
    if trouble is not None and wanted.startswith("cuda"):
        return f"{_WAITS}{what}: the driver says {trouble}"
    if device == "auto":
        return f"{_WAITS}{what}: its last attempt was on one, and there is none now; a fork with training.device cpu goes on without"
    return f"{_WAITS}{what}, which is not here"


def rested(slot: str, why: str) -> str:
    """What a run is told that would be launched if `slot` were not rested."""
    return f"{_WAITS}{slot}, which is rested: {why}"


def is_news(why: str | None, told: str | None) -> bool:
    """Whether a queued run is to be told anew why it waits; None: for its turn. What else it was told stays until then."""
    return why != told and (why is not None or (told or "").startswith(_WAITS))
