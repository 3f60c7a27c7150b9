"""The presets are the published models: their parameter counts, in transformers' own classes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lawa.pretrain.presets import PRESETS

# Pythia's table (EleutherAI/pythia) and GPT-2's, with their own vocabularies and positions.
PARAMETERS = {
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
}
VOCABULARY = {"pythia-6.9b": 50432, "pythia-12b": 50688}


@pytest.mark.parametrize("preset", PRESETS)
def test_sizes(preset):
    architecture, shape = PRESETS[preset]
    vocab_size = 50257 if architecture == "gpt2" else VOCABULARY.get(preset, 50304)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, vocab_size=vocab_size, **shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[preset]
    config = model.config
    if architecture == "gpt_neox":
        assert config.use_parallel_residual
        assert config.layer_norm_eps == 1e-5
        assert config.rope_parameters["partial_rotary_factor"] == 0.25
        assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    else:
        assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
