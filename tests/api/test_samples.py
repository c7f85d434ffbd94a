"""GET .../samples: what a run's model wrote, by pages, and of a step that was trained again what the latest attempt says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.runs import SampleOut
from app.services.journal import ingest
from app.store import runs
from app.store.engine import Store, migrate
from app.store.tables import Attempt, Run
from cognate.config import resolve
from cognate.events import Kind
from cognate.rundir import Journal, RunDir
from tests.service import serving

RUN, OTHER = (f"run_{number:036d}" for number in range(2))


def said(step: int, place: int, text: str) -> dict[str, Any]:
    return {
        "step": step, "epoch": step / 10, "place": place, "dataset": f"set{place}", "prompt": f"{place}?", "text": text,
        "expected": f" {place}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The journals of a run whose first attempt ended after step 20 and whose second began after step 10, and of another run."""
    home = tmp_path_factory.mktemp("home")
    migrate(home / "cognate.db")
    store = Store(home / "cognate.db")
    config = resolve("quickstart").model_dump(mode="json")
    lives = [(RUN, 1, (10, 20), 2), (RUN, 2, (20, 30), 1), (OTHER, 1, (10,), 1)]
    with store.write() as write:
        for run_id in (RUN, OTHER):
            write.session.add(Run(id=run_id, name="n", preset="p", config=config, tags=[], created_at=0, updated_at=0, state="completed"))
        write.session.flush()
        for run_id, number, steps, count in lives:
            directory = RunDir(home / "runs" / run_id).attempt(number)
            directory.create()
            journal = Journal(directory)
            for step in steps:
                for place in range(count):
                    journal.append(Kind.SAMPLE, **said(step, place, f"by {number}"))
                journal.append(Kind.WARNING, message="no sample", step=step)
            attempt = Attempt(run_id=run_id, number=number, device="cpu", launched_at=0)
            write.session.add(attempt)
            assert ingest(write, runs.get(write.session, run_id), attempt, directory)
    store.close()
    with serving(home) as client:
        yield client


def ask(client: TestClient, run_id: str = RUN, **query: int) -> dict[str, Any]:
    answer = client.get(f"/v1/runs/{run_id}/samples", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def places(page: dict[str, Any]) -> list[tuple[int, str, int]]:
    return [(sample["step"], sample["dataset"], sample["attempt"]) for sample in page["data"]]


def test_a_sample_has_all_that_is_needed_to_judge_it(client: TestClient) -> None:
    (sample,) = ask(client, OTHER)["data"]
    assert sample.keys() == SampleOut.model_fields.keys()
    assert sample | {"seq": 0, "at": ""} == {
        "seq": 0, "attempt": 1, "step": 10, "epoch": 1.0, "dataset": "set0", "prompt": "0?", "text": "by 1", "expected": " 0", "at": "",
    }  # fmt: skip


def test_of_what_was_said_twice_the_latest_attempt_is_shown(client: TestClient) -> None:
    """Of each place by itself: an attempt may have ended between two of them."""
    page = ask(client)
    assert places(page) == [(10, "set0", 1), (10, "set1", 1), (20, "set1", 1), (20, "set0", 2), (30, "set0", 2)]
    assert [sample["text"] for sample in page["data"]] == ["by 1", "by 1", "by 1", "by 2", "by 2"]
    assert [sample["seq"] for sample in page["data"]] == sorted(sample["seq"] for sample in page["data"])
    assert (page["has_more"], page["next_cursor"]) == (False, None)


def test_the_pages_are_the_whole(client: TestClient) -> None:
    whole, pages, after = ask(client)["data"], [], 0
    while True:
        page = ask(client, limit=2, after=after)
        pages.append(len(page["data"]))
        assert page["data"] == whole[sum(pages) - pages[-1] : sum(pages)]
        if not page["has_more"]:
            break
        after = int(page["next_cursor"])
    assert pages == [2, 2, 1]


def test_a_run_that_is_not_there_and_a_page_that_is_none_are_refused(client: TestClient) -> None:
    assert client.get(f"/v1/runs/run_{9:036d}/samples").status_code == 404
    assert client.get(f"/v1/runs/{RUN}/samples", params={"limit": 0}).status_code == 422
