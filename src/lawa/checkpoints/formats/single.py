"""One file of tensors: safetensors, or of torch.save. Which one its first bytes say. No torch unless it is needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lawa.checkpoints.formats.form import Format, Scratch, Tensors
from lawa.checkpoints.formats.safetensors import read_header
from lawa.errors import LawaError

_ZIP = b"PK\x03\x04"
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch.save began files with
_POINTER = b"version https://git-lfs"


def find(file: Path) -> Format:
    """The format of `file`; LawaError for none that is known."""
    try:
        with file.open("rb") as opened:
            first = opened.read(32)
    except OSError as unreadable:
        raise LawaError(f"{file} cannot be read ({unreadable.strerror})") from None
    if first.startswith(_POINTER):
        raise LawaError(f"{file} is what Git LFS keeps in its place, not the file; fetch it with: git lfs pull")
    if first.startswith((_ZIP, _BEFORE_ZIP)):
        from lawa.checkpoints.formats import torch_file

        return torch_file.find(file)
    if file.suffix == ".safetensors" or first[8:9] == b"{":
        return Format("safetensors", False, partial(_read, file))
    raise LawaError(f"{file} is neither safetensors nor of torch.save; it is damaged, or no file of tensors")


def _read(file: Path, scratch: Scratch) -> Tensors:
    header = read_header(file)
    return Tensors(header.tensors, header.metadata)
