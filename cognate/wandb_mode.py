"""Whether metrics would go to Weights & Biases, and how. The key itself is never read out, only whether there is one."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

Mode = Literal["online", "offline", "disabled", "unavailable"]


# As the wandb package reads WANDB_MODE: dryrun and run are its older names.
_ASKED: Final[Mapping[str, Mode]] = {
    "online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled", "shared": "online",
}  # fmt: skip


def wandb_mode(environment: Mapping[str, str], is_installed: bool, has_login: bool) -> dict[str, Any]:
    """mode: what WANDB_MODE says; without it online where there is a key, else offline; unavailable without the package."""
    has_key = bool(environment.get("WANDB_API_KEY")) or has_login
    asked = _ASKED.get(environment.get("WANDB_MODE", ""), "online" if has_key else "offline")
    mode: Mode = asked if is_installed else "unavailable"
    return {"installed": is_installed, "key": has_key, "mode": mode}


def seen_here() -> dict[str, Any]:
    """wandb_mode() of this process."""
    return wandb_mode(os.environ, importlib.util.find_spec("wandb") is not None, _has_login())


def _has_login() -> bool:
    """Whether `wandb login` left a key for its usual host."""
    try:
        return "api.wandb.ai" in netrc.netrc(Path.home() / ".netrc").hosts
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
