"""Files of torch.save: byte ranges without loading, whole where there are none, and no pickle that runs anything."""

import argparse
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.formats.made import check_holds, gpt2, read
from lawa.checkpoints.formats import look
from lawa.errors import LawaError


class Hostile:
    def __init__(self, done):
        self.done = done

    def __reduce__(self):
        return os.mkdir, (str(self.done),)


def odd():
    """Every kind of tensor that has a byte range of its own."""
    flat = torch.randn(10)
    return {
        "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "flags": torch.tensor([True, False]),
        "half": torch.randn(3).half(), "brain": torch.randn(5).bfloat16(), "double": torch.randn(2).double(),
        "ids": torch.arange(4), "bytes": torch.arange(3, dtype=torch.uint8),
        "eight": torch.ones(3).to(torch.float8_e4m3fn), "left": flat[:4], "next": flat[4:8], "across": flat[2:6],
        "right": flat[4:].view(2, 3), "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }  # fmt: skip


@pytest.mark.parametrize("wrapped", [None, "model", "state_dict", "module", "model_state_dict"])
def test_a_state_dict_is_read_in_place_bare_or_wrapped(tmp_path, wrapped):
    state = odd()
    beside = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.0),
    }
    torch.save({wrapped: state, **beside} if wrapped else state, tmp_path / "ckpt.pt")
    assert not look(tmp_path / "ckpt.pt").whole
    found = read(tmp_path / "ckpt.pt", tmp_path)
    check_holds(found, state)
    assert (found.format, found.directory) == ("torch", None)
    assert {stored.file for stored in found.tensors.values()} == {tmp_path / "ckpt.pt"}


@pytest.mark.parametrize("wrapped", [None, "model"])
def test_a_file_older_than_torch_1_6_is_loaded_whole(tmp_path, wrapped):
    state = {**odd(), "tied": torch.ones(3)}
    del state["eight"]  # such files know no eight-bit floats
    state["again"] = state["tied"]
    saved = {wrapped: state, "step": 3} if wrapped else state
    torch.save(saved, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert look(tmp_path / "old.bin").whole
    found = read(tmp_path / "old.bin", tmp_path)
    check_holds(found, state)
    assert found.tensors["again"] == found.tensors["tied"]
    assert len(set(found.tensors.values())) == len(state) - 1


@pytest.mark.parametrize("state", [
    {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2)},
    {"a": torch.ones(1).expand(3), "b": torch.ones(2)},
    {"a": torch.arange(6.0)[::2], "b": torch.ones(2)},
])  # fmt: skip
def test_tensors_that_do_not_lie_in_order_are_loaded_whole(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    assert look(tmp_path / "a.pt").whole
    check_holds(read(tmp_path / "a.pt", tmp_path), state)


@pytest.mark.parametrize("aligned", [True, False])
def test_an_archive_packed_anew_has_the_same_tensors(tmp_path, aligned):
    """Compressed or in another order: torch's own reckoning of offsets is wrong then, and is not believed."""
    torch.save(odd(), tmp_path / "a.pt")
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / "a.pt") as before, zipfile.ZipFile(tmp_path / "b.pt", "w", kind) as after:
            for entry in reversed(before.infolist()):
                if aligned or not entry.filename.endswith(("format_version", "storage_alignment")):
                    after.writestr(entry.filename, before.read(entry))
        check_holds(read(tmp_path / "b.pt", tmp_path), torch.load(tmp_path / "a.pt", weights_only=True))


def test_the_other_byte_order_is_turned_around(tmp_path, monkeypatch):
    state = {"a": torch.arange(3.0)}
    torch.save(state, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as before, zipfile.ZipFile(tmp_path / "b.pt", "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            if entry.filename.endswith("byteorder"):
                content = b"big"
            if entry.filename.endswith("data/0"):
                content = state["a"].numpy().astype(">f4").tobytes()
            after.writestr(entry.filename, content)
    check_holds(read(tmp_path / "b.pt", tmp_path), state)


def test_tensors_of_a_gpu_are_read_without_one(tmp_path, monkeypatch):
    state = {"a": torch.arange(3.0)}
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(state, tmp_path / "a.pt")
        torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert b"cuda:0" in (tmp_path / "a.pt").read_bytes()
    for file in ("a.pt", "old.pt"):
        check_holds(read(tmp_path / file, tmp_path), state)


def test_nothing_is_loaded_to_find_the_places(tmp_path, monkeypatch):
    """The values are overwritten by nonsense that no reader of values would survive; and memory stays free."""
    torch.save({"a": torch.ones(1 << 22)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch._C.PyTorchFileReader, "get_storage_from_record", None)
    assert read(tmp_path / "a.pt", tmp_path).tensors["a"].nbytes == 1 << 24


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_and_not_run(tmp_path, zipped):
    done = tmp_path / "done"
    for thing, name in ((Hostile(done), "mkdir"), (argparse.Namespace(a=1), "argparse.Namespace"), (gpt2(), "GPT2")):
        torch.save({"model": {"a": torch.ones(2)}, "more": thing}, tmp_path / "a.bin",
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        with pytest.raises(LawaError, match=rf"a\.bin holds \S*{name}\S*, which only a pickle that may run anything"):
            read(tmp_path / "a.bin", tmp_path)
    assert not done.exists()
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Hostile(done)))
    with pytest.raises(LawaError, match=r"neither safetensors nor of torch\.save"):
        read(tmp_path / "b.bin", tmp_path)
    assert not done.exists()


@pytest.mark.parametrize(("saved", "held"), [
    ([torch.ones(2)], "no table"), ({}, "a table of "), ({"epoch": 1, "loss": 2.0}, "a table of 'epoch', 'loss'"),
    ({"net": {"a": torch.ones(1)}, "step": torch.tensor(3)}, "a table of 'net', 'step'"),
    ({0: torch.ones(2)}, "a table of 0"),
])  # fmt: skip
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, saved, held):
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(LawaError, match=rf"a\.pt holds {held}, where a state dict, bare or under 'model'"):
        look(tmp_path / "a.pt")


@pytest.mark.parametrize(("tensor", "kind"), [
    (torch.ones(2, dtype=torch.complex64), "complex64"), (torch.eye(2).to_sparse(), "torch.sparse_coo"),
])  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_range_of_numbers_is_refused(tmp_path, tensor, kind, zipped):
    torch.save({"a": tensor}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LawaError, match=f"tensor 'a' is {kind}, which can neither be averaged nor kept"):
        read(tmp_path / "a.pt", tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_is_named(tmp_path, zipped):
    torch.save({"a": torch.ones(3000), "b": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    size = (tmp_path / "a.pt").stat().st_size
    for left in (size - 1, size - 100, size // 2, 16, 3, 0):
        shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
        os.truncate(tmp_path / "b.pt", left)
        with pytest.raises(LawaError, match=r"b\.pt .*(cut off|damaged)"):
            read(tmp_path / "b.pt", tmp_path)


def test_a_tensor_longer_than_what_is_stored_of_it_is_refused(tmp_path):
    """Its pickle lies: the next tensor's bytes would be read as its own."""
    torch.save({"a": torch.ones(10)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as before, zipfile.ZipFile(tmp_path / "b.pt", "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(b"K\n") == 2, "the storage's elements and the tensor's"
                content = content.replace(b"K\n", b"K\x0b")
            if not entry.filename.endswith(("format_version", "storage_alignment")):
                after.writestr(entry.filename, content)
    with pytest.raises(LawaError, match="tensor 'a' is longer than what is stored of it"):
        read(tmp_path / "b.pt", tmp_path)


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: argparse.Namespace(free=11))
    with pytest.raises(LawaError, match=r"scratch0 has 0\.0 GB of room, and the tensors of .*a\.pt need 0\.0 GB there"):
        read(tmp_path / "a.pt", tmp_path)
    assert not list((tmp_path / "scratch0").iterdir())


def test_the_batches_that_are_written_are_bounded(tmp_path, monkeypatch):
    from lawa.checkpoints.formats import spool

    monkeypatch.setattr(spool, "_BATCH", 20)
    state = {"a": torch.randn(4), "b": torch.randn(1), "c": torch.randn(30), "d": torch.randn(2), "e": torch.empty(0)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    check_holds(read(tmp_path / "a.pt", tmp_path), state)
    assert len(list(tmp_path.glob("scratch0/*"))) == 3


def test_one_safetensors_file(tmp_path):
    state = {"a": torch.randn(3), "b": torch.randn(2, 2).bfloat16()}
    (tmp_path / "config.json").write_text("{}")
    for name in ("one.safetensors", "no-suffix"):
        save_file(state, tmp_path / name, metadata={"step": "3"})
        found = read(tmp_path / name, tmp_path)
        check_holds(found, state)
        assert (found.format, found.directory, found.metadata) == ("safetensors", tmp_path, {"step": "3"})


def test_what_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(LawaError, match=r"nowhere does not exist; name a checkpoint"):
        look(tmp_path / "nowhere")
    with pytest.raises(LawaError, match=r"holds no checkpoint that is known here .*; it holds nothing$"):
        look(tmp_path)
    for name in "abcdefg":
        (tmp_path / name).write_text("text")
    with pytest.raises(LawaError, match=r"it holds a, b, c, d, e, …$"):
        look(tmp_path)
    with pytest.raises(LawaError, match=r"a is neither safetensors nor of torch\.save"):
        look(tmp_path / "a")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(LawaError, match=r"what Git LFS keeps in its place, .*: git lfs pull"):
        look(tmp_path)
    (tmp_path / "model.safetensors").write_text("abc")
    with pytest.raises(LawaError, match="has 3 bytes, which is no safetensors file"):
        read(tmp_path, tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(LawaError, match="holds no tensors"):
        read(tmp_path, tmp_path)
