"""configs/gpt2-*.yaml are the paper's setting (arXiv 2306.03241), number by number."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lawa.averaging.averages import EMA, RunningMean, Window
from lawa.pretrain.config import load, read_yaml
from lawa.pretrain.model import make_model
from lawa.pretrain.schedules import learning_rate

CONFIGS = Path(__file__).parents[2] / "configs"
GPT2 = SimpleNamespace(vocab_size=50257, end_of_text=50256)
# peak and floor; parameters with nanoGPT's vocabulary of 50,304 (OpenAI's has 50,257)
PAPER = {
    "small": (6e-3, 6e-4, 124_475_904),
    "medium": (3e-3, 3e-4, 354_871_296),
    "large": (2e-3, 1e-5, 774_090_240),
}
sizes = pytest.mark.parametrize("size", PAPER)


def file(size):
    return CONFIGS / f"gpt2-{size}.yaml"


@sizes
def test_the_papers_numbers(size):
    config = load(file(size))
    training = config.training
    lr, min_lr, _ = PAPER[size]
    assert (training.lr, training.min_lr) == (lr, min_lr)
    assert (training.updates, training.warmup, training.schedule) == (70_000, 2000, "cosine")
    assert (training.beta1, training.beta2, training.weight_decay, training.clip) == (0.9, 0.95, 0.1, 1.0)
    assert (training.precision, config.data.context, config.tokens_per_update) == ("bf16", 1024, 491_520)
    assert (config.data.tokenizer, config.averaging.mode) == ("openai-community/gpt2", "evaluate")
    assert config.averaging.named == {
        "lawa-5": Window(5, every=1000),
        "lawa-10": Window(10, every=1000),
        "ema": EMA.matched(Window(5, every=1000), every=10),
        "ema-paper": EMA(0.9),
        "swa": RunningMean(start=52_500, every=10),
    }
    assert config.without_effect() == []


@sizes
def test_the_learning_rate_peaks_after_warm_up_and_ends_at_the_floor(size):
    training = load(file(size)).training
    rule = {"schedule": "cosine", "lr": training.lr, "min_lr": training.min_lr, "updates": 70_000, "warmup": 2000}
    assert learning_rate(2000, **rule) == PAPER[size][0]
    assert learning_rate(70_000, **rule) == pytest.approx(PAPER[size][1])


@sizes
def test_arms(size):
    assert set(read_yaml(file(size))["arms"]) == {"usual-lr", "replace"}
    usual = load(file(size), arm="usual-lr")
    assert usual.training.lr == pytest.approx(PAPER[size][0] / 10)
    assert usual.training.min_lr == pytest.approx(usual.training.lr / 10)
    assert usual.averaging == load(file(size)).averaging
    replacing = load(file(size), arm="replace").averaging
    assert (replacing.mode, replacing.replace_with, replacing.after_replace) == ("replace", "lawa-10", "slide")
    assert replacing.named == {"lawa-10": Window(10, every=1000)}


@sizes
@pytest.mark.parametrize("processes", [1, 8])
def test_micro_batches_divide_what_a_process_has(size, processes):
    training = load(file(size)).training
    assert training.batch % processes == 0
    assert training.batch // processes % training.micro_batch == 0


def test_the_three_differ_in_size_rates_and_memory_only():
    small, *others = (read_yaml(file(size)) for size in PAPER)
    for other in others:
        for section, names in {
            "model": ["preset"],
            "training": ["lr", "min_lr", "micro_batch"],
            "averaging": ["placement"],
            "arms": ["usual-lr"],
        }.items():
            for name in names:
                small[section].pop(name, None)
                other[section].pop(name, None)
        assert other == small


@sizes
def test_parameters(size):
    config = load(file(size), overrides={"training": {"compile": False}})  # which would import the compiler
    model = make_model(config, GPT2, device=torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == PAPER[size][2]
    assert model.config.vocab_size == 50_304
    assert model.config.scale_attn_by_inverse_layer_idx
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
