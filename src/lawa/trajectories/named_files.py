"""safetensors files that are laid out first and filled piece by piece: no tensor of them is in memory as a whole."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lawa.averaging.cost import readable
from lawa.checkpoints.formats.safetensors import header_bytes
from lawa.disk import reserve
from lawa.errors import LawaError

_METADATA = {"format": "pt"}  # as transformers writes it


def lay_out(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Make `file` with fp32 tensors of these shapes, all zero; the tensors, as maps of it.

    What is written into them is in the file. Its blocks are reserved first: LawaError where the disk has no room.
    """
    begin, offsets = header_bytes([(name, "float32", shape) for name, shape in shapes.items()], _METADATA)
    size = len(begin) + sum(math.prod(shape) for shape in shapes.values()) * torch.float32.itemsize
    with file.open("w+b") as opened:
        opened.write(begin)
        opened.flush()
        try:
            reserve(opened.fileno(), size)
        except OSError as full:
            raise LawaError(
                f"{file.parent} has no room for the {readable(size)} of {file.name} ({full.strerror}); free some, or "
                "name another folder"
            ) from None
        whole = torch.frombuffer(mmap.mmap(opened.fileno(), size), dtype=torch.uint8)
    return {
        name: whole[offsets[name] :][: math.prod(shape) * torch.float32.itemsize].view(torch.float32).view(shape)
        for name, shape in shapes.items()
    }
