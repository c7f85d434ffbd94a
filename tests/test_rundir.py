"""rundir.py: whole or not at all, each line once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cognate.config import resolve
from cognate.events import Event, Kind, MalformedLine
from cognate.rundir import (
    MANIFEST,
    AttemptDir,
    Control,
    CorruptCheckpoint,
    Journal,
    RunDir,
    file_digest,
    lease_is_free,
    read_control,
    read_journal,
    take_lease,
    verify_checkpoint,
    write_control,
    write_json,
)


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    run = RunDir(tmp_path / "run_x")
    run.create(resolve("quickstart"))
    attempt = run.attempt(1)
    attempt.create()
    return attempt


def events(path: Path, offset: int = 0) -> list[Event]:
    found = [entry for entry, _ in read_journal(path, offset)]
    assert not any(isinstance(entry, MalformedLine) for entry in found)
    return [entry for entry in found if isinstance(entry, Event)]


def test_a_run_directory_keeps_its_configuration(attempt: AttemptDir) -> None:
    assert attempt.run.config() == resolve("quickstart")
    assert attempt.number == 1
    with pytest.raises(FileExistsError):
        attempt.run.create(resolve("speed"))


def test_a_journal_is_read_back_in_order(attempt: AttemptDir) -> None:
    journal = Journal(attempt)
    for step in range(5):
        journal.append(Kind.SAMPLE, step=step)
    assert [(event.seq, event.data["step"]) for event in events(attempt.journal)] == [(step + 1, step) for step in range(5)]


def test_a_torn_last_line_waits_for_its_end(attempt: AttemptDir) -> None:
    """The worker may be killed, or read from, in the middle of a write."""
    journal = Journal(attempt)
    journal.append(Kind.SAMPLE, step=1)
    journal.append(Kind.SAMPLE, step=2)
    whole = attempt.journal.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        attempt.journal.write_bytes(whole[:cut])
        assert [event.data["step"] for event in events(attempt.journal)] == [1]
    attempt.journal.write_bytes(whole)
    assert [event.data["step"] for event in events(attempt.journal)] == [1, 2]


@settings(max_examples=50, deadline=None)
@given(limit=st.integers(1, 400), lines=st.integers(0, 12))
def test_any_block_size_gives_every_line_once(limit: int, lines: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    attempt = AttemptDir(tmp_path_factory.mktemp("run") / "attempts" / "0001")
    attempt.path.mkdir(parents=True)
    journal = Journal(attempt)
    for step in range(lines):
        journal.append(Kind.SAMPLE, step=step, text="x" * (step * 17 % 50))
    seen, offset = [], 0
    while block := list(read_journal(attempt.journal, offset, limit)):
        seen += [entry.data["step"] for entry, _ in block if isinstance(entry, Event)]
        offset = block[-1][1]
    assert seen == list(range(lines))


def test_a_malformed_line_is_handed_over_and_the_next_ones_are_read(attempt: AttemptDir) -> None:
    journal = Journal(attempt)
    journal.append(Kind.SAMPLE, step=1)
    with attempt.journal.open("ab") as file:
        file.write(b"garbage\n")
    Journal(attempt).append(Kind.SAMPLE, step=2)
    kinds = [type(entry) for entry, _ in read_journal(attempt.journal)]
    assert kinds == [Event, MalformedLine, Event]


def test_a_full_disk_leaves_no_half_line(attempt: AttemptDir) -> None:
    """RLIMIT_FSIZE makes the write come up short, as a full disk does; the line is taken back, the next one is whole."""
    script = """
import resource, signal, sys
from pathlib import Path
from cognate.events import Kind
from cognate.rundir import AttemptDir, Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(AttemptDir(Path(sys.argv[1])))
journal.append(Kind.SAMPLE, step=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
try:
    journal.append(Kind.SAMPLE, step=2, text="x" * 200)
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(Kind.SAMPLE, step=3)
"""
    done = subprocess.run([sys.executable, "-c", script, str(attempt.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert [event.data["step"] for event in events(attempt.journal)] == [1, 3]


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_control_says_run_until_it_says_otherwise(attempt: AttemptDir) -> None:
    assert read_control(attempt) == Control("run", 0)
    write_control(attempt, Control("pause", 4))
    assert read_control(attempt) == Control("pause", 4)
    attempt.control.unlink()
    assert read_control(attempt) == Control("run", 0)


def test_a_lease_is_held_by_a_child_that_inherited_it_and_free_once_it_is_killed(attempt: AttemptDir) -> None:
    lease = take_lease(attempt)
    assert lease is not None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lease,))
    os.close(lease)
    assert not lease_is_free(attempt)
    assert take_lease(attempt) is None
    child.kill()
    child.communicate()
    assert lease_is_free(attempt)


def test_checkpoints_are_found_by_their_final_name_only(attempt: AttemptDir) -> None:
    for name in ("step_000010", "step_000002", ".step_000030.tmp", "step_1000000", "other"):
        (attempt.run.checkpoints / name).mkdir()
    assert [step for step, _ in attempt.run.complete_checkpoints()] == [2, 10, 1000000]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "state.json").write_bytes(b'{"step": 3}')
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in tmp_path.iterdir()}
    write_json(tmp_path / MANIFEST, {"step": 3, "files": files})
    return tmp_path


def test_a_whole_checkpoint_verifies(checkpoint: Path) -> None:
    assert verify_checkpoint(checkpoint)["step"] == 3


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_checkpoint_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """safetensors loads flipped bits without a word; the digests are the only witness."""
    folder = tmp_path_factory.mktemp("checkpoint")
    body = bytes(range(256)) * 4
    (folder / "model.safetensors").write_bytes(body)
    files = {"model.safetensors": {"bytes": len(body), "sha256": file_digest(folder / "model.safetensors")}}
    write_json(folder / MANIFEST, {"step": 1, "files": files})
    damage = data.draw(st.sampled_from(["flip", "cut", "missing", "manifest"]))
    place = data.draw(st.integers(0, len(body) - 1))
    if damage == "flip":
        flipped = bytearray(body)
        flipped[place] ^= 1 << data.draw(st.integers(0, 7))
        (folder / "model.safetensors").write_bytes(flipped)
    elif damage == "cut":
        (folder / "model.safetensors").write_bytes(body[:place])
    elif damage == "missing":
        (folder / "model.safetensors").unlink()
    else:
        manifest = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).write_bytes(manifest[: place % len(manifest) // 2])
    with pytest.raises(CorruptCheckpoint):
        verify_checkpoint(folder)
