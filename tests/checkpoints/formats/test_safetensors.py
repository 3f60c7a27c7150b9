"""read_header against the real safetensors library, on files that it writes."""

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from checkpoints.formats.made import bits, value
from lawa.checkpoints.catalog import ITEMSIZE
from lawa.checkpoints.formats.safetensors import header_bytes, read_header
from lawa.errors import LawaError

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(ITEMSIZE)), SHAPES),
    max_size=5,
)


def random(dtype, shape):
    size = torch.Size(shape).numel() * ITEMSIZE[dtype]
    drawn = torch.randint(0, 2 if dtype == "bool" else 256, (size,), dtype=torch.uint8)
    return drawn.view(getattr(torch, dtype)).reshape(shape) if size else torch.empty(shape, dtype=getattr(torch, dtype))


@settings(max_examples=150, deadline=None)
@given(TENSORS, st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
def test_what_the_library_writes_is_read_and_the_other_way_round(tmp_path_factory, described, metadata):
    try:
        json.dumps([*metadata.items()], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        metadata = {}
    file = tmp_path_factory.mktemp("files") / "theirs.safetensors"
    tensors = {name: random(dtype, shape) for name, (dtype, shape) in described.items()}
    save_file(tensors, file, metadata=metadata or None)
    header = read_header(file)
    assert header.metadata == metadata
    assert {name: (one.dtype, one.shape) for name, one in header.tensors.items()} == described
    assert all(torch.equal(bits(value(one)), bits(tensors[name])) for name, one in header.tensors.items())
    offsets = [one.offset for one in header.tensors.values()]
    assert offsets == sorted(offsets), "in the order of their bytes"

    own = file.with_name("ours.safetensors")
    begin, places = header_bytes([(name, *one) for name, one in described.items()], metadata)
    with own.open("wb") as opened:
        opened.write(begin)
        opened.truncate(len(begin) + sum(tensor.nbytes for tensor in tensors.values()))
        for name, tensor in tensors.items():
            opened.seek(places[name])
            opened.write(bits(tensor).numpy().tobytes())
    loaded = load_file(own)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(bits(loaded[name]), bits(tensor)) for name, tensor in tensors.items())
    with safe_open(own, framework="pt") as read:
        assert (read.metadata() or {}) == metadata


def write(file, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "no object": (b"[]", "no JSON object"), "no JSON": (b"{", "no safetensors header"),
    "empty": (b"", "no safetensors"), "deep": (b"[" * 100_000, "no safetensors header"),
    "no text": (b"\xff\xfe{}", "no safetensors header"),
    "twice": (b'{"a": 1, "a": 1}', "comes twice"), "a list": ({"a": []}, "tensor 'a' is described as"),
    "no dtype": ({"a": {"shape": [], "data_offsets": [0, 4]}}, "is described as"),
    "other dtype": ({"a": entry("F4")}, "has dtype 'F4', which this version does not know"),
    "negative": ({"a": entry(shape=[-2], offsets=[8, 0])}, "is described as"),
    "fraction": ({"a": entry(shape=[2.0])}, "is described as"),
    "truth": ({"a": entry(shape=[True])}, "is described as"),
    "backwards": ({"a": entry(offsets=[8, 0])}, "takes 8 bytes, and its range has -8"),
    "short": ({"a": entry(offsets=[0, 4])}, "takes 8 bytes, and its range has 4"),
    "huge": ({"a": entry(shape=[2**62, 2**62], offsets=[0, 8])}, "its range has 8"),
    "beyond": ({"a": entry(offsets=[12, 20])}, "it was cut off: fetch it again"),
    "shared": ({"a": entry(), "b": entry(offsets=[4, 12])}, "tensors 'a' and 'b' share bytes"),
    "the same": ({"a": entry(), "b": entry()}, "tensors 'a' and 'b' share bytes"),
    "a table for a dtype": ({"a": entry(dtype={})}, "tensor 'a'"),
    "a list for a dtype": ({"a": entry([])}, "tensor 'a'"),
    "no list": ({"a": entry(shape={}, offsets=[0, 4])}, "is described as"),
    "no list either": ({"a": entry(shape="", offsets=[0, 4])}, "is described as"),
    "long": ({"a": entry(shape=[2**62] * 500)}, "tensor 'a'"),
    "longer": ({"a": entry(shape=[2**62] * 20_000)}, "tensor 'a'"),
    "half a letter": ({"\ud800": entry()}, "no safetensors header"),
    "half a letter in it": ({"a": entry(dtype="\ud800")}, "damaged|does not know"),
    "no entry": ({"a": "\ud800"}, "described"),
    "metadata": ({"__metadata__": {"a": 1}}, "__metadata__ is no table of texts"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
def test_a_header_that_lies_is_refused_as_the_library_refuses_it(tmp_path, kind):
    header, message = LIES[kind]
    file = write(tmp_path / "a.safetensors", header)
    with pytest.raises(LawaError, match=f"{file}.*{message}") as refused:
        read_header(file)
    assert str(refused.value).encode(), "it can be printed"
    with pytest.raises((SafetensorError, OSError)), safe_open(file, framework="pt"):
        pass


@pytest.mark.parametrize("size", [0, 3, 7, 8, 9, 50, -1])
def test_a_file_cut_off_is_named(tmp_path, size):
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:size])
    with pytest.raises(LawaError, match=r"a\.safetensors .*(cut off|damaged)"):
        read_header(tmp_path / "a.safetensors")


def test_lengths_that_no_header_has(tmp_path):
    for length in (2**63, 2**64 - 1, 100_000_001):
        (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(LawaError, match="no safetensors file"):
            read_header(tmp_path / "a")
    with pytest.raises(LawaError, match="cannot be read"):
        read_header(tmp_path / "nowhere")
