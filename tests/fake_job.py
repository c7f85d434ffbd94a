"""A job without a model: speaks the files of the real ones, in milliseconds, and does what its specification says.

{"result": {...}}                   succeeds with it; an evaluation, which nobody tells so, with a made-up one
{"fail": [reason, sentence]}        fails with a reason
{"crash": code}                     leaves without a word
{"sleep_s": seconds}                first says "sleeping" and sleeps
"""

import os
import sys
import time
from pathlib import Path

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


def main() -> int:
    job = JobDir(Path(sys.argv[1]))
    kind, spec = job.asked()
    if "sleep_s" in spec:
        job.say("sleeping", 0.5)
        time.sleep(spec["sleep_s"])
    if "crash" in spec:
        return int(spec["crash"])
    if "fail" in spec:
        job.fail(*spec["fail"])
        return 1
    told = {"environment": sorted(os.environ), "device": os.environ["COGNATE_DEVICE"]} if spec.get("tell") else {}
    job.succeed(spec.get("result", EVALUATION if kind == "evaluation" else {}) | told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
