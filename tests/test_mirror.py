"""The Weights & Biases mirror, by the real wandb, offline; what it wrote is read back from the disk."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cognate import wandbfile
from cognate.cli import app
from cognate.config import resolve
from cognate.events import Kind
from cognate.metrics import KEYS
from cognate.offline import Comparison, NoFiles, compare
from cognate.rundir import Journal, RunDir, read_json
from cognate.story import Story
from tests.service import until

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "cognate.mirror"]


def new_run(folder: Path, **tracking: Any) -> RunDir:
    run = RunDir(folder / "run_1")
    run.create(resolve("quickstart", {"tracking": tracking}))
    return run


def attempt(run: RunDir, steps: Iterable[int], ending: Kind | None, *, warnings: Iterable[str] = (), **more: Any) -> None:
    """One more attempt, as the worker would have told it."""
    directory = run.attempt(len(run.attempts()) + 1)
    directory.create()
    journal = Journal(directory)
    journal.append(Kind.STARTED, resumed_from_step=None)
    journal.append(Kind.PLAN, total_params=1234, total_steps=100)
    for sentence in warnings:
        journal.append(Kind.WARNING, message=sentence)
    for step in steps:
        values = values_of(step, len(run.attempts()))
        journal.append(Kind.METRICS, step=step, epoch=step / 50, values=values, progress={"tokens": 1024 * step} if step else {})
    if ending:
        journal.append(ending, step=0, **more)
    journal.close()


def values_of(step: int, attempt: int = 1) -> Mapping[str, float]:
    """As sparse as the real ones: some at each step, all of them somewhere. Memory measures the attempt, not the model."""
    values = {key: 1 / 3 + step + number / 7 for number, key in enumerate(KEYS) if number < 12 or step % 10 == 0}
    return {**values, "gpu_memory_allocated": float(attempt)}


def mirrored(run: RunDir, *options: str) -> Comparison:
    done = subprocess.run([*COMMAND, *options, str(run.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return compare(run)


def records(run: RunDir) -> dict[str, list[Any]]:
    """What the file holds, by kind of record."""
    found: dict[str, list[Any]] = {}
    for record in (record for folder in compare(run).folders for record in wandbfile.records(file_in(folder))):
        found.setdefault(record.WhichOneof("record_type"), []).append(record)
    return found


def rows(run: RunDir) -> dict[int, dict[str, float]]:
    return dict(row for record in records(run)["history"] if (row := wandbfile.row(record)))


def steps_in(run: RunDir) -> list[list[int]]:
    """The steps in each file."""
    folders = sorted(run.mirror.parent.glob("offline-run-*"), key=lambda folder: folder.name[-4:])
    return [wandbfile.summarize(file_in(folder)).steps for folder in folders]


def file_in(folder: Path) -> Path:
    (file,) = folder.glob("*.wandb")
    return file


# --- what is in the file ----------------------------------------------------------------------------------


def test_all_37_metrics_are_there_with_every_step_once_and_the_journals_values(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(101), Kind.FINISHED)
    found = mirrored(run)
    assert found.is_complete
    assert len(found.keys) == 37
    assert all(found.keys.values())
    written = rows(run)
    assert list(written) == list(range(101))
    for step, row in written.items():
        assert {key: row[key] for key in row.keys() & set(KEYS)} == values_of(step)  # and what is absent is absent


def test_a_row_can_be_drawn_against_step_epoch_tokens_and_time(tmp_path: Path) -> None:
    """W&B's own axes are of the mirror's process: its steps are calls, its time begins when the mirror does."""
    run = new_run(tmp_path)
    attempt(run, (0, 10, 25), Kind.FINISHED)
    mirrored(run)
    told = list(Story(run).rows())
    written = rows(run)
    assert [(row["train/step"], row["train/epoch"], row.get("train/tokens")) for row in written.values()] == [
        (0, 0, None), (10, 0.2, 10240), (25, 0.5, 25600),
    ]  # fmt: skip
    assert [row["_timestamp"] for row in written.values()] == pytest.approx([row.at for row in told], abs=1e-6)
    assert [row["train/wall_time_s"] for row in written.values()] == pytest.approx([row.at - told[0].at for row in told], abs=1e-6)
    axes = {record.metric.name or record.metric.glob_name: record.metric.step_metric for record in records(run)["metric"]}
    assert axes == {"train/step": "", "*": "train/step"}


def test_a_number_that_is_not_finite_stays_what_it_is(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    directory = run.attempt(1)
    directory.create()
    values = {"loss": math.nan, "loss_ce": math.inf, "grad_norm": -math.inf}
    Journal(directory).append(Kind.METRICS, step=1, epoch=0.1, values=values, progress={})
    assert mirrored(run).is_complete
    assert repr({key: rows(run)[1][key] for key in values}) == repr(values)


def test_config_name_tags_group_and_summary_are_the_runs(tmp_path: Path) -> None:
    run = new_run(tmp_path, project="thesis", entity="lab")
    attempt(run, range(0, 31), Kind.FAILED, warnings=["slow disk", "no compiler"], reason="oom_cuda", detail="out of memory")
    mirrored(run, "--name=--first try", "--tag=a", "--tag=b, c", "--group=group_1")
    found = records(run)
    told = found["run"][0].run
    assert (told.run_id, told.project, told.entity, told.job_type) == ("run_1", "thesis", "lab", "quickstart")
    assert (told.display_name, list(told.tags), told.run_group) == ("--first try", ["a", "b, c"], "group_1")
    config = {item.key: json.loads(item.value_json) for item in told.config.update if item.key != "_wandb"}
    assert config == read_json(run.config_file)
    assert found["exit"][0].exit.exit_code == 1
    last = {item.key: json.loads(item.value_json) for record in found["summary"] for item in record.summary.update if item.key}
    val_loss = values_of(0)["val_loss"]
    expected = {"total_params": 1234, "best_val_loss": val_loss, "best_val_step": 0, "ending": "failed", "warnings": 2}
    assert {key: last[key] for key in expected} == expected
    assert (last["last_warning"], last["failure"]) == ("no compiler", "oom_cuda: out of memory")


def test_a_mirror_made_by_hand_keeps_the_name_the_service_gave(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(3), Kind.PAUSED)
    mirrored(run, "--name=first", "--tag=x")
    mirrored(run)
    told = records(run)["run"][0].run
    assert (told.display_name, list(told.tags)) == ("first", ["x"])


@pytest.mark.parametrize(("wanted", "step"), [("best", 10), ("final", 20), ("none", None)])
def test_the_checkpoint_that_was_asked_for_is_an_artifact(tmp_path: Path, wanted: str, step: int | None) -> None:
    run = new_run(tmp_path, upload_checkpoints=wanted)
    attempt(run, range(21), Kind.FINISHED)
    for saved in (10, 20):
        run.checkpoint(saved).mkdir()
        (run.checkpoint(saved) / "model.safetensors").write_bytes(bytes(saved))
    run.note_best(10, 1.5)
    mirrored(run)
    artifacts = [record.artifact for record in records(run).get("artifact", [])]
    files = [entry.local_path for artifact in artifacts for entry in artifact.manifest.contents]
    assert files == ([str(run.checkpoint(step) / "model.safetensors")] if step else [])
    assert [sorted(artifact.aliases) for artifact in artifacts] == ([sorted([wanted, f"step_{step}", "latest"])] if step else [])


# --- each step once, whatever happens ----------------------------------------------------------------------


def test_after_a_pause_and_a_resume_the_next_file_goes_on_where_the_first_ends(tmp_path: Path) -> None:
    """`wandb sync` appends the files of a run in their order: what two of them hold would be there twice."""
    run = new_run(tmp_path)
    attempt(run, range(41), Kind.PAUSED)
    assert mirrored(run).is_complete
    attempt(run, range(41, 101), Kind.FINISHED)
    found = compare(run)
    assert (found.missing, found.doubled) == (list(range(41, 101)), [])
    assert mirrored(run).is_complete
    assert steps_in(run) == [list(range(41)), list(range(41, 101))]
    assert {record.run.run_id for record in records(run)["run"]} == {"run_1"}


def test_steps_that_are_done_again_are_not_told_again(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(61), None)
    assert mirrored(run).is_complete
    attempt(run, range(51, 101), Kind.FINISHED)  # from a checkpoint at step 50
    assert mirrored(run).is_complete
    assert steps_in(run) == [list(range(61)), list(range(61, 101))]


def test_of_several_tellings_before_it_was_mirrored_the_newest_counts(tmp_path: Path) -> None:
    """As on the page. Attempt 2 went back to step 20 and was lost at 25; 26-60 are still attempt 1's."""
    run = new_run(tmp_path)
    attempt(run, range(61), None)
    attempt(run, range(21, 26), None)
    assert mirrored(run).is_complete
    told = {step: row["gpu_memory_allocated"] for step, row in rows(run).items()}
    assert told == {step: 2.0 if 21 <= step <= 25 else 1.0 for step in range(61)}


def test_what_has_been_mirrored_is_not_mirrored_again(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(11), Kind.FINISHED)
    mirrored(run)
    mirrored(run)
    assert steps_in(run) == [list(range(11))]
    run.mirror.unlink()  # and not even without the note of it
    assert mirrored(run).is_complete
    assert steps_in(run) == [list(range(11)), []]


def test_files_that_were_sent_and_removed_are_not_made_again(tmp_path: Path) -> None:
    """`wandb clean` removes what `wandb sync` has sent."""
    run = new_run(tmp_path)
    attempt(run, range(11), Kind.PAUSED)
    shutil.rmtree(mirrored(run).folders[0])
    attempt(run, range(11, 21), Kind.FINISHED)
    found = mirrored(run)
    (folder,) = found.folders
    assert folder.name.endswith("-0002")
    assert (found.removed, found.missing) == (1, list(range(11)))  # the check cannot know what was in it, and says so
    assert steps_in(run) == [list(range(11, 21))]
    shutil.rmtree(folder)
    with pytest.raises(NoFiles, match="any more: there were 2"):
        compare(run)


def test_a_torn_last_line_is_not_waited_for(tmp_path: Path) -> None:
    """A worker that is killed in the middle of a line never ends it."""
    run = new_run(tmp_path)
    attempt(run, range(5), None)
    with run.attempt(1).journal.open("ab") as journal:
        journal.write(b'{"seq":8,"at":1.0,"kind":"metr')
    assert mirrored(run).is_complete
    assert run.is_mirrored()
    attempt(run, range(5, 8), Kind.FINISHED)
    assert not run.is_mirrored()


def test_a_damaged_line_costs_itself_and_is_told(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(5), Kind.FINISHED)
    journal = run.attempt(1).journal
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b"\x00\x00\n", *lines[5:]]))
    mirrored(run)
    assert list(rows(run)) == [0, 1, 3, 4]
    story = Story(run)
    assert len(list(story.rows())) == 4
    assert story.summary()["warnings"] == 1


def test_a_run_that_told_nothing_is_a_file_without_rows(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, (), Kind.FAILED, reason="data_missing", detail="no data")
    assert mirrored(run).is_complete


def _killed_when(run: RunDir, moment: str) -> None:
    """Start a mirror and SIGKILL it at `moment`."""
    if moment in ("_sync_file", "_note"):
        script = f"import os, cognate.mirror as m; m.{moment} = lambda *_, **__: os.kill(os.getpid(), 9); m.main([{str(run.path)!r}])"
        assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
        return
    making = run.mirror.parent / "making"
    reached = {
        "started": lambda: making.exists(),
        "file made": lambda: [*making.rglob("*.wandb")],
        "rows written": lambda: any(file.stat().st_size > 100_000 for file in making.rglob("*.wandb")),
    }[moment]
    with subprocess.Popen([*COMMAND, str(run.path)]) as process:
        until(lambda: reached() or process.poll() is not None)
        process.kill()


@pytest.mark.parametrize(
    "moment",
    ["rows written", "_note", *(pytest.param(moment, marks=pytest.mark.faults) for moment in ("started", "file made", "_sync_file"))],
)
def test_a_mirror_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, moment: str) -> None:
    """A file that is in its place is whole; the next mirror reads there what is left to tell."""
    run = new_run(tmp_path)
    attempt(run, range(41), Kind.PAUSED)
    assert mirrored(run).is_complete
    attempt(run, range(41, 1500), Kind.FINISHED)
    _killed_when(run, moment)
    before = steps_in(run)
    assert before in ([[*range(41)]], [[*range(41)], [*range(41, 1500)]])
    assert not run.is_mirrored()
    assert mirrored(run).is_complete
    assert steps_in(run)[: len(before)] == before  # a file that may have been sent already is never touched
    assert not (run.mirror.parent / "making").exists()


def test_a_second_mirror_of_a_run_waits_for_the_first(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(300), Kind.FINISHED)
    both = [subprocess.Popen([*COMMAND, str(run.path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert compare(run).is_complete
    assert steps_in(run) == [list(range(300))]


# --- the check itself -------------------------------------------------------------------------------------


def test_the_check_sees_what_is_missing_doubled_and_changed(tmp_path: Path) -> None:
    """A comparison that cannot fail proves nothing."""
    run = new_run(tmp_path)
    attempt(run, range(11), Kind.FINISHED)
    mirrored(run)
    attempt(run, (11, 12), Kind.FINISHED)
    shutil.copytree(file := compare(run).folders[0], file.with_name(f"{file.name[:-4]}0002"))
    journal = run.attempt(1).journal
    journal.write_bytes(journal.read_bytes().replace(b'"loss":3.3333333333333335', b'"loss":3.3333333333333333'))
    found = compare(run)
    assert (found.missing, found.doubled, found.differing) == ([11, 12], [*range(11)], [])
    journal.write_bytes(journal.read_bytes().replace(b'"loss":3.333', b'"loss":3.334'))
    assert compare(run).differing == [3]


def test_a_changed_byte_in_the_file_is_noticed_and_a_torn_end_is_an_end(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(200), Kind.FINISHED)
    file = file_in(mirrored(run).folders[0])
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    found = compare(run)
    assert found.unfinished
    assert 0 < len(found.missing) < 200
    file.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(wandbfile.DamagedFile, match="checksum"):
        compare(run)
    done = CliRunner().invoke(app, ["mirror", "--check", str(run.path)])
    assert done.exit_code == 2
    assert "checksum" in done.output
    attempt(run, (200,), Kind.FINISHED)
    refused = subprocess.run([*COMMAND, str(run.path)], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)  # a sentence, for the run's event


def test_without_a_file_the_check_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoFiles, match="cognate mirror"):
        compare(new_run(tmp_path))


def test_the_command_brings_the_files_up_to_now_and_says_what_is_in_them(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(11), Kind.PAUSED)
    done = CliRunner().invoke(app, ["mirror", str(run.path)])
    assert done.exit_code == 0, done.output
    assert "steps complete: yes" in done.output
    assert all(key in done.output for key in KEYS)
    attempt(run, range(11, 14), Kind.FINISHED)
    done = CliRunner().invoke(app, ["mirror", "--check", str(run.path)])
    assert done.exit_code == 1
    assert "missing: 3 steps, the first is 11" in done.output
    assert CliRunner().invoke(app, ["mirror", str(tmp_path)]).exit_code == 2


def test_what_is_measured_afterwards_comes_behind_the_last_row(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    attempt(run, range(11), Kind.FINISHED)
    mirrored(run)
    measured = {key: 0.5 for key in KEYS if key.startswith("diversity_")}
    journal = Journal(run.afterwards)
    journal.append(Kind.METRICS, step=10, epoch=0.2, values=measured, progress={})
    journal.close()
    assert not run.is_mirrored()
    found = mirrored(run)
    assert run.is_mirrored()
    assert found.is_complete
    assert [steps[-1] for steps in steps_in(run)] == [10, 11]
    assert {key: value for key, value in rows(run)[11].items() if key in KEYS} == measured
    assert rows(run)[11]["train/step"] == 10
    assert mirrored(run).folders == found.folders
    assert records(run)["summary"]


def test_what_is_measured_again_afterwards_comes_once_and_last(tmp_path: Path) -> None:
    """Else W&B keeps the first value, where the run's own tables have the newest."""
    run = new_run(tmp_path)
    attempt(run, range(11), Kind.FINISHED)
    journal = Journal(run.afterwards)
    journal.append(Kind.METRICS, step=10, epoch=0.2, values={"diversity_ltm_usage": 1.0}, progress={})
    mirrored(run)
    journal.append(Kind.METRICS, step=10, epoch=0.2, values={"diversity_ltm_usage": 7.0}, progress={})
    journal.close()
    assert compare(run).missing == [12]
    assert mirrored(run).is_complete
    assert [steps[-1] for steps in steps_in(run)] == [11, 12]
    assert (rows(run)[12]["diversity_ltm_usage"], rows(run)[12]["train/step"]) == (7.0, 10)
