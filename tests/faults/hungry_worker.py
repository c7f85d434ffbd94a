"""The real worker on a device whose memory suffices for MOST rows at once from the third batch on: `hungry_worker.py MOST ATTEMPT_DIR`."""

import sys
from typing import Any

import torch
from torch import Tensor

from cognate import worker
from cognate.model import Cognate

most = int(sys.argv.pop(1))
batches = 0


def hungry(method: Any) -> Any:
    def within_memory(model: Cognate, tokens: Tensor, *arguments: Tensor, **options: bool) -> Any:
        global batches
        batches += method is loss
        if batches > 2 and len(tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return method(model, tokens, *arguments, **options)

    return within_memory


loss = Cognate.loss
for name in ("loss", "sequence_nats", "validation_loss"):
    setattr(Cognate, name, hungry(getattr(Cognate, name)))
sys.exit(worker.main())
