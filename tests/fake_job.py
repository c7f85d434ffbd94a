"""A job without a model: speaks the files of the real ones, in milliseconds, and does what its specification says.

{"result": {...}}                   succeeds with it; else with a made-up one of its kind
{"fail": [reason, sentence]}        fails with a reason
{"crash": code}                     leaves without a word
{"sleep_s": seconds}                first says "sleeping" and sleeps
{"mutter_s": seconds}               first prints for so long
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cognate.jobdir import JobDir

EVALUATION = {
    "checkpoint": {"name": "step", "model_sha256": "", "tokenizer_sha256": ""},
    "limit": None,
    "datasets": {
        "svamp": {
            "rows": "4 of the 300 test rows",
            "figure": "exact_match",
            "figures": {"exact_match": {"value": 0.25, "n": 4, "low": 0.046, "high": 0.699}},
            "chance": 0.0,
            "untrained": {"exact_match": {"value": 0.0, "n": 4}},
            "targets": {"exact_match": [0.3, 0.4]},
            "forecasts": {"exact_match": [0.01, 0.03]},
            "met": {"exact_match": False},
            "absent": {},
            "remarks": [],
        }
    },
    "absent": {"gsm8k": "it is not in the data folder"},
    "warnings": [],
}
DIVERSITY = {
    "members": [
        {
            "name": f"run_{preset}",
            "preset": preset,
            "halting_steps": steps,
            "ltm_usage": None,
            "surprise_rate": 0.5,
            "ms_per_token": {"median": 1.5},
            "cross_entropy": 3.25,
        }
        for preset, steps in (("reasoning", 3.0), ("memory", 2.5), ("speed", 1.5))
    ],
    "pairs": [{"of": ["run_reasoning", "run_memory"], "agreement": 0.75, "weights": {"relative_l2": 1.25, "cosine": 0.5}}],
    "metrics": {"diversity_avg_halting_steps": 1.5, "diversity_ltm_usage": None, "diversity_inference_time_ms": 0.25},
    "required_order": {"rule": "reasoning >= memory > speed", "holds": True},
}


def made_up(job: JobDir, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    if kind == "handoff":
        (job.path / "archive.tar").write_bytes(b"an archive")
        models = [{"run": run_id, "best": {"step": step}} for run_id, step in spec["steps"].items()]
        return {"file": "archive.tar", "sha256": "ab" * 32, "manifest": {"models": models}, "as_of": spec["as_of"]}
    if kind == "training_report":
        for name, text in (("report.html", "<!doctype html>"), ("report.md", "# Report")):
            (job.path / name).write_text(f"{text} {', '.join(spec['names'].values())}")
        return {"files": ["report.html", "report.md"], "as_of": spec["as_of"]}
    if kind == "readiness":
        return {**json.loads((Path(__file__).parent / "report" / "example.json").read_text()), "preset": spec["config"]["preset"]}
    return {"evaluation": EVALUATION, "diversity": DIVERSITY}.get(kind, {})


def main() -> int:
    job = JobDir(Path(sys.argv[1]))
    kind, spec = job.asked()
    if "sleep_s" in spec:
        job.say("sleeping", 0.5)
        time.sleep(spec["sleep_s"])
    until = time.monotonic() + spec.get("mutter_s", 0.0)
    while time.monotonic() < until:
        print("still at it", flush=True)
        time.sleep(0.05)
    if "crash" in spec:
        return int(spec["crash"])
    if "fail" in spec:
        job.fail(*spec["fail"])
        return 1
    told = {"environment": sorted(os.environ), "device": os.environ["COGNATE_DEVICE"]} if spec.get("tell") else {}
    job.succeed((spec["result"] if "result" in spec else made_up(job, kind, spec)) | told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
