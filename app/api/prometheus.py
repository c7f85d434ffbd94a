"""GET /metrics: the service and its runs as Prometheus text, gathered when it is asked for."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.deps import Parts, Service
from app.services.lifecycle import LIVE, State
from app.store import runs
from app.store.tables import Run
from cognate import __version__

router = APIRouter(tags=["system"])

# Of each run that is at work: the name here, the key in its progress or its metrics, the meaning.
_PROGRESS = (
    ("step", "step", "Optimizer steps done."),
    ("steps_planned", "total_steps", "Optimizer steps in all."),
    ("tokens_per_second", "tokens_per_s", "Training speed."),
    ("eta_seconds", "eta_s", "Seconds to go at this speed."),
)
_METRICS = (
    ("loss_nats", "loss", "Newest logged training loss."),
    ("validation_loss_nats", "val_loss", "Newest held-out loss."),
    ("gpu_memory_allocated_mib", "gpu_memory_allocated", "GPU memory that tensors take."),
)


@router.get("/metrics", summary="The service and its runs as Prometheus text", response_class=Response)
def get_prometheus(service: Service) -> Response:
    registry = CollectorRegistry()
    registry.register(_Gathering(service))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Gathering(Collector):
    def __init__(self, service: Parts) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        service = self._service
        with service.store.read() as session:
            states = Counter(runs.states(session))
            live = list(runs.in_states(session, LIVE))
            held = runs.is_held(session)
        yield InfoMetricFamily("cognate", "The service.", {"version": __version__})
        by_state = GaugeMetricFamily("cognate_runs", "Runs by state.", labels=["state"])
        for state in State:
            by_state.add_metric([state], states[state])
        yield by_state
        free = sum(holder.is_free for holder in service.supervisor.holders())
        yield GaugeMetricFamily("cognate_slots_free", "Runs that could be launched now.", free)
        yield GaugeMetricFamily("cognate_queue_held", "1 while queued runs are held back.", float(held))
        yield GaugeMetricFamily("cognate_supervisor_up", "1 while the supervisor looks after the runs.", float(service.supervisor.is_alive))
        disk_free = shutil.disk_usage(service.settings.home).free
        yield GaugeMetricFamily("cognate_disk_free_bytes", "Free on the disk of the state folder.", disk_free)
        yield CounterMetricFamily("cognate_committed", "Events and metric rows committed so far.", service.store.head)
        for name, key, meaning in _PROGRESS:
            yield _of_runs(f"cognate_run_{name}", meaning, [(run, (run.progress or {}).get(key)) for run in live])
        yield _of_runs("cognate_run_alerts", "What ails a run now: how many alerts.", [(run, len(run.alerts)) for run in live])
        for name, key, meaning in _METRICS:
            yield _of_runs(f"cognate_run_{name}", meaning, [(run, (run.latest or {}).get(key)) for run in live])


def _of_runs(name: str, meaning: str, values: list[tuple[Run, object]]) -> GaugeMetricFamily:
    """A sample a run; what was not measured has none, and what is no finite number is NaN or infinite here too."""
    family = GaugeMetricFamily(name, meaning, labels=["run_id", "name", "preset"])
    for run, value in values:
        if value is not None:
            family.add_metric([run.id, run.name, run.preset], math.nan if value == "NaN" else float(str(value)))
    return family
