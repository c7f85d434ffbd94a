"""Whether a run is told of at Weights & Biases, and how. The key itself is never read out, only whether there is one."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Final, Literal

Mode = Literal["off", "offline", "online"]
API_KEY: Final = "WANDB_API_KEY"


def mode_of(limit: str, wanted: str, key: bool, begun: Mode | None = None) -> Mode:
    """What is done for a run whose configuration says `wanted` (tracking.wandb), where up to `limit` (COGNATE_WANDB) is allowed.

    key: whether there is one; begun: how the run was mirrored before; files are not continued on the server
    """
    if "off" in (limit, wanted):
        return "off"
    if "offline" in (limit, wanted, begun) or not key:
        return "offline"
    return "online"


def has_key() -> bool:
    """An empty one is none: that is how an unset variable is passed on to a container."""
    return bool(os.environ.get(API_KEY))


def seen_here(limit: str, wanted: str) -> dict[str, Any]:
    """What this process would do, and why."""
    is_installed, key = importlib.util.find_spec("wandb") is not None, has_key()
    mode = mode_of(limit, wanted, key) if is_installed else "off"
    return {"installed": is_installed, "key": key, "wanted": wanted, "mode": mode}
