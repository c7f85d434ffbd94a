"""The reads that are asked most make their JSON by hand; it is what the declared shapes would make of the same run."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.api.schemas import runs as schemas
from app.api.schemas.base import Page
from app.services.lifecycle import State
from app.store import plain, runs
from app.store.engine import Store, migrate
from app.store.tables import Run, RunGroup
from cognate.config import resolve
from cognate.metrics import KEYS
from tests.service import launch, serving

GROUP = "group_00000000-0000-7000-8000-000000000000"
CONFIG = resolve("quickstart").model_dump(mode="json")

texts = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9)
instants = st.floats(0, 4e9, allow_nan=False)
plans = st.none() | st.fixed_dictionaries({"total_steps": st.integers(1, 10**9), "stages": st.lists(texts, max_size=2)})
progresses = st.none() | st.fixed_dictionaries(
    {"step": st.integers(0, 10**9), "total_steps": st.integers(1, 10**9)},
    optional={name: st.none() | finite for name in ("epoch", "eta_s", "tokens_per_s", "step_time_s")}
    | {"skipped_steps": st.integers(0, 9)},
)
measured = st.none() | st.dictionaries(st.sampled_from(KEYS), finite | st.sampled_from(["NaN", "Infinity", "-Infinity"]))
rows = st.fixed_dictionaries(
    {
        "name": st.text("abc é漢", min_size=1, max_size=8),
        "preset": st.sampled_from(["quickstart", "speed"]),
        "config": st.sampled_from([CONFIG, {}]),
        "tags": st.lists(st.text("ab/é", min_size=1, max_size=4), max_size=3),
        "state": st.sampled_from(list(State)),
        "version": st.integers(1, 2**40),
        "attempt": st.integers(0, 9),
        "priority": st.integers(-1000, 1000),
        "group_id": st.sampled_from([None, GROUP]),
        "forked_from": st.none() | st.fixed_dictionaries({"run_id": st.just("run_0"), "step": st.integers(0, 99)}),
        "auto_resume": st.integers(0, 9),
        "auto_resumes": st.integers(0, 9),
        "created_at": instants,
        "updated_at": instants,
        "queued_seq": st.integers(0, 3),
        "started_at": st.none() | instants,
        "ended_at": st.none() | instants,
        "plan": plans,
        "progress": progresses,
        "latest": measured,
        **dict.fromkeys(("state_reason", "state_detail", "phase", "notes"), texts),
    }
)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cognate.db"
        migrate(path)
        store = Store(path)
        with store.write() as write:
            write.session.add(RunGroup(id=GROUP, name="g", created_at=0))
        yield store
        store.close()


@settings(max_examples=60, deadline=None)
@given(given_rows=st.lists(rows, min_size=1, max_size=6))
def test_a_run_read_plainly_is_the_run_as_declared(store: Store, given_rows: list[dict[str, Any]]) -> None:
    """In values, types, order of fields and place in the queue: whoever adds a field to one is told by the other."""
    ids = [f"run_00000000-0000-7000-8000-{number:012d}" for number in range(len(given_rows))]
    with store.write(durable=False) as write:
        for run_id, row in zip(ids, given_rows, strict=True):
            write.session.add(Run(id=run_id, external_id=row["name"] and f"x{run_id}", **row))
    try:
        with store.read() as session:
            queue = runs.queue(session)
            declared = [schemas.run_detail_out(runs.get(session, run_id), queue).model_dump_json() for run_id in ids]
            listed = Page[schemas.RunOut](
                data=[schemas.run_out(runs.get(session, run_id), queue) for run_id in reversed(ids)], has_more=True, next_cursor=ids[0]
            )
            page = schemas.runs_json(runs.page(session, 500), queue, has_more=True)
        plainly = [schemas.run_json(plain.run(store, run_id)) for run_id in ids]
        assert [_exactly(text) for text in plainly] == [_exactly(text) for text in declared]
        assert _exactly(page) == _exactly(listed.model_dump_json())
    finally:
        with store.write(durable=False) as write:
            for run_id in ids:
                runs.delete(write, run_id)


def _exactly(text: str | bytes) -> Any:
    """JSON with the order of its fields, and 1 told from 1.0 and from true."""

    def told(value: Any) -> Any:
        return [*map(told, value)] if isinstance(value, list) else value if isinstance(value, tuple) else (type(value).__name__, value)

    return json.loads(text, object_pairs_hook=lambda pairs: tuple((name, told(value)) for name, value in pairs))


def test_the_place_in_the_queue_is_the_order_of_launching(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        made = [launch(client, priority=priority) for priority in (0, 5, 0)]
        assert [client.get(f"/v1/runs/{run_id}").json()["queue_position"] for run_id in made] == [2, 1, 3]
        assert [run["id"] for run in client.get("/v1/queue").json()["data"]] == [made[1], made[0], made[2]]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("home")) as client:
        client.put("/v1/queue", json={"held": True})
        yield client


@pytest.mark.parametrize(
    ("run_id", "headers", "status"),
    [
        (f"run_{'0' * 36}", {}, 404),
        ("run_x", {}, 422),
        (f"run_{'0' * 36}%0a", {}, 422),
        (None, {"If-None-Match": "x" * 1001}, 422),
        (None, {"If-None-Match": '"a", W/"b"'}, 200),
        (None, {"Host": "evil.example"}, 421),
    ],
)
def test_what_is_refused_elsewhere_is_refused_here(client: TestClient, run_id: str | None, headers: dict[str, str], status: int) -> None:
    answer = client.get(f"/v1/runs/{run_id or launch(client)}", headers=headers)
    assert answer.status_code == status
    assert (answer.headers["content-type"] == "application/problem+json") == (status != 200)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_edit_answers_what_a_read_would(client: TestClient) -> None:
    path = f"/v1/runs/{launch(client)}"
    edited = client.patch(path, json={"priority": 3})
    read = client.get(path)
    assert (edited.content, edited.headers["ETag"]) == (read.content, read.headers["ETag"])


def test_an_edit_answers_what_it_made_whatever_comes_after(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/v1/runs/{launch(client)}"
    service = client.app.state.parts.runs  # type: ignore[attr-defined]
    edit = service.edit

    def overtaken(run_id: str, *arguments: Any) -> Run:
        made: Run = edit(run_id, *arguments)
        edit(run_id, {"priority": 7})
        return made

    monkeypatch.setattr(service, "edit", overtaken)
    before = client.get(path).json()["version"]
    edited = client.patch(path, json={"priority": 3}).json()
    assert (edited["priority"], edited["version"]) == (3, before + 1)
    assert client.get(path).json()["version"] == before + 2


def test_a_database_that_is_locked_asks_to_come_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """sqlite3's own error, not the one of SQLAlchemy."""

    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    path = f"/v1/runs/{launch(client)}"
    monkeypatch.setattr(Store, "glance", locked)
    answer = client.get(path)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


def test_runs_are_found_by_name(client: TestClient) -> None:
    wanted = launch(client, name="night 7")
    assert [run["id"] for run in client.get("/v1/runs", params={"name": "night 7"}).json()["data"]] == [wanted]
    assert client.get("/v1/runs", params={"name": "night"}).json()["data"] == []
