"""Synthetic checkpoints of one run: Llama's shapes, random finite values, one safetensors file each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawa.checkpoints.catalog import ITEMSIZE
from lawa.checkpoints.formats.safetensors import header_bytes

_BLOCK = 1 << 25  # bytes of random values, which every checkpoint repeats from a place of its own

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Size:
    """A Llama with embeddings of its own at both ends."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int = 32000

    @property
    def shapes(self) -> Shapes:
        return [*self._shapes()]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self._shapes())

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner = self.hidden, self.inner
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,)
            for name in ("q", "k", "v", "o"):
                yield f"{prefix}self_attn.{name}_proj.weight", (hidden, hidden)
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            yield prefix + "mlp.gate_proj.weight", (inner, hidden)
            yield prefix + "mlp.up_proj.weight", (inner, hidden)
            yield prefix + "mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocabulary, hidden)


TINY = Size(hidden=32, inner=64, layers=1, vocabulary=256)
SMALL = Size(hidden=768, inner=2048, layers=12)  # 134M parameters
MEDIUM = Size(hidden=1024, inner=2816, layers=22)  # 348M
LARGE = Size(hidden=1536, inner=4096, layers=24)  # 778M
HUGE = Size(hidden=2048, inner=5632, layers=26)  # 1.5B


@dataclass(frozen=True)
class Case:
    """So many checkpoints of one size and dtype, "bfloat16" or "float32"."""

    size: Size
    count: int
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"{self.count}-{self.size.parameters / 1e6:.0f}M-{self.dtype}"

    @property
    def title(self) -> str:
        return f"{self.count} × {self.size.parameters / 1e6:.0f}M {self.dtype}"

    @property
    def nbytes(self) -> int:
        """Of the inputs."""
        return self.count * self.one

    @property
    def one(self) -> int:
        """Of one of them."""
        return self.size.parameters * ITEMSIZE[self.dtype]


def make(folder: Path, case: Case) -> list[Path]:
    """The checkpoints of `case` in `folder`, oldest first; those that are there already stay."""
    checkpoints = [folder / f"step{1000 * number:06d}" for number in range(1, case.count + 1)]
    values = random_values(case.dtype)
    for number, directory in enumerate(checkpoints):
        if not directory.is_dir():
            partial = folder / "partial"
            partial.mkdir(parents=True)
            _write(partial / "model.safetensors", case, np.roll(values, 4097 * (number + 1)))
            (partial / "config.json").write_text(json.dumps(_config(case)), encoding="utf-8")
            partial.rename(directory)
    return checkpoints


def random_values(dtype: str) -> np.ndarray:
    """Bits of values between −2 and 2, as unsigned integers: the exponent's highest bit is never set."""
    bits, mask = {"bfloat16": (np.uint16, 0xBFFF), "float32": (np.uint32, 0xBFFFFFFF)}[dtype]
    length = _BLOCK // np.dtype(bits).itemsize
    return np.random.default_rng(0).integers(0, np.iinfo(bits).max, length, bits, endpoint=True) & bits(mask)


def _write(file: Path, case: Case, values: np.ndarray) -> None:
    begin, _ = header_bytes([(name, case.dtype, shape) for name, shape in case.size.shapes], {"format": "pt"})
    with file.open("wb") as opened:
        opened.write(begin)
        left = case.size.parameters
        while left:
            opened.write(values[:left].data)
            left -= min(left, len(values))


def _config(case: Case) -> dict[str, object]:
    size = case.size
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": size.hidden,
        "intermediate_size": size.inner, "num_hidden_layers": size.layers, "vocab_size": size.vocabulary,
        "num_attention_heads": size.hidden // 32, "num_key_value_heads": size.hidden // 32,
        "tie_word_embeddings": False, "torch_dtype": case.dtype,
    }  # fmt: skip
