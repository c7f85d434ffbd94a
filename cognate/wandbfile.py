"""Reading W&B's offline file back: what `wandb sync` would find in it.

The file is a LevelDB log of protobuf records behind a header of seven bytes; wandb 0.31 has no reader of its own in Python.

Source: https://github.com/google/leveldb/blob/main/doc/log_format.md, but for the checksum, which is a plain CRC-32;
wandb/proto/wandb_internal.proto.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32768
_HEADER = b":W&B"
_HEADER_BYTES = 7
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class DamagedFile(ValueError):
    """Not a W&B offline file, or one whose bytes have changed."""


@dataclass(frozen=True)
class Recorded:
    """steps: of the rows, in the file's order; is_finished: the file has its end."""

    steps: list[int]
    is_finished: bool


def summarize(path: Path) -> Recorded:
    steps, is_finished = [], False
    for record in records(path):
        is_finished |= record.WhichOneof("record_type") == "exit"
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
    return Recorded(steps, is_finished)


def row(record: Any) -> tuple[int, dict[str, float]] | None:
    """Step and numbers of a history record; None for any other."""
    if record.WhichOneof("record_type") != "history":
        return None
    values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    return record.history.step.num, {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def records(path: Path) -> Iterator[Any]:
    """The Records of the file, oldest first; a torn end is no error. Raises DamagedFile."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # here: only who reads a file back needs it

    gathered = b""
    for kind, chunk in _chunks(path):
        gathered = chunk if kind in (_FULL, _FIRST) else gathered + chunk
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(gathered)
            yield record


def _chunks(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        if not (block := file.read(BLOCK_BYTES)).startswith(_HEADER):
            raise DamagedFile(f"{path} is no W&B offline file")
        position, place = 0, _HEADER_BYTES
        while block:
            while place + _CHUNK.size <= len(block):
                checksum, length, kind = _CHUNK.unpack_from(block, place)
                chunk = block[place + _CHUNK.size : place + _CHUNK.size + length]
                if kind == 0 or len(chunk) < length:
                    break
                if checksum != zlib.crc32(bytes([kind]) + chunk):
                    raise DamagedFile(f"{path}: the record at byte {position + place} does not have its checksum")
                yield kind, chunk
                place += _CHUNK.size + length
            position, place = position + len(block), 0
            block = file.read(BLOCK_BYTES)
