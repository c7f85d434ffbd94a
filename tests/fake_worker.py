"""A worker without a model: speaks the same files as the real one, in milliseconds.

    python fake_worker.py [--step-seconds S] [--fault NAME@STEP] ATTEMPT_DIR

Faults, in the first attempt only: nan (a loss that is no number, then failed), crash (exit 3), hang (never answers again),
doze (silent for a while), hold (goes no further until it is told to leave, and answers all the while), full (out of disk),
always_full (in every attempt), bad_gpu (no attempt on GPU-bad comes to a step), error (failed with a reason), mumble (failed
without one), child (leaves a process behind when it ends).
"""

import argparse
import errno
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from cognate import shim
from cognate.events import EXIT_DISK_FULL, Kind
from cognate.rundir import MANIFEST, AttemptDir, Journal, file_digest, read_json, write_json
from cognate.training.control import ControlFile


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.002)
    parser.add_argument("--fault", default="@0")
    parser.add_argument("--slow-pause", type=float, default=0.0)
    parser.add_argument("--spare", action="store_true")
    parser.add_argument("attempt", type=Path, nargs="?")
    options = parser.parse_args()
    if options.spare:
        options.attempt = Path(shim.await_assignment())
    fault, _, fault_step = options.fault.partition("@")
    attempt = AttemptDir(options.attempt)
    run, journal, control = attempt.run, Journal(attempt), ControlFile(attempt)
    print(f"fake worker of attempt {attempt.number}", *["that was a spare"] * options.spare, flush=True)
    saved = run.complete_checkpoints()
    step = int(read_json(saved[-1][1] / "state.json")["step"]) if saved else 0
    total = run.config().training.max_steps or 50
    journal.append(Kind.STARTED, device="cpu", precision="float32", threads=1, torch="none", resumed_from_step=step or None)
    journal.append(Kind.PLAN, total_steps=total, total_params=1, steps_per_epoch=[total], curriculum={"stages": [], "datasets": []})
    journal.append(Kind.PHASE, phase="training")

    if fault == "bad_gpu" and os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bad":
        journal.append(Kind.FAILED, reason="gpu_error", detail="AcceleratorError: CUDA error: uncorrectable ECC error encountered\nCompile")
        return 1

    def save(serial: int | None = None) -> None:
        folder = run.checkpoint(step)
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text(f'{{"step": {step}}}')
        files = {"state.json": {"bytes": (folder / "state.json").stat().st_size, "sha256": file_digest(folder / "state.json")}}
        write_json(folder / MANIFEST, {"step": step, "files": files})
        journal.append(
            Kind.CHECKPOINT,
            step=step,
            name=folder.name,
            files=files,
            kept_steps=[found for found, _ in run.complete_checkpoints()],
            serial=serial,
        )

    while step < total:
        asked = control.poll()
        if asked and asked.command == "checkpoint":
            save(asked.serial)
        if asked and asked.command in ("pause", "stop"):
            time.sleep(options.slow_pause)
            if asked.save:
                save(asked.serial)
            journal.append(Kind.PAUSED if asked.command == "pause" else Kind.STOPPED, step=step, serial=asked.serial)
            return 0
        time.sleep(options.step_seconds)
        if fault == "hold" and step >= int(fault_step) and attempt.number == 1:
            continue
        step += 1
        broken = fault == "nan" and step == int(fault_step)
        values = {"loss": math.nan if broken else 10.0 / step, "loss_ce": 9.0 / step}
        progress = {"step": step, "total_steps": total, "epoch": step / total, "eta_s": 1.0, "tokens_per_s": 100.0, "step_time_s": 0.01}
        journal.append(Kind.METRICS, step=step, epoch=step / total, values=values, progress=progress)
        if broken:
            journal.append(Kind.FAILED, step=step, reason="nonfinite_loss", detail=f"the loss of step {step} is not a finite number")
            return 1
        if fault == "always_full" and step == int(fault_step):
            journal.append(Kind.FAILED, step=step, reason="disk_full", detail="No space left on device")
            return 1
        if step == int(fault_step) and attempt.number == 1:
            if fault == "crash":
                return 3
            if fault == "hang":
                time.sleep(3600)
            if fault == "doze":
                time.sleep(6)
            if fault == "full":
                journal.append(Kind.FAILED, reason="disk_full", detail="OSError: [Errno 28] No space left on device")
                return 1
            if fault == "mumble":
                journal.append(Kind.FAILED, step=step)  # says neither why nor what
                return 1
            if fault == "error":
                journal.append(Kind.FAILED, reason="worker_error", detail="ValueError: planted")
                return 1
            if fault == "child":
                command = [sys.executable, "-c", "import time; time.sleep(3600)", str(attempt.path)]
                subprocess.Popen(command, start_new_session=True)
    save()
    journal.append(Kind.FINISHED, step=step)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(EXIT_DISK_FULL)
