"""The torchtitan example on a stand-in; examples/torchtitan/README.md says what was checked with torchtitan itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from averaging import toys
from contracts.contract import weights
from integrations.titan import STEPS, Averaging, Trainer, resumes_to_the_same_bits
from launching import launch
from lawa import LawaError

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")


def test_resumed_in_the_middle_of_a_window(tmp_path: Path) -> None:
    resumes_to_the_same_bits(tmp_path / "step-5")


@pytest.mark.slow
def test_on_two_ranks(tmp_path: Path) -> None:
    said = launch(HERE / "titan.py", 2, str(tmp_path / "step-5"))
    assert said.count("the same bits") == 2


def test_it_replaces_before_the_next_step_and_after_the_last(tmp_path: Path) -> None:
    """A checkpoint has θ_t; what may still be staged is waited for before the weights change."""
    done = Trainer(tmp_path / "step-5", mode="replace", every=2, window=2).train()
    assert done.said == [
        "validated lawa at 4", "staged", "save 5", "validated lawa at 5", "validated lawa at 6", "staged",
        "validated lawa at 7", "staged", "validated lawa at 8",
    ]  # fmt: skip
    averager = done.averaging.averager
    assert averager.last_replacement == STEPS
    assert not averager.replacement_pending
    assert toys.same_weights(done.final, toys.seen_by(averager)), "what training delivers is the average"


def test_validation_has_the_average_and_then_the_models_own(tmp_path: Path) -> None:
    done = Trainer(tmp_path / "step-5", mode="evaluate", every=2, window=2).train()
    own = weights(done.model_parts[0])
    within = []
    done.averaging.validate(lambda name: within.append((name, weights(done.model_parts[0]))))
    ((name, average),) = within
    assert name == "lawa"
    assert toys.same_weights(average, toys.seen_by(done.averaging.averager))
    assert not toys.same_weights(average, own)
    assert toys.same_weights(weights(done.model_parts[0]), own)


def test_several_pipeline_stages_on_a_rank_are_refused() -> None:
    with pytest.raises(LawaError, match="several pipeline stages"):
        Averaging(SimpleNamespace(model_parts=[nn.Linear(1, 1), nn.Linear(1, 1)]), mode="evaluate", every=1, window=1)
