import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lawa.evaluation.loss import evaluate, token_loss


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )


def test_the_loss_is_transformers_own(model):
    sequences = torch.randint(0, 50, (3, 9))
    # With labels, transformers drops the last logit and the first label; so it sees all 9 tokens.
    expected = model(input_ids=sequences, labels=sequences).loss
    torch.testing.assert_close(token_loss(model, sequences), expected)


def test_evaluation_is_the_mean_over_all_sequences_at_any_batch(model):
    sequences = np.random.default_rng(0).integers(0, 50, (7, 9))
    with torch.no_grad():
        each = [float(token_loss(model.eval(), torch.from_numpy(row[None]))) for row in sequences]
    for batch in (1, 3, 7, 100):
        assert evaluate(model, sequences, batch=batch) == pytest.approx(np.mean(each), rel=1e-6)


def test_evaluation_leaves_the_mode_and_makes_no_gradients(model):
    model.train()
    evaluate(model, np.zeros((2, 5), dtype=np.int64), batch=2)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    evaluate(model, np.zeros((2, 5), dtype=np.int64), batch=2)
    assert not model.training
