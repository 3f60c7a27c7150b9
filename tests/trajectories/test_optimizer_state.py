"""Native checkpoints of public runs, written by literal twins of their trainers: every bit comes back by its name."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

from launching import launch
from lawa.checkpoints.formats import catalog
from lawa.checkpoints.formats.safetensors import read_header
from lawa.checkpoints.publish import verify
from lawa.errors import LawaError
from lawa.pretrain.checkpoint.whole import read_optimizer
from lawa.pretrain.optimizer import make_optimizer
from lawa.pretrain.scaler import LossScaler
from lawa.pretrain.sections.training import TrainingConfig
from lawa.trajectories.optimizer_state import convert
from trajectories import native
from trajectories.zero_written import WAYS
from twins import same_bits

UPDATE = 7
SCALER = {"scale_now": 2048.0, "hysteresis_left": 1, "update": 7, "last_overflow": 3}
LAYOUTS = ("stage1", "stage1-rigid", "stage2", "stage2-rigid", "bf16")


def checkpoint(folder: Path, model, *, scaler=None) -> Path:
    """What `lawa train` writes of a model and its Adam, with moments drawn at random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 10)
    model.save_pretrained(folder)
    state = {}
    for name, parameter in model.named_parameters():
        state[f"exp_avg.{name}"] = torch.randn_like(parameter) / 100
        state[f"exp_avg_sq.{name}"] = torch.rand_like(parameter) / 1000
        state[f"step.{name}"] = torch.tensor(float(UPDATE))
    (folder / "training").mkdir()
    save_file({name: tensor.detach() for name, tensor in state.items()}, folder / "training/optimizer.safetensors")
    (folder / "training/state.json").write_text(json.dumps({"position": {"update": UPDATE}, "scaler": scaler}))
    return folder


def neox(**settings) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, use_parallel_residual=True, **settings,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config)


def olmo2(**settings) -> Olmo2ForCausalLM:
    config = {
        "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 32, "num_key_value_heads": 2, "pad_token_id": 1, "eos_token_id": 2, **settings,
    }  # fmt: skip
    return Olmo2ForCausalLM(Olmo2Config(**config))


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("neox") / "step00000007", neox(), scaler=SCALER)


def check_same(converted: Path, ours: Path) -> None:
    """Masters, moments and counts, under the same names."""
    for found, expected in (("model", "model"), ("optimizer", "training/optimizer")):
        left, right = load_file(converted / f"{found}.safetensors"), load_file(ours / f"{expected}.safetensors")
        assert left.keys() == right.keys()
        for name in left:
            assert same_bits(left[name], right[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ranks", "models"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_every_bit_comes_back(tmp_path, ours, layout, ranks, models):
    dtype = torch.bfloat16 if layout == "bf16" else torch.float16
    native.write_neox(ours, tmp_path / "native", ranks=ranks, model_parallel=models, layout=layout, dtype=dtype)
    told = convert(tmp_path / "native", tmp_path / "into")
    check_same(tmp_path / "into", ours)
    assert (told.format, told.update, told.step, told.lr_iterations, told.config) == ("neox", 7, 7.0, 7, True)
    assert (told.skipped, told.without_state, told.apart) == (0, [], {})
    assert told.scaler == (None if layout == "bf16" else SCALER)
    assert told.loss_scale == (None if layout == "bf16" else 2048.0)


@pytest.mark.parametrize("layout", ["stage1", "stage1-rigid"])
@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("interval", [64, 1000, 4097])
def test_communication_intervals(tmp_path, ours, layout, models, interval):
    """Each of three ranks has a sub-partition of each interval; they begin and end in the middle of rows."""
    native.write_neox(ours, tmp_path / "native", ranks=3, model_parallel=models, layout=layout, interval=interval)
    convert(tmp_path / "native", tmp_path / "into")
    check_same(tmp_path / "into", ours)


def test_without_weight_decay_there_is_one_group(tmp_path, ours):
    native.write_neox(ours, tmp_path / "native", ranks=3, decay=False)
    convert(tmp_path / "native", tmp_path / "into")
    check_same(tmp_path / "into", ours)


def test_tied_embeddings(tmp_path):
    ours = checkpoint(tmp_path / "ours", neox(tie_word_embeddings=True))
    native.write_neox(ours, tmp_path / "native", model_parallel=2)
    convert(tmp_path / "native", tmp_path / "into")
    check_same(tmp_path / "into", ours)
    assert AutoConfig.from_pretrained(tmp_path / "into").tie_word_embeddings


def test_the_driver_takes_it(tmp_path, ours):
    """Its own model, optimizer and loss scaler."""
    native.write_neox(ours, tmp_path / "native", ranks=3, model_parallel=2)
    told = convert(tmp_path / "native", tmp_path / "into")
    verify(tmp_path / "into")
    assert {read_header(file).metadata["format"] for file in (tmp_path / "into").glob("*.safetensors")} == {"pt"}
    model, of = AutoModelForCausalLM.from_pretrained(tmp_path / "into", output_loading_info=True)
    assert not any(of.values()), of
    before = AutoModelForCausalLM.from_pretrained(ours)
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(model(tokens).logits, before(tokens).logits)
    optimizer = make_optimizer(model, TrainingConfig(updates=1, batch=1, lr=1e-3))
    read_optimizer(tmp_path / "into/optimizer.safetensors", model, optimizer)
    assert len(optimizer.state) == len(list(model.parameters()))
    scaler = LossScaler(torch.device("cpu"))
    scaler.load_state_dict(told.scaler)
    assert scaler.state_dict() == SCALER


def test_the_configuration(tmp_path, ours):
    native.write_neox(ours, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "yaml")
    made, before = AutoConfig.from_pretrained(tmp_path / "yaml"), AutoConfig.from_pretrained(ours)
    for name in ("rope_parameters", "intermediate_size", "use_parallel_residual", "layer_norm_eps", "hidden_act",
                 "vocab_size", "max_position_embeddings", "num_attention_heads", "tie_word_embeddings"):  # fmt: skip
        assert getattr(made, name) == getattr(before, name), name
    (tmp_path / "native/TINY.yml").rename(tmp_path / "elsewhere.yml")
    assert convert(tmp_path / "native", tmp_path / "given", config=tmp_path / "elsewhere.yml").config
    assert convert(tmp_path / "native", tmp_path / "json", config=ours / "config.json").config
    assert (tmp_path / "json/config.json").read_bytes() == (ours / "config.json").read_bytes()
    assert not convert(tmp_path / "native", tmp_path / "none").config
    assert not (tmp_path / "none/config.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos-emb": "alibi"}, "has pos-emb 'alibi', and transformers' GPTNeoX knows only 'rotary'"),
        ({"hidden-size": 32}, "has hidden-size 32, and the layer files 16"),
        ({"num-attention-heads": None}, "does not say num-attention-heads"),
        (None, "is no GPT-NeoX configuration"),
    ],
)
def test_a_configuration_that_does_not_fit(tmp_path, ours, change, said):
    native.write_neox(ours, tmp_path / "native")
    file = tmp_path / "native/TINY.yml"
    settings = {**json.loads(file.read_text()), **change} if change else []
    if change:
        settings = {name: value for name, value in settings.items() if value is not None}
    file.write_text(json.dumps(settings))
    with pytest.raises(LawaError, match=said):
        convert(tmp_path / "native", tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_skipped_updates(tmp_path, ours):
    """The schedule stands still; Adam's count, where it is not saved, has the step that DeepSpeed begins with."""
    native.write_neox(ours, tmp_path / "native", skipped=2, step=False)
    told = convert(tmp_path / "native", tmp_path / "into")
    assert (told.update, told.skipped, told.lr_iterations, told.step) == (7, 2, 5, 6.0)
    assert load_file(tmp_path / "into/optimizer.safetensors")["step.lm_head.weight"] == 6.0


def test_norms_that_drifted_apart_are_averaged_and_told(tmp_path, ours):
    native.write_neox(ours, tmp_path / "native", ranks=1, model_parallel=2)
    layer = tmp_path / "native/layer_05-model_01-model_states.pt"
    of = tmp_path / "native/zero_pp_rank_0_mp_rank_01_optim_states.pt"
    torch.save({name: tensor + 0.5 for name, tensor in torch.load(layer).items()}, layer)
    with native._deepspeed():
        saved = torch.load(of, weights_only=False)
        state = saved["optimizer_state_dict"]
        masters, adam = state["local_sub_partitions_of_fp32_groups"][1][0], state["base_optimizer_state"][1][0]
        masters[-32:] = torch.cat([tensor.float() for tensor in torch.load(layer).values()])
        adam["exp_avg"][-32:] += 1
        torch.save(saved, of)
    told = convert(tmp_path / "native", tmp_path / "into")
    name = "gpt_neox.final_layer_norm.bias"
    assert told.apart.keys() == {name, "gpt_neox.final_layer_norm.weight"}
    assert told.apart[name] == pytest.approx(0.5, abs=1e-3)
    before = load_file(ours / "training/optimizer.safetensors")[f"exp_avg.{name}"]
    after = load_file(tmp_path / "into/optimizer.safetensors")[f"exp_avg.{name}"]
    torch.testing.assert_close(after, before + 0.5)


def test_row_parallel_biases_are_summed_and_their_moments_kept(tmp_path, ours):
    """Each rank adds its own: unequal ones too."""
    native.write_neox(ours, tmp_path / "native", ranks=1, model_parallel=2)
    layer = tmp_path / "native/layer_03-model_01-model_states.pt"
    of = tmp_path / "native/zero_pp_rank_0_mp_rank_01_optim_states.pt"
    short, name = "mlp.dense_4h_to_h.bias", "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"
    tensors = torch.load(layer)
    torch.save({**tensors, short: torch.zeros(16).half()}, layer)
    with native._deepspeed():
        saved = torch.load(of, weights_only=False)
        masters = saved["optimizer_state_dict"]["local_sub_partitions_of_fp32_groups"][1][0]
        masters[-48:-32] = 0  # before the last norm's 32
        torch.save(saved, of)
    told = convert(tmp_path / "native", tmp_path / "into")
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (ours, tmp_path / "into"))
    assert torch.equal(after, before / 2)
    assert told.apart == {}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [2, 3])
def test_real_deepspeed(tmp_path, ranks):
    """Its files hold what it held itself, of every parameter."""
    pytest.importorskip("deepspeed", reason="pip install 'latest-weight-averaging[deepspeed]'")
    launch(Path(__file__).with_name("zero_written.py"), ranks, str(tmp_path), DS_ACCELERATOR="cpu")
    for way in WAYS:
        folder = tmp_path / way
        told = convert(folder / "native", folder / "into")
        masters, moments = (load_file(folder / f"{kind}.safetensors") for kind in ("model", "optimizer"))
        found = load_file(folder / "into/optimizer.safetensors")
        counts = {found.pop(name).item() for name in list(found) if name.startswith("step.")}
        assert (told.update, told.step, counts) == (3, counts.pop(), set())
        for expected, own in ((masters, load_file(folder / "into/model.safetensors")), (moments, found)):
            assert expected.keys() == own.keys(), way
            for name in expected:
                assert torch.equal(expected[name], own[name].view(expected[name].shape)), (way, name)
        assert told.step == 3.0, way


# ---- what is refused


@pytest.fixture
def here(tmp_path, ours) -> Path:
    native.write_neox(ours, tmp_path / "native", ranks=2, model_parallel=2)
    return tmp_path / "native"


def refused(here: Path, said: str) -> None:
    with pytest.raises(LawaError, match=said):
        convert(here, here.with_name("into"))
    assert [entry.name for entry in here.parent.iterdir() if "into" in entry.name] == []


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "lacks zero_pp_rank_0_mp_rank_01_optim_states.pt"),
        ("layer_03-model_01-model_states.pt", "layer_03-model_01-model_states.pt is missing; fetch the whole"),
        ("layer_03-model_0?-model_states.pt", "lacks layer_03-model_00-model_states.pt"),
        ("layer_05-model_0?-model_states.pt", "lacks the layer file of the last norm"),
        ("layer_*", "lacks GPT-NeoX's layer files"),
        ("layer_06*", "group 0 of the optimizer has weights beyond the 3[0-9]+ of the layer files"),
        ("mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt is missing"),
        ("zero_pp_rank_1*", "is one of 2 partitions, and 1 are here"),
        ("*model_01*", "layer_00-model_01-model_states.pt is missing"),
        ("zero*", "holds no optimizer state known here"),
    ],
)
def test_a_missing_file_is_named(here, gone, said):
    for file in here.glob(gone):
        file.unlink()
    refused(here, said)


def three_groups(state) -> None:
    for name in ("base_optimizer_state", "local_sub_partitions_of_fp32_groups"):
        state[name].append(state[name][0])


def change(file: Path, how) -> None:
    with native._deepspeed():
        saved = torch.load(file, weights_only=False)
        how(saved)
        torch.save(saved, file)


def test_masters_that_are_not_the_weights(here):
    """Another order, another step: nothing in the files but the weights themselves would tell."""
    layer = here / "layer_02-model_01-model_states.pt"
    tensors = torch.load(layer)
    tensors["mlp.dense_4h_to_h.weight"][3, 5] += 0.01
    torch.save(tensors, layer)
    refused(
        here, r"masters of 'gpt_neox.layers.0.mlp.dense_4h_to_h.weight' do not round to the weights in layer_02-model"
    )


def test_a_group_in_another_order(here):
    """As round_robin_gradients makes it."""

    def turn(saved):
        for one in saved["optimizer_state_dict"]["local_sub_partitions_of_fp32_groups"]:
            one[0].copy_(one[0].roll(7))

    change(here / "zero_pp_rank_1_mp_rank_00_optim_states.pt", turn)
    refused(here, r"zero_pp_rank_1_mp_rank_00_optim_states.pt: its masters of .* do not round to the weights")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda state: state["base_optimizer_state"][0][0].pop("exp_avg_sq"), r"KeyError\('exp_avg_sq'\)"),
        (lambda state: state.pop("base_optimizer_state"), r"KeyError\('base_optimizer_state'\)"),
        (lambda state: state.pop("local_sub_partitions_of_fp32_groups"), "holds no partition of ZeRO-1"),
        (three_groups, "has 3 groups of parameters, where GPT-NeoX makes 1 or 2"),
        (lambda state: state.update(partition_count=4), "is one of 4 partitions, and 2 are here"),
        (
            lambda state: state["base_optimizer_state"][1][0].update(exp_avg=torch.ones(3)),
            "exp_avg of group 1 has 3 elements where",
        ),
    ],
)  # fmt: skip
def test_another_layout_is_refused(here, how, said):
    change(here / "zero_pp_rank_0_mp_rank_00_optim_states.pt", lambda saved: how(saved["optimizer_state_dict"]))
    refused(here, said)


def test_a_checkpoint_without_its_iteration(here):
    change(here / "mp_rank_00_model_states.pt", lambda saved: [saved.pop("iteration"), saved.pop("global_steps")])
    refused(here, "does not say which iteration it is of")


class Hostile:
    def __init__(self, done):
        self.done = done

    def __reduce__(self):
        return os.mkdir, (str(self.done),)


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_01_optim_states.pt"])
def test_no_pickle_runs_anything(here, file):
    change(here / file, lambda saved: saved.update(more=Hostile(here / "done")))
    refused(here, r"holds \S*mkdir, which only a pickle that may run anything would load")
    assert not (here / "done").exists()


def test_a_file_that_was_cut_off(here):
    file = here / "zero_pp_rank_1_mp_rank_01_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-2000])
    refused(here, r"zero_pp_rank_1_mp_rank_01_optim_states.pt cannot be loaded by torch .* it is cut off")


def test_ranks_of_different_models(here):
    layer = here / "layer_02-model_01-model_states.pt"
    torch.save({**torch.load(layer), "input_layernorm.bias": torch.ones(15).half()}, layer)
    refused(here, "the layer files of model_01 and model_00 have different tensors")


def test_files_that_are_something_else(here):
    torch.save([torch.ones(2)], here / "mp_rank_00_model_states.pt")
    refused(here, "mp_rank_00_model_states.pt holds no table, but list")
    torch.save({"input_layernorm.weight": 3}, here / "layer_02-model_01-model_states.pt")
    refused(here, "layer_02-model_01-model_states.pt holds more than tensors by name")


def test_what_is_not_there(here):
    with pytest.raises(LawaError, match="nowhere does not exist"):
        convert(here / "nowhere", here.with_name("into"))
    with pytest.raises(LawaError, match=r"no\.yml does not exist"):
        convert(here, here.with_name("into"), config=here / "no.yml")


def test_a_place_that_is_taken_and_one_without_room(here, monkeypatch):
    (here.parent / "taken").mkdir()
    with pytest.raises(LawaError, match="taken exists already"):
        convert(here, here.parent / "taken")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(here, r"has no room for the \S+ kB of model.safetensors \(No space left on device\)")


# ---- OLMo


@pytest.mark.parametrize("keys", ["name", "number"])
@pytest.mark.parametrize("tied", [False, True])
def test_olmo_2(tmp_path, keys, tied):
    ours = checkpoint(tmp_path / "ours", olmo2(tie_word_embeddings=tied))
    native.write_olmo(ours, tmp_path / "native", keys=keys)
    told = convert(tmp_path / "native", tmp_path / "into")
    check_same(tmp_path / "into", ours)
    assert (told.format, told.update, told.step, told.lr_iterations, told.loss_scale) == ("olmo", 7, 7.0, None, None)
    model, of = AutoModelForCausalLM.from_pretrained(tmp_path / "into", output_loading_info=True)
    assert not any(of.values()), of
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(model(tokens).logits, AutoModelForCausalLM.from_pretrained(ours)(tokens).logits)


def test_olmo_1(tmp_path):
    config = OlmoConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32, pad_token_id=1, eos_token_id=2, clip_qkv=8.0,
    )  # fmt: skip
    ours = checkpoint(tmp_path / "ours", OlmoForCausalLM(config))
    native.write_olmo(ours, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "into")
    check_same(tmp_path / "into", ours)
    made = AutoConfig.from_pretrained(tmp_path / "into")
    assert (made.model_type, made.clip_qkv, made.num_key_value_heads) == ("olmo", 8.0, 4)


def olmo_block(weights, x, heads, keys, theta, eps, clip=None):
    """Attention and feed-forward as allenai/OLMo's olmo/model.py computes them, from its own tensors, in float64.

    OLMoSequentialBlock with norm_after; rope as its RotaryEmbedding, SwiGLU as its x · silu(gate).
    """

    def norm(x, weight):
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    t, width = x.shape
    size = width // heads
    q, k, v = (x @ weights["att_proj.weight"].T).split((width, size * keys, size * keys), dim=-1)
    q, k = norm(q, weights["q_norm.weight"]), norm(k, weights["k_norm.weight"])
    angles = torch.arange(t).double()[:, None] / theta ** (torch.arange(0, size, 2).double() / size)
    cos, sin = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

    def rotated(x, many):
        x = x.view(t, many, size)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    q, k, v = rotated(q, heads), rotated(k, keys), v.view(t, keys, size)
    k, v = (one.repeat_interleave(heads // keys, dim=1) for one in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
    scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf")).softmax(-1)
    attended = torch.einsum("hqk,khd->qhd", scores, v).reshape(t, width) @ weights["attn_out.weight"].T
    x = x + norm(attended, weights["attn_norm.weight"])
    up, gate = (x @ weights["ff_proj.weight"].T).chunk(2, -1)
    return x + norm((torch.nn.functional.silu(gate) * up) @ weights["ff_out.weight"].T, weights["ff_norm.weight"])


def test_olmo_2_computes_what_its_own_tensors_mean(tmp_path):
    """A literal model on model.pt gives transformers' logits: queries, keys, up and gate are in their places."""
    ours = checkpoint(tmp_path / "ours", olmo2())
    native.write_olmo(ours, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "into")
    weights = {name: tensor.double() for name, tensor in torch.load(tmp_path / "native/model.pt").items()}
    tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    x = weights["transformer.wte.weight"][tokens]
    for block in range(2):
        start = f"transformer.blocks.{block}."
        own = {name.removeprefix(start): one for name, one in weights.items() if name.startswith(start)}
        x = olmo_block(own, x, heads=4, keys=2, theta=10000.0, eps=1e-5)
    x = weights["transformer.ln_f.weight"] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "into")
    expected = (x @ weights["transformer.ff_out.weight"].T).float()
    torch.testing.assert_close(model(tokens[None]).logits[0], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def olmo_here(tmp_path) -> Path:
    native.write_olmo(checkpoint(tmp_path / "ours", olmo2()), tmp_path / "native")
    return tmp_path / "native"


def resave(file: Path, how) -> None:
    saved = torch.load(file, weights_only=False)
    how(saved)
    torch.save(saved, file)


def test_olmo_weights_without_state_are_named(olmo_here, tmp_path):
    resave(olmo_here / "optim.pt", lambda saved: saved["state"].pop("transformer.blocks.1.att_proj.weight"))
    told = convert(olmo_here, tmp_path / "into")
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    assert told.without_state == names
    held = load_file(tmp_path / "into/optimizer.safetensors")
    assert not any(name.partition(".")[2] in names for name in held)
    assert len(held) == 3 * (len(load_file(tmp_path / "into/model.safetensors")) - 3)


@pytest.mark.parametrize(
    ("file", "how", "said"),
    [
        ("model.pt", lambda saved: saved.update({"transformer.wpe.weight": torch.ones(2, 2)}), "has 'transformer.wpe"),
        ("train.pt", lambda saved: saved.pop("global_step"), "does not say which global_step"),
        ("optim.pt", lambda saved: saved.pop("param_groups"), "is no optimizer state by name"),
        ("optim.pt", lambda saved: saved["state"]["transformer.ln_f.weight"].pop("exp_avg_sq"), "no exp_avg_sq of its"),
        (
            "optim.pt",
            lambda saved: saved["state"]["transformer.ln_f.weight"].update(exp_avg=torch.ones(3)),
            "'transformer.ln_f.weight' has no exp_avg of its weight's shape",
        ),
    ],
)
def test_what_olmo_lacks_is_named(olmo_here, file, how, said):
    resave(olmo_here / file, how)
    refused(olmo_here, said)


def test_an_olmo_whose_norms_come_before_is_refused(olmo_here):
    (olmo_here / "config.yaml").write_text((olmo_here / "config.yaml").read_text().replace("norm_after: true", ""))
    refused(olmo_here, "has no norm_after")
    (olmo_here / "config.yaml").write_text("model: 3")
    refused(olmo_here, "is no configuration of OLMo")


# ---- the writers of what has weights alone


def test_pythia_on_the_hub(tmp_path, ours):
    native.write_pythia(ours, tmp_path / "hub", shards=2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", dtype="auto")
    assert model.dtype == torch.float16
    before = load_file(ours / "model.safetensors")
    found = catalog(tmp_path / "hub", scratch=lambda: tmp_path).tensors
    assert found["gpt_neox.layers.0.attention.bias"].dtype == "uint8"
    assert torch.equal(model.lm_head.weight, before["embed_out.weight"].half())


def test_amber_on_the_hub(tmp_path):
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    ours = checkpoint(tmp_path / "ours", LlamaForCausalLM(config))
    native.write_amber(ours, tmp_path / "hub")
    shutil.rmtree(ours / "training")
    tokens = torch.arange(12).reshape(2, 6)
    left, right = (AutoModelForCausalLM.from_pretrained(one)(tokens).logits for one in (ours, tmp_path / "hub"))
    assert torch.equal(left, right)
