"""The fake worker on a clock that is set a day forward or back every now and then."""

import random
import sys
import time

from tests import fake_worker

true_time, draw, offset = time.time, random.Random(13), 0.0


def jumping() -> float:
    global offset
    if draw.random() < 0.05:
        offset = draw.uniform(-86_400, 86_400)
    return true_time() + offset


time.time = jumping
sys.exit(fake_worker.main())
