"""Fresh and given models: what is taken, what is refused, and what the two ways to compute faster change."""

import hashlib
import pickle
import shutil
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, T5Config

import lawa.pretrain.model
from lawa.errors import LawaError, UsageError
from lawa.evaluation.loss import token_loss
from lawa.pretrain.config import Config
from lawa.pretrain.model import given_model, make_model, model_config, shape_of
from lawa.settings import build, merge

CPU = torch.device("cpu")
STORE = SimpleNamespace(vocab_size=60, end_of_text=7)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def make(settings):
    """make(model={…}, training={…}) → the model of that configuration."""

    def made(model, given=None, **sections):
        return make_model(configuration(settings, model, **sections), STORE, device=CPU, given=given)

    return made


def configuration(settings, model, **sections):
    return build(Config, merge({**settings, "model": model}, sections))


@pytest.fixture
def folder(tmp_path):
    """A folder with a small GPT-NeoX in fp16, of 64 words and 32 positions."""
    torch.manual_seed(3)
    tiny = GPTNeoXConfig(vocab_size=64, max_position_embeddings=32, eos_token_id=5, **SIZES)
    GPTNeoXForCausalLM(tiny).half().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A cache that holds the folder as org/tiny, branch step1000, on a machine that is offline."""
    repository = tmp_path / "cache" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "step1000").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / COMMIT


def same(model, weights):
    """Whether the model has these weights; transformers calls the head of GPT-NeoX otherwise in files."""
    weights = {name.replace("embed_out", "lm_head"): tensor.float() for name, tensor in weights.items()}
    own = model.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)


def test_fresh_weights_are_fp32_and_come_from_the_seed(make):
    model = {"architecture": "gpt_neox", "overrides": SIZES}
    one, same_seed, other = make(model), make(model), make(model, seed=1)
    assert one.training
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}
    assert same(one, same_seed.state_dict())
    assert not same(one, other.state_dict())
    assert (one.config.vocab_size, one.config.max_position_embeddings, one.config.eos_token_id) == (128, 16, 7)


def test_given_weights_in_fp16_are_loaded_as_fp32(make, folder):
    model = make({"weights": str(folder)})
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert same(model, load_file(folder / "model.safetensors"))
    assert model.config.eos_token_id == 5
    assert not same(make({"config": str(folder)}), load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("file", ["", "config.json"])
def test_a_given_shape_is_trained_from_fresh_weights(make, folder, file):
    (folder / "model.safetensors").unlink()
    model = make({"config": str(folder / file), "overrides": {"hidden_dropout": 0.25}})
    assert (model.config.vocab_size, model.config.hidden_size, model.config.num_hidden_layers) == (64, 16, 2)
    assert (model.config.hidden_dropout, model.config.eos_token_id) == (0.25, 7)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_pickled_weights_load_but_their_code_does_not_run(make, folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    buffers = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 32, 32, dtype=torch.uint8)}  # Pythia's are old
    torch.save({**weights, **buffers}, folder / "pytorch_model.bin")
    assert same(make({"weights": str(folder)}), weights)

    class Harm:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "harmed",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embed": Harm()}))
    with pytest.raises(LawaError, match="transformers cannot load its weights"):
        make({"weights": str(folder)})
    assert not (tmp_path / "harmed").exists()


def test_provenance_of_a_folder(settings, folder):
    given = given_model(configuration(settings, {"weights": str(folder)}).model)
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("config.json", "model.safetensors")
    }
    assert given.provenance() == {"weights": str(folder), "revision": None, "files": digests}
    shape = given_model(configuration(settings, {"config": str(folder / "config.json")}).model).provenance()
    assert shape["config"] == str(folder / "config.json")
    assert list(shape["files"]) == ["config.json"]
    folder_only = given_model(configuration(settings, {"config": str(folder)}).model)
    assert [file.name for file in folder_only.files] == ["config.json"]
    assert given_model(configuration(settings, {"preset": "pythia-14m"}).model) is None


def test_a_hub_revision_is_resolved_to_its_commit(settings, make, hub):
    settings = configuration(settings, {"weights": "org/tiny", "revision": "step1000"})
    given = given_model(settings.model)
    assert (given.path, given.revision) == (hub, COMMIT)
    assert given.provenance()["revision"] == COMMIT
    assert given.provenance()["weights"] == "org/tiny"
    model = make_model(settings, STORE, device=CPU, given=given)
    assert same(model, load_file(hub / "model.safetensors"))
    by_commit = make({"config": "org/tiny", "revision": COMMIT})
    assert by_commit.config.hidden_size == 16


def test_a_hub_model_with_pickles_only(make, hub):
    weights = load_file(hub / "model.safetensors")
    (hub / "model.safetensors").unlink()
    torch.save(weights, hub / "pytorch_model.bin")
    assert same(make({"weights": "org/tiny", "revision": "step1000"}), weights)


@pytest.mark.parametrize("safe", [True, False])
def test_only_what_is_read_is_fetched(settings, folder, tmp_path, monkeypatch, safe):
    """Pickles where there is nothing better; for a shape no weights."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.fp16.safetensors").write_bytes(b"another variant")
    if not safe:
        (folder / "model.safetensors").unlink()
    fetched = tmp_path / COMMIT
    fetched.mkdir()

    def download(name, *, revision, allow_patterns):
        assert (name, revision) == ("org/tiny", "step1000")
        for file in {file for pattern in allow_patterns for file in folder.glob(pattern)}:
            shutil.copy(file, fetched)
        return str(fetched)

    monkeypatch.setattr(lawa.pretrain.model, "snapshot_download", download)
    given_model(configuration(settings, {"config": "org/tiny", "revision": "step1000"}).model)
    names = {"config.json", "generation_config.json"}
    assert {file.name for file in fetched.iterdir()} == names
    given = given_model(configuration(settings, {"weights": "org/tiny", "revision": "step1000"}).model)
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    assert {file.name for file in fetched.iterdir()} == {*names, weights}
    assert [file.name for file in given.files] == ["config.json", weights]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"weights": "org/tiny"},
            r"^org/tiny is no folder here, and could not be had from the .* hub \(.*fetch it once",
        ),
        ({"config": "org/tiny", "revision": "step7"}, "^org/tiny at revision 'step7' is no folder here"),
        ({"weights": "no/such/folder"}, "^no/such/folder is no folder here"),
    ],
)
def test_what_is_not_in_the_cache_of_a_machine_offline(make, hub, model, sentence):
    with pytest.raises(LawaError, match=sentence) as raised:
        make(model)
    assert "\n" not in str(raised.value)


def test_a_hub_model_whose_weights_were_never_fetched(make, hub):
    (hub / "model.safetensors").unlink()
    with pytest.raises(LawaError, match=r"model.weights='org/tiny' has no model.safetensors or .* offline"):
        make({"weights": "org/tiny", "revision": "step1000"})
    (hub / "config.json").unlink()
    with pytest.raises(LawaError, match=r"model\.config='org/tiny' has no config\.json on the hub"):
        make({"config": "org/tiny", "revision": "step1000"})


def test_a_folder_without_a_model(make, tmp_path):
    with pytest.raises(LawaError, match=r"model\.config=.* has no config\.json; name a folder"):
        make({"config": str(tmp_path)})


def damage(folder, what):
    weights = load_file(folder / "model.safetensors")
    if what == "config":
        (folder / "config.json").write_text("{")
    elif what == "unknown":
        (folder / "config.json").write_text('{"model_type": "no_such_model"}')
    elif what == "t5":
        T5Config().save_pretrained(folder)
    elif what == "code":
        auto = '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}'
        (folder / "config.json").write_text(auto)
        (folder / "mine.py").write_text("raise SystemExit('it ran')")
    elif what == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif what == "quantized":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("{", '{"quantization_config": {"bits": 4},', 1))
    else:
        name = "gpt_neox.final_layer_norm.weight"
        if what == "missing":
            del weights[name]
        elif what == "unexpected":
            weights["score.weight"] = torch.ones(2)
        elif what == "mismatched":
            weights[name] = torch.ones(8)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("what", "kind", "sentence"),
    [
        ("config", "weights", r"tiny: transformers cannot read its configuration \(OSError: .*\); give a model"),
        ("unknown", "config", "cannot read its configuration .*no_such_model"),
        ("t5", "config", r"no causal language model can be made of T5Config"),
        ("code", "weights", "cannot read its configuration .*; give a model that transformers has itself"),
        ("truncated", "weights", "transformers cannot load its weights"),
        ("quantized", "weights", "tiny is quantized, and cannot be trained in fp32"),
        ("missing", "weights", "lacks gpt_neox.final_layer_norm.weight, which GPTNeoXForCausalLM has"),
        ("unexpected", "weights", "holds score.weight, for which GPTNeoXForCausalLM has no place"),
        ("mismatched", "weights", "holds gpt_neox.final_layer_norm.weight in another shape than GPTNeoXForCausalLM"),
    ],
)
def test_damaged_and_unknown_models(make, folder, what, kind, sentence):
    damage(folder, what)
    with pytest.raises(LawaError, match=sentence) as raised:
        make({kind: str(folder)})
    assert "\n" not in str(raised.value)


def test_overrides_that_change_the_shape_of_given_weights(make, folder):
    with pytest.raises(LawaError, match=r"holds .*layers\.1.* and 11 more, for which GPTNeoXForCausalLM has no place"):
        make({"weights": str(folder), "overrides": {"num_hidden_layers": 1}})
    with pytest.raises(LawaError, match=r"lacks .*layers\.2.* and 11 more"):
        make({"weights": str(folder), "overrides": {"num_hidden_layers": 3}})
    assert make({"weights": str(folder), "overrides": {"attention_dropout": 0.5}}).config.attention_dropout == 0.5


def test_the_vocabulary_and_the_context_must_fit(make, folder, settings):
    model = {"weights": str(folder)}
    with pytest.raises(UsageError, match=r"data.context=33 is longer than the model's 32 positions"):
        make(model, data={"context": 33})
    assert make(model, data={"context": 32}).config.max_position_embeddings == 32
    larger = SimpleNamespace(vocab_size=65, end_of_text=0)
    with pytest.raises(UsageError, match=r"vocabulary of 64 is less than the tokenizer's 65; set data\.tokenizer"):
        make_model(configuration(settings, model), larger, device=CPU)
    fresh = configuration(settings, {"config": str(folder), "overrides": {"vocab_size": 65}})
    assert make_model(fresh, larger, device=CPU).config.vocab_size == 65


def test_overrides_go_by_the_names_of_transformers(settings):
    gpt2 = configuration(settings, {"architecture": "gpt2", "overrides": {"hidden_size": 24, "n_layer": 3}})
    shape = model_config(gpt2, STORE)
    assert (shape.n_embd, shape.n_layer, shape.n_positions) == (24, 3, 16)
    with pytest.raises(UsageError, match=r"model\.overrides\.depth is no field of transformers' GPT2Config"):
        model_config(configuration(settings, {"architecture": "gpt2", "overrides": {"depth": 24}}), STORE)


def test_the_shape_of_a_checkpoint_needs_nothing_else(make, folder, tmp_path):
    first = make({"weights": str(folder), "overrides": {"hidden_dropout": 0.25}})
    first.save_pretrained(tmp_path / "checkpoint")
    for file in folder.iterdir():
        file.unlink()
    again = make({"weights": str(folder)}, given=shape_of(tmp_path / "checkpoint"))
    assert again.config.to_diff_dict() == {**first.config.to_diff_dict(), "hidden_dropout": 0.25}
    again.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({}, "set model.preset, model.architecture, model.config or model.weights, and only one of them"),
        ({"preset": "gpt2-small", "weights": "gpt2"}, "model.preset and model.weights exclude each other"),
        ({"preset": "gpt2-small", "revision": "main"}, "model.revision='main' needs a hub name"),
        ({"weights": "HERE", "revision": "main"}, "model.revision='main' needs a hub name"),
    ],
)
def test_one_beginning_only(settings, folder, model, sentence):
    here = {name: str(folder) if value == "HERE" else value for name, value in model.items()}
    with pytest.raises(UsageError, match=sentence):
        configuration(settings, here)


def test_local_models_are_written_as_absolute_paths(settings, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert configuration(settings, {"weights": "tiny"}).to_dict()["model"]["weights"] == str(folder)
    assert configuration(settings, {"weights": "gpt2"}).to_dict()["model"]["weights"] == "gpt2"


def losses(model, updates=3):
    """Training losses of a few updates on fixed sequences."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for _ in range(updates):
        loss = token_loss(model, torch.randint(60, (4, 17)))
        loss.backward()
        found.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama"])
def test_activation_checkpointing_changes_no_bit(make, architecture):
    model = {"architecture": architecture, "overrides": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 64}}
    model["overrides"]["num_attention_heads"] = 2
    model["overrides"].update({"llama": {"num_key_value_heads": 2, "intermediate_size": 32}}.get(architecture, {}))
    plain, checkpointed = make(model), make(model, training={"activation_checkpointing": True})
    forwards = [count_forwards(plain), count_forwards(checkpointed)]
    assert losses(checkpointed) == losses(plain)
    assert same(checkpointed, plain.state_dict())
    assert list(map(len, forwards)) == [3, 6]


def count_forwards(model):
    """A list that grows with every forward of the first MLP (which recomputation leaves before its end)."""
    calls = []
    mlp = next(module for name, module in model.named_modules() if name.endswith(".0.mlp"))
    mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_compiled_losses_are_close_and_names_stay(make, tmp_path):
    model = {"architecture": "gpt_neox", "overrides": {**SIZES, "num_hidden_layers": 1, "vocab_size": 64}}
    plain, compiled = make(model), make(model, training={"compile": True})
    names = list(plain.state_dict())
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    assert list(compiled.state_dict()) == names
    compiled.save_pretrained(tmp_path)
    assert same(compiled, load_file(tmp_path / "model.safetensors"))
