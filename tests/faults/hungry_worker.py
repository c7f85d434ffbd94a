"""The real worker on a device whose memory suffices for MOST rows at once from the third step on: `hungry_worker.py MOST ATTEMPT_DIR`."""

import sys

import torch
from torch import Tensor

from cognate import worker
from cognate.model import Cognate, Loss

most = int(sys.argv.pop(1))
healthy = Cognate.loss
batches = 0


def hungry(model: Cognate, tokens: Tensor, *arguments: Tensor, **options: bool) -> Loss:
    global batches
    batches += 1
    if batches > 2 and len(tokens) > most:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return healthy(model, tokens, *arguments, **options)


Cognate.loss = hungry  # type: ignore[method-assign,assignment]
sys.exit(worker.main())
