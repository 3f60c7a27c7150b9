"""`lawa average` of one checkpoint of a sharded run, and its final model: transformers reads what was trained."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lawa.checkpoints.publish import verify
from lawa.cli import main
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.settings import build, merge
from pretrain.driving import quiet
from twins import same_bits

GPT2 = {"architecture": "gpt2", "overrides": {"hidden_size": 16, "n_layer": 1, "n_head": 2}}


@pytest.fixture(scope="module", params=[None, GPT2], ids=["gpt_neox", "gpt2"])
def run(request, settings, tmp_path_factory):
    """Sharded in one process, replaced at its last update: `final` is the last average."""
    directory = tmp_path_factory.mktemp("sharded") / "run"
    overlay = {"training": {"sharding": "fsdp2"}, "averaging": {"mode": "replace", "replace_with": "lawa"}}
    if request.param is not None:
        settings = {**settings, "model": request.param}
    runs.start(build(Config, merge(settings, overlay)), directory, console=quiet())
    return directory


def exported(run, tmp_path, what, capsys):
    assert main(["average", str(run / what), "--output", str(tmp_path / "out"), "--json"]) == 0
    shown = capsys.readouterr()
    [made] = json.loads(shown.out)["averages"]
    assert (made["path"], made["inputs"]) == (str(tmp_path / "out"), [str(run / what)])
    assert "one input: the average is" in shown.err
    verify(tmp_path / "out")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)


def test_an_exported_average_is_the_final_model_to_the_bit(run, tmp_path, capsys):
    model = exported(run, tmp_path, "averages/lawa/step00000012", capsys)
    final = AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32)
    expected = final.state_dict()
    assert all(same_bits(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(run / "final/model.safetensors").keys()
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    [average] = json.loads((tmp_path / "out" / "provenance.json").read_text())["inputs"]
    assert (average["label"], average["step"], average["format"]) == (
        str(run / "averages/lawa/step00000012"),
        12,
        "dcp",
    )
    assert average["made_of"]["snapshots"] == [8, 10, 12]


def test_the_files_are_what_an_unsharded_run_writes(run, settings, tmp_path, capsys):
    model = exported(run, tmp_path, "checkpoints/step00000012", capsys)
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == names
    for config in (tmp_path / "out" / "config.json", run / "final" / "config.json"):
        assert json.loads(config.read_text())["architectures"] == [type(model).__name__]
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_the_average_of_a_sharded_runs_checkpoints_is_its_own(run, tmp_path, capsys):
    """The loop's window of 3 every 2 updates, at update 12: its bits, from the checkpoints on disk."""
    command = ["average", str(run), "--window", "3", "--output", str(tmp_path / "out"), "--verify"]
    assert main(command) == 0
    capsys.readouterr()
    loops, ours = load_file(run / "final" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert loops.keys() == ours.keys()
    assert all(same_bits(tensor, loops[name]) for name, tensor in ours.items())


def test_help_loads_no_torch():
    code = "import sys\nfrom lawa.cli import main\ntry:\n main(['average','--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
