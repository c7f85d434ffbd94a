"""metrics.py: the registry is the one of the report."""

from typing import get_args

from cognate.config import DatasetName
from cognate.metrics import KEYS, METRICS, WALL_CLOCK_KEYS, Cadence


def test_there_are_37_different_metrics_in_the_reports_order() -> None:
    assert len(METRICS) == len(set(KEYS)) == 37
    assert KEYS[:5] == ("loss", "loss_ce", "loss_act", "loss_gate", "perplexity")
    assert KEYS[18:32] == tuple(f"accuracy_{name}" for name in get_args(DatasetName))
    assert KEYS[36] == "diversity_inference_time_ms"


def test_cadences_are_those_of_the_report() -> None:
    counts = {cadence: sum(metric.cadence is cadence for metric in METRICS) for cadence in Cadence}
    assert counts == {Cadence.STEP: 14, Cadence.EPOCH: 18, Cadence.FINAL: 5}


def test_wall_clock_metrics_are_those_that_measure_the_machine() -> None:
    """Two runs of the same bits are compared without these."""
    assert {"gpu_memory_allocated", "gpu_memory_reserved", "epoch_time_minutes", "training_time_hours"} == WALL_CLOCK_KEYS
