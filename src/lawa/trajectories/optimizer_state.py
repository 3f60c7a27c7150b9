"""From a public run's own checkpoint to weights, moments and counts by name, as a run of `lawa train` keeps them.

    neox   GPT-NeoX on DeepSpeed's ZeRO-1 (Pythia): neox_state.py
    olmo   OLMo's full checkpoints (OLMo 1 and 2): olmo_state.py

Nothing is computed: masters and moments keep their bits, whatever number of ranks shared them.
"""

from __future__ import annotations

from pathlib import Path

from lawa.checkpoints.publish import publish
from lawa.errors import LawaError
from lawa.trajectories import neox_state, olmo_state
from lawa.trajectories.converted import MODEL, OPTIMIZER, Converted

__all__ = ["MODEL", "OPTIMIZER", "Converted", "convert"]


def convert(native: Path, into: Path, *, config: Path | None = None) -> Converted:
    """Read the checkpoint in the folder `native` and publish the folder `into`, which must not exist:

        model.safetensors      the weights as the optimizer has them (fp32 masters), as transformers names them
        optimizer.safetensors  exp_avg.NAME, exp_avg_sq.NAME (fp32, of the weight's shape) and step.NAME (fp32 scalar),
                               NAME being the parameter's in transformers' model
        config.json            transformers'

    config  of the model: transformers' config.json, or the trainer's own YAML; default: the YAML in `native`. Without
            any, no config.json is written

    Both outputs are memory maps that are filled file by file, so memory holds pages of the file in hand; the disk needs
    12 bytes a parameter. Raises LawaError for what is incomplete, in another layout, or of an optimizer without
    Adam's moments; `into` appears whole or not at all.
    """
    for path in (native, *([config] if config else [])):
        if not path.exists():
            raise LawaError(f"{path} does not exist; name the folder and the configuration that were fetched")
    form = next((form for form in (neox_state, olmo_state) if form.is_here(native)), None)
    if form is None:
        raise LawaError(
            f"{native} holds no optimizer state known here: GPT-NeoX's zero_pp_rank_0_mp_rank_00_optim_states.pt, …, "
            "or OLMo's optim.pt and model.pt; fetch the run's native checkpoint"
        )
    with publish(into) as folder:
        return form.write(native, folder, config)
