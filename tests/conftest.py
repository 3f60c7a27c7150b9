"""A small text and a small run of the real driver."""

import os
import random
import sys
import tempfile

# Before huggingface_hub is imported: what a fake hub of a test answers stays out of the person's own cache.
_HOME = tempfile.TemporaryDirectory(prefix="lawa-hf-")
os.environ["HF_HOME"] = _HOME.name

import pytest  # noqa: E402
import torch  # noqa: E402

WORDS = ["the", "of", "and", "to", "in", "that", "was", "he", "it", "his", "as", "for", "with", "had", "on", "she"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Starting threads costs more than these small tensors do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def accelerate_anew():
    """What the trainers of one module's tests asked of accelerate is not what the next one's get."""
    state = sys.modules.get("accelerate.state")
    if state is not None and not torch.distributed.is_initialized():
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Twelve documents of a made-up language with some order to learn."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for document in range(12):
        sentences = [" ".join(sorted(draw.choices(WORDS, k=draw.randint(4, 9)))) for _ in range(150)]
        (folder / f"{document:02}.txt").write_text(". ".join(sentences) + ".\n")
    return folder


@pytest.fixture(scope="session")
def settings(corpus):
    """A run of 12 updates with a window of 3 snapshots every 2 updates."""
    return {
        "model": {
            "architecture": "gpt_neox",
            "overrides": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        },
        "data": {
            "train": [str(corpus)],
            "validation_fraction": 0.2,
            "vocab_size": 300,
            "context": 16,
            "store": str(corpus.parent / "store"),
        },
        "training": {"updates": 12, "batch": 4, "lr": 1e-2, "warmup": 2, "log_every": 2, "device": "cpu"},
        "averaging": {"mode": "evaluate", "averages": {"lawa": {"window": 3, "every": 2}, "ema": {"ema": 0.9}}},
        "evaluation": {"every": 4, "sequences": 8, "batch": 4},
        "checkpoints": {"every": 2, "save_averages": "all"},
    }
