"""The Weights & Biases mirror: `python -m cognate.mirror RUN_DIR`, a process beside the worker that only reads.

It knows the run by its journals alone (story.py), so it can be killed at any instant, started late, or left out: nothing is lost.
What W&B has already is asked of W&B itself, and it is told what comes after: offline the last file that is whole says, online
the server. Either way a step is there once, and a resumed run goes on under the same id. A file is made apart, read back, and
then put into its place (offline.py); `wandb sync` sends the files of a run one after another, so none may repeat what another has, and a
run that was begun one way is not continued the other.

Online it follows the journals until its standard input is closed, which the service does when the run is at rest, and the
kernel when the service dies.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cognate import wandbfile
from cognate.events import Kind
from cognate.offline import file_in, folders_of, number_of
from cognate.priority import give_way
from cognate.rundir import RunDir, read_json, sync_directory, write_json
from cognate.story import Row, Story

Mode = Literal["offline", "online"]
POLL_S = 1.0
INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 600.0
STEP_AXIS = "train/step"


class MirrorFailed(RuntimeError):
    """W&B does not have the run as its journals tell it."""


class NotReached(MirrorFailed):
    """W&B's server could not be told."""


@dataclass(frozen=True)
class About:
    """What people call the run; a run directory does not know."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cognate.mirror")
    parser.add_argument("run", type=Path)
    parser.add_argument("--online", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--tag", action="append", default=[])
    parser.add_argument("--group")
    parser.add_argument("--remark", help="why this is not done online")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    give_way()
    run = RunDir(options.run.resolve())
    about = None if options.name is None else About(options.name, tuple(options.tag), options.group)
    try:
        mirror(run, about, _closes if options.online else None, options.remark)
    except NotReached as error:
        print(error, file=sys.stderr)
        # What the server may have in part, only the server can be told the rest of.
        code = _write_instead(arguments, str(error)) if _closes(0.0) and _noted(run).mode is None else 1
        sys.stderr.flush()
        os._exit(code)  # W&B's exit hook would wait for the network
    except (MirrorFailed, wandbfile.DamagedFile, OSError) as error:
        print(error, file=sys.stderr)  # the last line of the log is what the service tells
        return 1
    return 0


def mirror(run: RunDir, about: About | None = None, closes: Callable[[float], bool] | None = None, remark: str | None = None) -> None:
    """Bring W&B up to what the journals say; raises NotReached, MirrorFailed, wandbfile.DamagedFile, OSError.

    about:  None: as the mirror before was told
    closes: waits so many seconds; whether the run is to be followed no further. None: offline
    remark: what else there is to know of this
    """
    mode: Mode = "offline" if closes is None else "online"
    _noted_for(run, mode)  # now: one that follows the run would be waited for until the run rests
    run.mirror.parent.mkdir(exist_ok=True)
    with _only_mirror_of(run), _workshop(run) as workshop:
        noted = _noted_for(run, mode)
        about = about or noted.about
        if closes is None:
            _mirror_offline(run, noted, about, workshop, remark)
            return
        try:
            _mirror_online(run, about, workshop, closes)
        except Exception as error:  # whatever W&B's library raises: a network, a key, a server
            said = " ".join(f"{type(error).__name__}: {error}".split())  # one line, whatever it was
            raise NotReached(f"W&B was not reached: {said}") from error


def _write_instead(arguments: list[str], reason: str) -> int:
    """In a process of its own, for what is left of the one attempt must not get in the way of the other."""
    offline = [word for word in arguments if word != "--online"]
    remark = f"{reason}; the run is written into its folder instead, for `wandb sync`"
    command = [sys.executable, "-m", "cognate.mirror", *offline, f"--remark={remark}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode


# --- the two ways -----------------------------------------------------------------------------------------


def _mirror_offline(run: RunDir, noted: _Noted, about: About, workshop: Path, remark: str | None) -> None:
    if run.is_mirrored():
        return
    # A mirror may have been killed before it noted its file; a file that was noted may be gone once it was sent (`wandb clean`).
    before = folders_of(run)
    sent = max([noted.last_step, *(step for folder in before for step in wandbfile.summarize(file_in(folder)).steps)])
    number = 1 + max([noted.files, *map(number_of, before)])
    story = Story(run)
    wandb_run = _begin(run, about, "offline", workshop, suffix=f"{number:04d}")
    steps: list[int] = []
    for row in story.rows():
        if row.number > sent:
            _log(wandb_run, row, story.began)
            steps.append(row.number)
    _end(wandb_run, run, story)
    (made,) = (workshop / "wandb").glob("offline-run-*")
    recorded = wandbfile.summarize(file_in(made))
    if not recorded.is_finished or recorded.steps != steps:
        raise MirrorFailed(f"{made.name} holds {len(recorded.steps)} of {len(steps)} steps when read back")
    for name in ("logs", "tmp"):  # of W&B's own, with links into the workshop
        shutil.rmtree(made / name, ignore_errors=True)
    _sync_file(file_in(made))
    made.rename(run.mirror.parent / made.name)
    sync_directory(run.mirror.parent)
    _note(run, "offline", about, story.journal_sizes, remark, last_step=max([sent, *steps[-1:]]), files=number)


def _mirror_online(run: RunDir, about: About, workshop: Path, closes: Callable[[float], bool]) -> None:
    story = Story(run)
    wandb_run = _begin(run, about, "online", workshop)
    _note(run, "online", about, [])  # the server knows the run now
    sent = wandb_run.starting_step - 1  # what the server has; an earlier mirror's rows that never reached it are sent again
    is_last = False
    while not is_last:
        is_last = closes(POLL_S)
        for row in story.rows():
            if row.number > sent:
                _log(wandb_run, row, story.began)
                sent = row.number
    _end(wandb_run, run, story)
    _note(run, "online", about, story.journal_sizes)


def _begin(run: RunDir, about: About, mode: Mode, workshop: Path, suffix: str = "") -> Any:
    for name in ("CACHE", "CONFIG", "DATA"):
        os.environ[f"WANDB_{name}_DIR"] = str(workshop / name.lower())
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else the library may call home, offline too
    import wandb  # here: half a second and 60 MB, which only a mirror needs

    config = run.config()
    settings = wandb.Settings(
        root_dir=str(workshop),
        x_sync_dir_suffix=suffix,
        mode=mode,
        run_id=run.path.name,
        resume="allow" if mode == "online" else None,
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        stop_fn=lambda: None,  # a run is stopped here, not from W&B's page
        silent=True,
        console="off",
        # Of this process, not of the training: its load, its machine, its command line, its packages.
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
        host="cognate",
    )
    wandb_run = wandb.init(
        project=config.tracking.project,
        entity=config.tracking.entity,
        name=about.name or run.path.name,
        tags=about.tags,
        group=about.group,
        job_type=config.preset,
        config=config.model_dump(mode="json"),
        settings=settings,
    )
    wandb_run.define_metric(STEP_AXIS)
    wandb_run.define_metric("*", step_metric=STEP_AXIS)
    return wandb_run


def _log(wandb_run: Any, row: Row, began: float) -> None:
    axes = {STEP_AXIS: row.step, "train/epoch": row.epoch, "train/wall_time_s": row.at - began, "_timestamp": row.at}
    if row.tokens is not None:
        axes["train/tokens"] = row.tokens
    wandb_run.log({**row.values, **axes}, step=row.number)


def _end(wandb_run: Any, run: RunDir, story: Story) -> None:
    _attach_checkpoint(wandb_run, run)
    wandb_run.summary.update(story.summary())
    wandb_run.finish(exit_code=1 if story.ending is Kind.FAILED else 0)
    import wandb

    wandb.teardown()  # finish() returns while the file's last rows are still on their way to it


def _attach_checkpoint(wandb_run: Any, run: RunDir) -> None:
    wanted = run.config().tracking.upload_checkpoints
    complete = dict(run.complete_checkpoints())
    best = run.best()
    step = {"none": None, "best": best and best[0], "final": max(complete, default=None)}[wanted]
    if step not in complete:
        return
    import wandb

    artifact = wandb.Artifact(f"{run.path.name}-{wanted}", type="model", metadata={"step": step})
    # A checkpoint's files are never written again, so W&B need not copy them first.
    artifact.add_dir(str(complete[step]), policy="immutable", skip_cache=True)
    wandb_run.log_artifact(artifact, aliases=[wanted, f"step_{step}"])


# --- files ------------------------------------------------------------------------------------------------


@contextmanager
def _only_mirror_of(run: RunDir) -> Iterator[None]:
    """Hold the run's mirror lease, once whoever has it is gone. The lock goes with the process, however it ends."""
    lease = os.open(run.mirror.parent / "lease", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lease, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lease)


@contextmanager
def _workshop(run: RunDir) -> Iterator[Path]:
    """A folder for W&B to write in; what a mirror that was killed left in it is gone first."""
    workshop = run.mirror.parent / "making"
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir()
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


@dataclass(frozen=True)
class _Noted:
    """What the mirror before left word of; mode None: there was none. last_step: of the files that were made"""

    mode: Mode | None = None
    about: About = About()
    last_step: int = -1
    files: int = 0


def _note(
    run: RunDir, mode: Mode, about: About, journal_sizes: list[int], remark: str | None = None, last_step: int = -1, files: int = 0
) -> None:
    files_made = {"last_step": last_step, "files": files}
    write_json(run.mirror, {"mode": mode, "journal_sizes": journal_sizes, "remark": remark, "about": asdict(about), **files_made})


def _noted_for(run: RunDir, mode: Mode) -> _Noted:
    """_noted(), if the run can be mirrored in `mode`; raises MirrorFailed."""
    noted = _noted(run)
    if noted.mode not in (None, mode):
        raise MirrorFailed(f"W&B has this run {noted.mode} so far, and {mode} would tell it twice; go on {noted.mode}")
    return noted


def _noted(run: RunDir) -> _Noted:
    try:
        noted = read_json(run.mirror)
    except FileNotFoundError:
        return _Noted("offline" if folders_of(run) else None)
    about = noted["about"]
    return _Noted(noted["mode"], About(about["name"], tuple(about["tags"]), about["group"]), noted["last_step"], noted["files"])


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _closes(seconds: float) -> bool:
    """Whether standard input is closed, or becomes so within `seconds`."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    sys.exit(main())
