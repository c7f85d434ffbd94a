"""The whole service under commands in any order: launched, commanded, edited, deleted, killed and restarted at random.

A run changes state by itself while it is asked, so an answer cannot be foretold. It must fit one of the states that the
run's log names between the request and the answer, by the table of lifecycle.py; a 202 must have made its transition there.
The workers are fake ones in real processes (tests/fake_worker.py), so no history is quite the same twice: what is asked is
drawn beforehand and depends on nothing that happened, and a rule without a run to ask launches one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from threading import Barrier
from typing import Any, cast

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.api.deps import Parts
from app.api.errors import PROBLEMS
from app.api.schemas import runs as schemas
from app.executors.base import Exit
from app.executors.local import LocalExecutor
from app.services import resumption
from app.services import runs as use_cases
from app.services.lifecycle import AT_REST, LIVE, TRANSITIONS, Command, State, allowed_commands, in_effect
from app.services.supervisor import Supervisor
from app.store import runs
from app.store.engine import Write
from tests.service import serving, steps_of, until

NOBODY = f"run_{'0' * 36}"
MOST_RUNS = 5
FINAL = (State.COMPLETED, State.STOPPED)

Ask = tuple[Command, dict[str, Any] | None]
PAUSES = st.fixed_dictionaries(
    {},
    optional={
        "checkpoint": st.sampled_from(["save", "latest"]),
        "deadline_s": st.sampled_from([None, 0.01, 0.1, 60.0]),
        "on_timeout": st.sampled_from(["keep_running", "stop"]),
    },
)
STOPS = st.fixed_dictionaries(
    {}, optional={"checkpoint": st.sampled_from(["save", "latest"]), "grace_s": st.sampled_from([0.0, 0.05, 60.0])}
)
ASKS: st.SearchStrategy[Ask] = st.one_of(
    st.tuples(st.just(Command.PAUSE), st.none() | PAUSES),
    st.tuples(st.just(Command.STOP), st.none() | STOPS),
    st.tuples(st.sampled_from([Command.RESUME, Command.RESUME, Command.KILL, Command.CHECKPOINT]), st.none()),
)
WRONG = st.sampled_from([{"deadline_s": 0}, {"checkpoint": "maybe"}, {"grace_s": -1}, {"deadline_s": "1"}, {"x": 1}, []])
KEYS = st.sampled_from([None, None, None, "a", "b"])
TAGS = st.sampled_from(["none", "any", "right", "right", "stale", "garbage"])
EDITS = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["one", "two"]), "notes": st.none() | st.just("n"), "priority": st.integers(-2, 2)}
)
WHICH = st.integers(0, MOST_RUNS - 1)


@dataclass
class Known:
    """A run as the test knows it: the steps it has to do, and every state it has been in."""

    id: str
    steps: range
    log: list[State] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/v1/runs/{self.id}"


class Service(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._kept = contextlib.ExitStack()
        self._home = Path(self._kept.enter_context(tempfile.TemporaryDirectory(prefix="machine-")))
        self._threads = self._kept.enter_context(ThreadPoolExecutor(12))
        self._runs: dict[str, Known] = {}
        self._groups: dict[str, list[str]] = {}
        self._gone = NOBODY
        self._held = False
        self._seq = 0
        self._keys: dict[str, tuple[str, str]] = {}  # the request that each idempotency key came with first
        self._fresh = count()
        self._start()

    def _start(self) -> None:
        self._serving = contextlib.ExitStack()
        self._client = self._serving.enter_context(serving(self._home, "--step-seconds", "0.01", cpu_slots=2))

    # --- new runs -------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 60), priority=st.integers(-1, 1), auto_resume=st.integers(0, 1), key=KEYS)
    def launch(self, steps: int, priority: int, auto_resume: int, key: str | None) -> None:
        self._make_room()
        body = {"preset": "quickstart", "config": {"training": {"max_steps": steps}}, "priority": priority, "auto_resume": auto_resume}
        is_new, answer = self._once("/v1/runs", body, key)
        if is_new:
            assert answer.status_code == 201
            self._know(answer.json())

    @rule(times=st.integers(2, 4), by=st.sampled_from(["key", "external_id"]))
    def launch_at_once(self, times: int, by: str) -> None:
        """The same request several times at once is one run."""
        self._make_room()
        name = f"at-once-{next(self._fresh)}"
        body = {"preset": "quickstart", "config": {"training": {"max_steps": 20}}, **({"external_id": name} if by != "key" else {})}
        headers = {"Idempotency-Key": name} if by == "key" else {}
        answers = self._at_once([lambda: self._ask("POST", "/v1/runs", json=body, headers=headers)] * times)
        others = 200 if by == "key" else 409
        assert sorted(answer.status_code for answer in answers) == sorted([201] + [others] * (times - 1))
        assert len({answer.json()["id" if answer.is_success else "run_id"] for answer in answers}) == 1
        self._know(next(answer.json() for answer in answers if answer.is_success))

    @rule(steps=st.integers(1, 30), key=KEYS)
    def launch_group(self, steps: int, key: str | None) -> None:
        self._make_room(2)
        is_new, answer = self._once("/v1/groups", {"presets": ["quickstart"] * 2, "config": {"training": {"max_steps": steps}}}, key)
        if is_new:
            assert answer.status_code == 201
            ids = [run["id"] for run in answer.json()["runs"]]
            self._know(*(self._ask("GET", f"/v1/runs/{run_id}").json() for run_id in ids))
            self._groups[answer.json()["id"]] = ids

    @rule(which=WHICH, more=st.integers(0, 10), key=KEYS)
    def fork(self, which: int, more: int, key: str | None) -> None:
        self._make_room()
        run = self._run(which)
        known = self._ask("GET", f"{run.path}/checkpoints").json()["data"]
        is_new, answer = self._once(f"{run.path}/fork", {"config": {"training": {"max_steps": run.steps.stop - 1 + more}}}, key)
        if is_new:
            assert answer.status_code == 201 or (answer.status_code == 404 and not known) or (answer.status_code == 422 and more == 0)
            if answer.status_code == 201:
                self._know(answer.json())

    # --- commands -------------------------------------------------------------------------------------------

    @rule(which=WHICH, ask=ASKS, key=KEYS)
    def command(self, which: int, ask: Ask, key: str | None) -> None:
        run, (name, body) = self._run(which), ask
        since = self._look(run)
        is_new, answer = self._once(f"{run.path}/{name}", body, key)
        self._look()
        if is_new:
            self._judge(run, name, answer, since)

    @rule(which=WHICH, asks=st.lists(ASKS, min_size=2, max_size=6), same=st.booleans(), edits=st.integers(0, 3), deletes=st.booleans())
    def storm(self, which: int, asks: list[Ask], same: bool, edits: int, deletes: bool) -> None:
        """Commands, edits and perhaps a deletion at once, or one command several times under one key."""
        run = self._run(which)
        asks = [asks[0]] * len(asks) if same else asks
        headers = {"Idempotency-Key": f"storm-{next(self._fresh)}"} if same else {}
        tag = {"If-Match": self._ask("GET", run.path).headers["ETag"]}
        since = self._look(run)
        commands = [lambda ask=ask: self._ask("POST", f"{run.path}/{ask[0]}", json=ask[1], headers=headers) for ask in asks]
        changes = [lambda: self._ask("PATCH", run.path, json={"name": "storm"}, headers=tag)] * edits
        ends = [lambda: self._ask("DELETE", run.path)] * (2 if deletes else 0)
        answers = self._at_once([*commands, *changes, *ends])
        if any(answer.status_code == 204 for answer in answers):
            assert [answer.status_code for answer in answers].count(204) == 1
            self._forget(run)
            return
        self._look()
        commanded, edited = answers[: len(asks)], answers[len(asks) : len(asks) + edits]
        done = [answer.json()["version"] for answer in commanded if answer.status_code == 202]
        done += [answer.json()["version"] for answer in edited if answer.status_code == 200]
        assert len(set(done)) == len(done), "two requests made the same change"
        assert {answer.status_code for answer in edited} <= {200, 412}
        repeats = same and any(answer.is_success for answer in commanded)
        for (name, _), answer in zip(asks, commanded, strict=True):
            if not (repeats and answer.status_code == 200):
                self._judge(run, name, answer, since)
        assert not same or [answer.status_code for answer in commanded].count(202) <= 1

    @rule(which=WHICH, ask=ASKS.filter(lambda ask: ask[0] is not Command.CHECKPOINT), key=KEYS)
    def command_group(self, which: int, ask: Ask, key: str | None) -> None:
        if not self._groups:
            self.launch_group(10, None)
        group_id, (name, body) = sorted(self._groups)[which % len(self._groups)], ask
        members = [self._runs[run_id] for run_id in self._groups[group_id] if run_id in self._runs]
        self._look()
        since = [len(run.log) - 1 for run in members]
        is_new, answer = self._once(f"/v1/groups/{group_id}/{name}", body, key)
        self._look()
        if not is_new:
            return
        windows = [run.log[first:] for run, first in zip(members, since, strict=True)]
        if answer.status_code == 409:
            assert answer.json()["state"] in windows[0]
            assert all(any(not _takes(state, name) for state in window) for window in windows)
        else:
            assert answer.status_code in (200, 202)
            made = any(TRANSITIONS[before].get(name) == after for window in windows for before, after in pairwise(window))
            assert made if answer.status_code == 202 else all(any(not _moves(state, name) for state in window) for window in windows)

    @rule(ask=ASKS, name=st.sampled_from(["pause", "stop"]), wrong=WRONG)
    def ask_in_vain(self, ask: Ask, name: str, wrong: Any) -> None:
        """Of a run that is not there, or in words that mean nothing."""
        assert self._ask("POST", f"/v1/runs/{self._gone}/{ask[0]}", json=ask[1]).status_code == 404
        for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/fork"), ("GET", "/events")):
            assert self._ask(method, f"/v1/runs/{self._gone}{path}", json={} if method == "PATCH" else None).status_code == 404
        assert self._ask("POST", f"/v1/runs/{next(iter(self._runs), NOBODY)}/{name}", json=wrong).status_code == 422

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        assert self._ask("PUT", "/v1/queue", json={"held": held}).json()["held"] is held
        self._held = held

    # --- edits and deletions --------------------------------------------------------------------------------

    @rule(which=WHICH, edit=EDITS, tag=TAGS)
    def edit(self, which: int, edit: dict[str, Any], tag: str) -> None:
        run = self._run(which)
        seen, headers = self._tagged(run, tag)
        answer = self._ask("PATCH", run.path, json=edit, headers=headers)
        if answer.status_code == 412:
            self._see_why_refused(run, tag, seen)
        else:
            assert (answer.status_code, tag in ("stale", "garbage")) == (200, False)
            assert {name: answer.json()[name] for name in edit} == edit
            assert answer.json()["version"] > seen
            assert answer.headers["ETag"].startswith(f'"{answer.json()["version"]}.')

    @rule(which=WHICH, tag=TAGS)
    def delete(self, which: int, tag: str) -> None:
        run = self._run(which)
        seen, headers = self._tagged(run, tag)
        since = self._look(run)
        answer = self._ask("DELETE", run.path, headers=headers)
        if answer.status_code == 204:
            assert tag not in ("stale", "garbage")
            assert run.log[-1] in AT_REST | LIVE or not self._held  # what waits and is held goes on waiting
            self._forget(run)
        elif answer.status_code == 412:
            self._see_why_refused(run, tag, seen)
        else:
            self._look()
            assert answer.json()["type"] == "/v1/problems/run_active"
            assert set(run.log[since:]) - AT_REST

    def _tagged(self, run: Known, tag: str) -> tuple[int, dict[str, str]]:
        """The version now, and the header that names it, or an older one, or nothing."""
        answer = self._ask("GET", run.path)
        seen: int = answer.json()["version"]
        names = {"any": "*", "right": answer.headers["ETag"], "stale": f'"{seen - 1}.0"', "garbage": '"x"'}
        return seen, {"If-Match": names[tag]} if tag in names else {}

    def _see_why_refused(self, run: Known, tag: str, seen: int) -> None:
        assert tag in ("stale", "garbage") or (tag == "right" and self._ask("GET", run.path).json()["version"] > seen)

    # --- faults and time ------------------------------------------------------------------------------------

    @rule(which=WHICH, is_shim=st.booleans())
    def kill_process(self, which: int, is_shim: bool) -> None:
        run = self._run(which)
        for pid, words in self._processes():
            if run.id in words and is_shim == ("shim.py" in words):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @rule(which=WHICH)
    def settle(self, which: int) -> None:
        """Wait until a run is where its last command leads."""
        run = self._run(which)
        self._wait(run, State.QUEUED, State.RUNNING, *AT_REST)

    @rule(really=st.integers(0, 3))
    def restart(self, really: int) -> None:
        """Stop the service as Ctrl-C does, and start it again; not as often as anything else, for it takes longest."""
        if really == 3:
            self._serving.close()
            assert self._processes() == []
            self._start()

    # --- what holds whatever came ---------------------------------------------------------------------------

    @invariant()
    def every_answer_names_the_commands_of_the_table(self) -> None:
        listed = self._ask("GET", "/v1/runs", params={"limit": 500}).json()["data"]
        assert {run["id"] for run in listed} == set(self._runs)

    @invariant()
    def a_run_has_one_process_life_at_a_time(self) -> None:
        before = {run.id: len(run.log) for run in self._runs.values()}
        words = [words for _, words in self._processes()]
        self._look()
        for run in self._runs.values():
            lives = [line for line in words if run.id in line]
            assert len({_attempt(line, run.id) for line in lives}) <= 1
            assert len(lives) <= 2  # the shim and its worker
            assert not lives or run.log[-1] in LIVE or len(run.log) > before[run.id], f"{run.log[-1]} with a process: {lives}"

    def teardown(self) -> None:
        try:
            self._end_well()
        finally:
            self._serving.close()
            left = self._processes()
            for pid, _ in left:  # told of below; the next test must not find them
                os.kill(pid, signal.SIGKILL)
            zombies = [child.pid for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
            self._kept.close()
        assert (left, zombies) == ([], [])

    def _end_well(self) -> None:
        """Bring every run to its end: each step was done, and counts, once."""
        self.hold(False)
        for run in self._runs.values():

            def ends(run: Known = run) -> bool:
                self._look()
                if Command.RESUME in TRANSITIONS[run.log[-1]]:
                    self._ask("POST", f"{run.path}/resume")
                return run.log[-1] in FINAL

            until(ends)
            done = steps_of(self._client, run.id)
            assert done == list(run.steps[: len(done)])
            assert run.log[-1] is State.STOPPED or len(done) == len(run.steps), f"{len(done)} of {run.steps}"

    # --- asking and looking ---------------------------------------------------------------------------------

    def _run(self, which: int) -> Known:
        if not self._runs:
            self.launch(20, 0, 0, None)
        return self._runs[sorted(self._runs)[which % len(self._runs)]]

    def _know(self, *shown: dict[str, Any]) -> None:
        for run in shown:
            assert run["id"] not in self._runs
            first = run["forked_from"]["step"] if run["forked_from"] else 0
            self._runs[run["id"]] = Known(run["id"], range(first + 1, run["config"]["training"]["max_steps"] + 1))
        self._look()

    def _make_room(self, room: int = 1) -> None:
        """Delete runs, those that have ended first, until there are few enough."""
        for run in sorted(self._runs.values(), key=lambda run: run.log[-1] not in FINAL)[: max(0, len(self._runs) + room - MOST_RUNS)]:
            self._ask("POST", f"{run.path}/stop", json={"grace_s": 0})
            self._wait(run, *AT_REST)
            assert self._ask("DELETE", run.path).status_code == 204
            self._forget(run)

    def _wait(self, run: Known, *states: State) -> None:
        until(lambda: self._look(run) >= 0 and run.log[-1] in states)

    def _forget(self, run: Known) -> None:
        del self._runs[run.id]
        self._gone = run.id
        assert self._ask("GET", run.path).status_code == 404
        assert not (self._home / "runs" / run.id).exists()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer; one that fails says so as a problem, and one that shows runs says what they can be asked."""
        answer = cast(httpx.Response, self._client.request(method, path, **options))
        assert answer.status_code < 500, answer.text
        body = answer.json() if answer.content else {}
        if answer.is_error:
            assert answer.headers["content-type"] == "application/problem+json"
            assert PROBLEMS[body["type"].rpartition("/")[2]][0] == answer.status_code == body["status"]
        for shown in body.get("data", body.get("runs", [body])):
            if "allowed_commands" in shown:
                assert shown["allowed_commands"] == allowed_commands(State(shown["state"]))
        return answer

    def _once(self, path: str, body: Any, key: str | None) -> tuple[bool, httpx.Response]:
        """Post under an idempotency key; whether the request is still to be judged, and its answer."""
        answer = self._ask("POST", path, json=body, headers={"Idempotency-Key": key} if key else {})
        if key is None:
            return True, answer
        request = (path, str(body))
        if self._keys.get(key, request) != request:
            assert answer.json()["type"] == "/v1/problems/idempotency_key_reused"
            return False, answer
        if key in self._keys:
            assert answer.status_code == 200 or (answer.status_code == 404 and self._gone != NOBODY)
            return False, answer
        if answer.is_success:
            self._keys[key] = request
        return True, answer

    def _at_once(self, calls: Sequence[Callable[[], httpx.Response]]) -> list[httpx.Response]:
        together = Barrier(len(calls))

        def call(what: Callable[[], httpx.Response]) -> httpx.Response:
            together.wait(10)
            return what()

        return list(self._threads.map(call, calls))

    def _look(self, run: Known | None = None) -> int:
        """Take in every change of state since the last look, each along the table; where the log of `run` now ends."""
        with cast(Parts, self._client.app.state.parts).store.read() as session:  # type: ignore[attr-defined]
            events = runs.events(session, None, self._seq, 10_000, "state")
            states = {row.id: row.state for row in runs.page(session, 500)}
        for event in events:
            self._seq = event.seq
            if known := self._runs.get(event.run_id):
                after = State(event.data["state"])
                assert not known.log or after in TRANSITIONS[known.log[-1]].values(), f"{known.log[-1]} -> {after}"
                known.log.append(after)
        assert all(known.log for known in self._runs.values()), "a run whose beginning was not told"
        assert {known.id: str(known.log[-1]) for known in self._runs.values()} == states
        return len(run.log) - 1 if run else -1

    def _judge(self, run: Known, command: Command, answer: httpx.Response, since: int) -> None:
        """Whether the answer fits a state that the run has been in since entry `since` of its log."""
        window, body = run.log[since:], answer.json()
        if answer.status_code == 202 and command is Command.CHECKPOINT:
            fits = State.RUNNING in window
        elif answer.status_code == 202:
            fits = any(TRANSITIONS[before].get(command) == after == body["state"] for before, after in pairwise(window))
        elif answer.status_code == 200:
            fits = any(not _moves(state, command) and _takes(state, command) for state in window)
        else:
            assert body["type"] == "/v1/problems/invalid_transition"
            fits = body["state"] in window and not _takes(State(body["state"]), command)
        assert fits, f"{command} of a run that was {', '.join(window)}: {answer.status_code} {answer.text[:300]}"

    def _processes(self) -> list[tuple[int, str]]:
        """The pid and command line of every process that was given a path of this service."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self._home) in words:
                        found.append((int(folder.name), words))
        return found


def _takes(state: State, command: Command) -> bool:
    return command in TRANSITIONS[state] or in_effect(state, command)


def _moves(state: State, command: Command) -> bool:
    """Whether the command changes something for certain: a second kill does not."""
    return command in TRANSITIONS[state] and (state, command) != (State.STOPPING, Command.KILL)


def _attempt(words: str, run_id: str) -> str:
    return words.partition(run_id)[2].split(maxsplit=1)[0]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "AFTER_S", 0.2)


def explore(examples: int, steps: int, *, derandomize: bool = False) -> None:
    """Random histories. None is shrunk: processes take the time they take, so none can be had again exactly."""
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    run_state_machine_as_test(Service, settings=options)


def test_no_order_of_commands_breaks_the_table() -> None:
    explore(5, 40, derandomize=True)


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_no_order_of_commands_breaks_the_table_in_10_000_steps() -> None:
    explore(100, 100)


def _refuse_stale_versions_by_failing(run: Any, if_version: int | None) -> None:
    if if_version is not None and run.version != if_version:
        raise RuntimeError("planted")


DEFECTS: dict[str, tuple[object, str, Any]] = {
    "a transition that is not looked up": (use_cases, "advance", lambda state, cause: TRANSITIONS[state].get(cause, State.PAUSED)),
    "a stale version is answered 500": (use_cases, "_refuse_other_version", _refuse_stale_versions_by_failing),
    "any version will do": (use_cases, "_refuse_other_version", lambda run, if_version: None),
    "a repeated request is carried out again": (runs, "done_before", lambda write, once: None),
    "a live worker is taken for gone": (LocalExecutor, "ended", lambda self, attempt: Exit(0) if attempt.started.exists() else None),
    "a number is given twice": (Write, "note_head", lambda self: None),
    "a command too many is offered": (schemas, "allowed_commands", lambda state: ["pause", *allowed_commands(state)]),
    "a resume is forgotten": (Supervisor, "_launch_queued", lambda self: None),
}


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # processes that a defect leaves behind
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[defect])
    with pytest.raises(Exception):  # noqa: B017, PT011 - an assertion, or what the service raised, or a group of them
        explore(10, 60, derandomize=True)
