"""Loss, perplexity and bits per byte against a literal twin in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import GPTNeoXForCausalLM

from lawa.errors import LawaError
from lawa.evaluation.loss import evaluate
from lawa.evaluation.score import of_nats, score
from lawa.evaluation.text import Text, of_ids


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(config).eval()


@pytest.fixture
def text():
    return of_ids(np.random.default_rng(0).integers(0, 280, 108), 321, 10)  # 10 sequences and 7 tokens


def twin(model, text):
    """All nats: the model in float64, each sequence by itself, softmax as it is written."""
    model = GPTNeoXForCausalLM.from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=torch.float64
    )
    nats = 0.0
    for sequence in [*text.sequences, *([] if text.rest is None else [text.rest])]:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(sequence[None, :-1])).logits[0].numpy()
        for row, target in zip(logits, sequence[1:], strict=True):
            nats -= float(row[target] - np.log(np.exp(row).sum()))
    return nats


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_a_score_is_the_twins(model, text, batch):
    found, nats = score(model, text, batch=batch), twin(model, text)
    assert found.tokens == 107
    assert found.loss == pytest.approx(nats / 107, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats / 107), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 321, rel=1e-6)
    assert found.bytes == 321


def test_the_loss_is_that_of_the_drivers_loop(model, text):
    whole = Text(name="", sequences=text.sequences)
    assert score(model, whole, batch=4).loss == pytest.approx(evaluate(model, text.sequences, batch=4), rel=1e-6)


def test_sums_are_kept_in_float64(model, text):
    """A constant loss of ln 280 summed in fp32 over so many tokens would be off by more than 1e-9."""
    for parameter in model.parameters():
        parameter.data.zero_()
    many = Text(name="", sequences=np.repeat(text.sequences, 50, axis=0))
    one = float(torch.nn.functional.cross_entropy(torch.zeros(1, 280), torch.tensor([0])))
    assert score(model, many).loss == pytest.approx(one, rel=1e-12)


def test_the_model_is_left_as_it_was(model, text):
    model.train()
    score(model, text)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.eval()
    score(model, text)
    assert not model.training


def test_what_is_not_finite_or_not_known_is_none(model, text):
    model.get_output_embeddings().weight.data[0, 0] = float("nan")
    found = score(model, text)
    assert (found.loss, found.perplexity, found.bits_per_byte) == (None, None, None)
    assert of_nats(1000.0, 1, None).perplexity is None
    assert of_nats(1000.0, 1, None).loss == 1000
    assert of_nats(3.0, 2, None).bits_per_byte is None


def test_half_precision_logits_are_scored_in_fp32(model, text):
    half = GPTNeoXForCausalLM.from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=torch.bfloat16
    )
    assert score(half, text).loss == pytest.approx(score(model, text).loss, rel=1e-2)


def test_ids_outside_of_the_vocabulary_are_named(model):
    with pytest.raises(LawaError, match="odd has the id 280, and the model's vocabulary has 280"):
        score(model, of_ids(np.array([1, 280, 3]), 3, 2, name="odd"))
