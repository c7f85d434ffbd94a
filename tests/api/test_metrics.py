"""GET .../metrics and /v1/metrics/query: exact, thinned, CSV, several runs, and what is refused."""

import csv
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api import metrics as api
from app.store import metrics
from app.store.engine import Store, migrate
from app.store.tables import Attempt, Run
from cognate.config import resolve
from tests.service import serving

RUNS = [f"run_{number:036d}" for number in range(3)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Three finished runs of 100 steps; the first was resumed at step 60 and trained on to 120; step 50 is NaN."""
    home = tmp_path_factory.mktemp("home")
    migrate(home / "cognate.db")
    store = Store(home / "cognate.db")
    config = resolve("quickstart").model_dump(mode="json")
    with store.write() as write:
        for number, run_id in enumerate(RUNS):
            run = Run(id=run_id, name="n", preset="p", config=config, tags=[], created_at=0, updated_at=0, state="completed")
            write.session.add(run)
            write.session.flush()
            for attempt, steps in ((1, range(1, 101)), (2, range(60, 121))) if number == 0 else ((1, range(1, 101)),):
                write.session.add(Attempt(run_id=run_id, number=attempt, device="cpu", launched_at=0))
                for step in steps:
                    values = {"loss": math.nan if step == 50 else attempt + 1 / step, "learning_rate": 0.1}
                    metrics.add(write, run_id, attempt, [metrics.Row(step, step / 100, float(step), values)])
    store.close()
    with serving(home) as client:
        yield client


def ask(client: TestClient, path: str = f"runs/{RUNS[0]}/metrics", **parameters: Any) -> Any:
    answer = client.get(f"/v1/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows_of(client: TestClient, **parameters: Any) -> list[list[str]]:
    answer = client.get(f"/v1/runs/{RUNS[0]}/metrics", params=parameters)
    assert answer.headers["content-type"].startswith("text/csv")
    return list(csv.reader(io.StringIO(answer.text)))


def test_the_exact_form_is_what_the_page_reads(client: TestClient) -> None:
    """static/js/series.js: axes and metrics as columns, names for what is not finite, no `thinned`."""
    answer = ask(client, keys="loss,val_loss", to=51)
    assert set(answer) == {"run_id", "attempts", "columns"}
    columns = answer["columns"]
    assert list(columns) == ["seq", "attempt", "step", "epoch", "at", "loss", "val_loss"]
    assert columns["loss"][48:] == [1 + 1 / 49, "NaN", 1 + 1 / 51]
    assert columns["val_loss"] == [None] * 51
    api.MetricsOut.model_validate(answer)


def test_thinned_says_so_and_loses_no_extreme(client: TestClient) -> None:
    answer = ask(client, keys="loss", max_points=4)
    api.ThinnedOut.model_validate(answer)
    assert (answer["thinned"], answer["bucket_steps"], answer["step"]) == (True, 32, [0, 32, 64, 96])
    loss = answer["metrics"]["loss"]
    assert loss["max"] == [2.0, 2 + 1 / 60, 2 + 1 / 64, 2 + 1 / 96]
    assert loss["min"] == [1 + 1 / 31, 1 + 1 / 59, 2 + 1 / 95, 2 + 1 / 120]
    assert (loss["nonfinite"], loss["last_step"]) == ([0, 1, 0, 0], [31, 63, 95, 120])


def test_a_bucket_that_ends_in_nan_says_nan(client: TestClient) -> None:
    loss = ask(client, **{"keys": "loss", "max_points": 1, "from": 48, "to": 50})["metrics"]["loss"]
    assert loss == {"min": [1 + 1 / 49], "max": [1 + 1 / 48], "last": ["NaN"], "last_step": [50], "nonfinite": [1]}


def test_all_attempts_hold_for_both_forms(client: TestClient) -> None:
    assert len(ask(client, attempts="all")["columns"]["step"]) == 161
    assert sum(ask(client, attempts="all", max_points=10)["rows"]) == 161
    assert sum(ask(client, max_points=10)["rows"]) == 120


@pytest.mark.parametrize("attempts", ["effective", "all"])
def test_csv_is_every_exact_row(client: TestClient, attempts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "CSV_ROWS", 7)
    columns = ask(client, keys="loss,val_loss", attempts=attempts)["columns"]
    header, *rows = rows_of(client, keys="loss,val_loss", attempts=attempts, format="csv")
    assert header == list(columns)
    assert rows == [["" if value is None else str(value) for value in row] for row in zip(*columns.values(), strict=True)]


def test_csv_comes_to_who_accepts_csv(client: TestClient) -> None:
    kinds = {
        accept: client.get(f"/v1/runs/{RUNS[0]}/metrics", params={"to": 1}, headers={"Accept": accept})
        .headers["content-type"]
        .split(";")[0]
        for accept in ("text/csv", "*/*", "application/json", "text/csv;q=0.1, application/json")
    }
    assert list(kinds.values()) == ["text/csv", "application/json", "application/json", "application/json"]


def test_several_runs_are_asked_at_once(client: TestClient) -> None:
    found = ask(client, "metrics/query", run_ids=f"{RUNS[2]},{RUNS[0]},{RUNS[2]}", keys="loss", max_points=4)
    api.OverlayOut.model_validate(found)
    assert [run["run_id"] for run in found["data"]] == [RUNS[2], RUNS[0]]
    assert found["data"][1] == ask(client, keys="loss", max_points=4)


@pytest.mark.parametrize(
    ("path", "parameters", "status", "words"),
    [
        (f"runs/{RUNS[0]}/metrics", {"max_points": 0}, 422, "greater than or equal to 1"),
        (f"runs/{RUNS[0]}/metrics", {"from": 2**63}, 422, "less than or equal"),
        (f"runs/{RUNS[0]}/metrics", {"keys": "loss;drop", "max_points": 1}, 422, "no metric loss;drop"),
        (f"runs/{RUNS[0]}/metrics", {"format": "csv", "max_points": 5}, 422, "leave max_points out"),
        (f"runs/{RUNS[0][:-1]}9/metrics", {"format": "csv"}, 404, "no run"),
        ("metrics/query", {"run_ids": RUNS[0]}, 422, "keys"),
        ("metrics/query", {"run_ids": f"{RUNS[0]},run_x", "keys": "loss"}, 404, "no run 'run_x'"),
        ("metrics/query", {"run_ids": ",".join(map(str, range(51))), "keys": "loss"}, 422, "at most 50"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    client: TestClient, path: str, parameters: dict[str, Any], status: int, words: str
) -> None:
    answer = client.get(f"/v1/{path}", params=parameters)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
