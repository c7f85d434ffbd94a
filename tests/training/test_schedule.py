"""The learning rate: warm-up, plateau, decay."""

import pytest

from cognate.config import TrainingConfig
from cognate.training.schedule import lr_scale

LONG = TrainingConfig()


@pytest.mark.parametrize(
    ("step", "scale"),
    [(1, 0.01), (50, 0.5), (100, 1.0), (101, 1.0), (5000, 1.0), (7500, 0.55), (10000, 0.1)],
)
def test_a_long_run_warms_up_holds_and_decays(step: int, scale: float) -> None:
    assert lr_scale(step, 10_000, LONG) == pytest.approx(scale)


def test_a_short_run_warms_up_for_a_twentieth() -> None:
    assert [lr_scale(step, 60, LONG) for step in (1, 2, 3, 4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


@pytest.mark.parametrize("total", [1, 2, 3, 19, 20, 21, 1000])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_every_step_of_every_run_has_a_rate(total: int, decay: float) -> None:
    training = TrainingConfig(decay_fraction=decay)
    assert all(0 < lr_scale(step, total, training) <= 1 for step in range(1, total + 1))


def test_without_warm_up_the_first_step_is_at_full_rate() -> None:
    assert lr_scale(1, 100, TrainingConfig(warmup_steps=0)) == 1.0
