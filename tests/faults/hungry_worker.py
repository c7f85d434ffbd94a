"""The real worker on a device whose memory suffices for MOST rows at once from the third batch on: `hungry_worker.py MOST ATTEMPT_DIR`.

`hungry_worker.py MOST GROUP ATTEMPT_DIR`: in a memory group (memory_group.py), of whose memory too many rows take more than it has.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cognate import worker
from cognate.model import Cognate

most = int(sys.argv.pop(1))
group = Path(sys.argv.pop(1)) if len(sys.argv) == 3 else None
if group is not None:
    (group / "cgroup.procs").write_text("0")
batches = 0


def hungry(method: Any) -> Any:
    def within_memory(model: Cognate, tokens: Tensor, *arguments: Tensor, **options: bool) -> Any:
        global batches
        batches += method is loss
        if batches > 2 and len(tokens) > most:
            if group is not None:
                torch.ones(4 << 30, dtype=torch.uint8)  # the kernel kills this process
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return method(model, tokens, *arguments, **options)

    return within_memory


loss = Cognate.loss
for name in ("loss", "sequence_nats", "validation_loss"):
    setattr(Cognate, name, hungry(getattr(Cognate, name)))
sys.exit(worker.main())
