"""The real transformers and safetensors load what was averaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import twins
from checkpoints.formats import made
from lawa.offline import plan
from offline import engine
from offline.engine import carry_out, draws, planned, same, write


@pytest.mark.parametrize("size", [10**9, 3000])
@pytest.mark.parametrize("kind", ["neox", "llama", "tied llama", "tied gpt2"])
def test_transformers_loads_what_was_averaged(tmp_path: Path, kind: str, size: int) -> None:
    """One file and shards; tied weights stay tied, and the logits are those of a model given the twin's weights."""
    model = made.MODELS[kind]()
    told, catalogs = [], []
    for step in range(3):
        made.drawn(model)
        model.save_pretrained(tmp_path / f"step{step}", max_shard_size=size * (1 + step))
        told.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        catalogs.append(engine.read(tmp_path / f"step{step}"))
    work = planned(catalogs, shard_bytes=size)
    carry_out(work, tmp_path / "out")
    output = tmp_path / "out" / "output0"
    for file in (tmp_path / "step2").glob("*config.json"):
        shutil.copy(file, output)
    if (index := plan.index_json(work)) is not None:
        (output / "model.safetensors.index.json").write_text(index)
    assert (len(work.files) > 1) == (size == 3000)
    again, report = type(model).from_pretrained(output, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in again.state_dict().items():
        expected = twins.uniform([twins.array(state[name]) for state in told])
        assert twins.same_bits(tensor, expected), name
    if kind.startswith("tied"):
        assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    means = {name: torch.from_numpy(twins.uniform([twins.array(state[name]) for state in told])) for name in told[0]}
    model.load_state_dict(means)
    tokens = torch.arange(6)[None]
    assert torch.equal(model.eval()(tokens).logits, again(tokens).logits)


def test_the_bytes_are_those_that_safetensors_itself_would_read_and_write(tmp_path: Path) -> None:
    told = [
        {"w": draws((17, 19), torch.bfloat16, step), "e": torch.ones(0, 4), "s": torch.tensor(1.0)} for step in range(2)
    ]
    catalogs = [write(tmp_path / f"step{number}", state) for number, state in enumerate(told)]
    (found,) = carry_out(planned(catalogs), tmp_path / "out")
    save_file(found, tmp_path / "again.safetensors", {"format": "pt"})
    ours = (tmp_path / "out" / "output0" / "model.safetensors").stat().st_size
    assert ours == (tmp_path / "again.safetensors").stat().st_size


@pytest.mark.parametrize("newest", [".bin", "safetensors"])
def test_tied_weights_under_both_names_in_bin_files_and_one_in_safetensors(tmp_path: Path, newest: str) -> None:
    model = made.gpt2()
    told, kinds = [], [".bin", "safetensors", ".bin", newest]
    for step, kind in enumerate(kinds):
        made.drawn(model)
        folder = tmp_path / f"step{step}"
        made.save_bin(folder, model) if kind == ".bin" else model.save_pretrained(folder)
        told.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    catalogs = [engine.read(tmp_path / f"step{step}") for step in range(4)]
    assert [len({"lm_head.weight", "transformer.wte.weight"} & one.tensors.keys()) for one in catalogs] == [
        2 if kind == ".bin" else 1 for kind in kinds
    ]
    (found,) = carry_out(planned(catalogs), tmp_path / "out")
    assert len({"lm_head.weight", "transformer.wte.weight"} & found.keys()) == 1
    for name, tensor in found.items():
        assert same(tensor, twins.uniform([twins.array(state[name]) for state in told])), name
    shutil.copy(tmp_path / "step3" / "config.json", tmp_path / "out" / "output0")
    again = type(model).from_pretrained(tmp_path / "out" / "output0")
    assert again.transformer.wte.weight is again.lm_head.weight
    assert same(again.lm_head.weight, twins.uniform([twins.array(state["lm_head.weight"]) for state in told]))
