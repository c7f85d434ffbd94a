"""Where metrics would go."""

import pytest

from cognate.wandb_mode import wandb_mode


@pytest.mark.parametrize(
    ("environment", "is_installed", "has_login", "key", "mode"),
    [
        ({}, True, False, False, "offline"),
        ({"WANDB_API_KEY": "secret"}, True, False, True, "online"),
        ({}, True, True, True, "online"),
        ({"WANDB_API_KEY": "secret", "WANDB_MODE": "offline"}, True, False, True, "offline"),
        ({"WANDB_MODE": "online"}, True, False, False, "online"),
        ({"WANDB_MODE": "dryrun"}, True, True, True, "offline"),
        ({"WANDB_MODE": "disabled"}, True, True, True, "disabled"),
        ({"WANDB_API_KEY": "secret"}, False, False, True, "unavailable"),
    ],
)
def test_mode(environment: dict[str, str], is_installed: bool, has_login: bool, key: bool, mode: str) -> None:
    found = wandb_mode(environment, is_installed, has_login)
    assert found == {"installed": is_installed, "key": key, "mode": mode}
    assert "secret" not in str(found)
