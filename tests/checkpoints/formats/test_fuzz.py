"""Thousands of mutated headers and indexes: ranges inside the files, or a LawaError, and nothing else."""

import itertools
import json
import random
import shutil
import struct
import time

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from checkpoints.formats.made import llama, save_bin
from lawa.checkpoints.formats import catalog
from lawa.checkpoints.formats.safetensors import read_header
from lawa.errors import LawaError

NUMBERS = [-1, 0, 1, 7, 8, 2**31, 2**32, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 10**30, 0.5, 1e308, True, None]
THINGS = [*NUMBERS, "", "F32", "BF16", "\ud800", "\x00", "../../etc/passwd", "/etc/passwd", "..", ".", "a" * 5000,
          [], {}, [[]], [0, 4], {"a": 1}, "__metadata__"]  # fmt: skip


STRICTER = ("does not know", "comes twice", str(2**63), str(2**64 - 1))  # dtypes; names; dimensions that torch has not


def within(draw, thing):
    """A thing like it, changed in one place."""
    if isinstance(thing, dict) and thing and draw.random() < 0.9:
        key = draw.choice(list(thing))
        changed = dict(thing)
        how = draw.random()
        if how < 0.1:
            del changed[key]
        elif how < 0.25:
            changed[str(draw.choice(THINGS))] = changed.pop(key)
        else:
            changed[key] = within(draw, thing[key])
        return changed
    if isinstance(thing, list) and thing and draw.random() < 0.8:
        at = draw.randrange(len(thing))
        return [*thing[:at], *([] if draw.random() < 0.1 else [within(draw, thing[at])]), *thing[at + 1 :]]
    if type(thing) is int and draw.random() < 0.5:
        return thing + draw.choice([-8, -4, -1, 1, 4, 8])
    return draw.choice(THINGS)


def bytes_of(draw, content, start, end):
    """Some bytes between start and end changed, removed or doubled."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(start, min(end, len(changed)))
        how = draw.random()
        if how < 0.6:
            changed[at] = (
                draw.choice(b'{}[]",:0123456789-eE.\\\x00\xff') if draw.random() < 0.7 else draw.randrange(256)
            )
        elif how < 0.8:
            del changed[at : at + draw.choice([1, 2, 9, 60])]
        else:
            changed[at:at] = changed[at : at + draw.choice([1, 3, 30])]
        if len(changed) <= start:
            break
    return bytes(changed)


def attempt(read):
    """(what it gives, None) or (None, its LawaError as it is printed), within a second."""
    began = time.monotonic()
    try:
        return read(), None
    except LawaError as refused:
        return None, str(refused).encode().decode()
    finally:
        assert time.monotonic() - began < 1


def check(found, directory):
    """Ranges inside files of the directory, which share no byte."""
    sizes = {}
    for stored in found:
        assert stored.file.resolve().is_relative_to(directory), stored
        size = sizes.setdefault(stored.file, stored.file.stat().st_size)
        assert 0 <= stored.offset <= stored.offset + stored.nbytes <= size, stored
    ordered = sorted({(stored.file, stored.offset, stored.nbytes) for stored in found if stored.nbytes})
    for (file, offset, nbytes), (other, after, _) in itertools.pairwise(ordered):
        assert file != other or offset + nbytes <= after


@pytest.mark.slow
def test_mutated_headers(tmp_path):
    file = tmp_path / "model.safetensors"
    tensors = {"a": torch.ones(3, 2), "b": torch.ones(5).bfloat16(), "c.d": torch.ones(()), "e": torch.ones(0, 4)}
    save_file(tensors, file, metadata={"format": "pt"})
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    draw, accepted, refused = random.Random(0), 0, 0
    for turn in range(12_000):
        if turn % 2:
            text = json.dumps(within(draw, header if draw.random() < 0.7 else within(draw, header))).encode()
            changed = struct.pack("<Q", len(text)) + text + data
        else:
            changed = bytes_of(draw, content, 0 if draw.random() < 0.2 else 8, 8 + length)
        file.write_bytes(changed)
        found, refusal = attempt(lambda: read_header(file))
        if found:
            accepted += 1
            check(found.tensors.values(), tmp_path)
        else:
            refused += 1
            assert str(file) in refusal
        agrees_with_the_library(file, found, refusal)
    assert min(accepted, refused) > 100


def agrees_with_the_library(file, found, refusal):
    """What the library accepts is read, and alike."""
    try:
        with safe_open(file, framework="pt") as theirs:
            shapes = {name: tuple(theirs.get_slice(name).get_shape()) for name in theirs.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError):
        return
    if found is None:
        assert any(reason in refusal for reason in STRICTER), refusal
        return
    assert {name: one.shape for name, one in found.tensors.items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_mutated_indexes(tmp_path, kind):
    directory = tmp_path / "model"
    if kind == "bin":
        save_bin(directory, llama(), 3000)
    else:
        llama().save_pretrained(directory, max_shard_size=3000)
    index = next(directory.glob("*.index.json"))
    content = index.read_bytes()
    listed = json.loads(content)
    shutil.copy(directory / next(iter(listed["weight_map"].values())), tmp_path / "outside")
    THINGS.append("../outside")
    draw, accepted, refused = random.Random(1), 0, 0
    for turn in range(6_000 if kind == "safetensors" else 500):
        if turn % 2:
            changed = json.dumps(within(draw, listed if draw.random() < 0.5 else within(draw, listed))).encode()
        else:
            changed = bytes_of(draw, content, 0, len(content))
        index.write_bytes(changed)
        found, _ = attempt(lambda: catalog(directory, scratch=lambda: pytest.fail("nothing to write")))
        if found:
            accepted += 1
            check(found.tensors.values(), directory)
        else:
            refused += 1
    assert min(accepted, refused) > 20


@pytest.mark.slow
def test_mutated_files_of_torch(tmp_path):
    """Its pickle and its directory: what torch's own reader takes for a file."""
    state = {"model": {"a": torch.ones(3, 2), "b": torch.ones(5).bfloat16(), "c": torch.ones(1)}, "step": 3}
    file = tmp_path / "a.pt"
    torch.save(state, file)
    content = file.read_bytes()
    draw, accepted, refused = random.Random(2), 0, 0
    for turn in range(3_000):
        file.write_bytes(bytes_of(draw, content, 4, 700 if turn % 2 else len(content)))
        scratch = tmp_path / str(turn)

        def made(scratch=scratch):
            scratch.mkdir()
            return scratch

        found, _ = attempt(lambda made=made: catalog(file, scratch=made))
        if found:
            accepted += 1
            for stored in found.tensors.values():
                assert stored.offset + stored.nbytes <= stored.file.stat().st_size
        else:
            refused += 1
        shutil.rmtree(scratch, ignore_errors=True)
    assert min(accepted, refused) > 20
