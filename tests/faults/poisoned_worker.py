"""The real worker, with a loss that stops being a number at its sixth batch."""

import math
import sys

from torch import Tensor

from cognate import worker
from cognate.model import Cognate, Loss

healthy = Cognate.loss
batches = 0


def poisoned(model: Cognate, *arguments: Tensor, **options: bool) -> Loss:
    global batches
    batches += 1
    result = healthy(model, *arguments, **options)
    if batches == 6:
        object.__setattr__(result, "loss", result.loss * math.nan)
    return result


Cognate.loss = poisoned  # type: ignore[method-assign]
sys.exit(worker.main())
