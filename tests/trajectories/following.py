"""Small runs to follow: GPT-NeoX checkpoints in a folder or on a hub, their own text, and a process that can be killed.

python following.py OUTPUT ARGUMENT…    `lawa follow`, which takes its time over every evaluation
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trajectories.replicas import PYTHIA_CONFIG, Files, bin_file, pythia_tensors

REPO = "EleutherAI/pythia-tiny"
STEPS = [1000, 2000, 3000, 4000, 5000, 6000]
WORDS = ["the", "of", "and", "to", "in", "that", "was", "he", "it", "his", "as", "for", "with", "had", "on", "she"]
TEXT = " ".join(WORDS[i * i % 16] for i in range(300))
BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def tokenizer_files() -> Files:
    """A byte-level one without merges: 256 ids, of which the last two bytes are left out for the end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:255]
    vocabulary = {"<|endoftext|>": 0, **{byte: number for number, byte in enumerate(alphabet, start=1)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


def weights(step: int, *, buffers: bool = False) -> dict[str, torch.Tensor]:
    """fp16; a walk towards the weights of step 0, with noise of its own at every step."""
    near, own, part = pythia_tensors(0), pythia_tensors(step), step / 8000
    mixed = {name: (part * near[name].float() + (1 - part) * own[name].float()).half() for name in near}
    mixed = {name: own[name] if name.endswith(BUFFERS) else tensor for name, tensor in mixed.items()}
    return {name: tensor for name, tensor in mixed.items() if buffers or not name.endswith(BUFFERS)}


def folder(place: Path, steps: list[int] = STEPS) -> Path:
    """PLACE/step1000, …: Hugging Face directories of safetensors, in turn with .bin files that have the buffers."""
    for number, step in enumerate(steps):
        directory = place / f"step{step}"
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(PYTHIA_CONFIG))
        for name, content in tokenizer_files().items():
            (directory / name).write_bytes(content)
        if number % 2:
            (directory / "pytorch_model.bin").write_bytes(bin_file(weights(step, buffers=True)))
        else:
            save_file(weights(step), directory / "model.safetensors", {"format": "pt"})
    return place


def repo(steps: list[int] = STEPS) -> dict[str, Files]:
    """The same as branches of a repo, all of them .bin files."""
    beside = {"config.json": json.dumps(PYTHIA_CONFIG).encode(), **tokenizer_files()}
    return {f"step{step}": {**beside, "pytorch_model.bin": bin_file(weights(step, buffers=True))} for step in steps}


def described(place: Path) -> Path:
    """A user's YAML file of the repo."""
    place.write_text(
        f"repo: {REPO}\nrevisions: step{{step}}\ninterval: 1000\ntotal: 6000\nbatch: 4\ncontext: 64\n", encoding="utf-8"
    )
    return place


def text(place: Path) -> Path:
    place.write_text(TEXT, encoding="utf-8")
    return place


def main() -> None:
    from lawa import cli
    from lawa.trajectories import follow_evaluation

    evaluate = follow_evaluation.Evaluator.__call__

    def slow(self, weights, label):
        print(label, flush=True)
        time.sleep(0.05)
        return evaluate(self, weights, label)

    follow_evaluation.Evaluator.__call__ = slow
    sys.exit(cli.main(["follow", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
