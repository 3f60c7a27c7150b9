"""Small models, a loop that trains one, and two ways to watch memory. No arithmetic of averaging: that is in twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import twins
from lawa import EMA, RunningMean, WeightAverager, Window


class Tied(nn.Module):
    """An embedding whose weight is also the head's, a frozen scale, and buffers of three kinds."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 4, dtype=dtype)
        self.inner = nn.Linear(4, 4, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(4, dtype=dtype), requires_grad=False)
        self.head = nn.Linear(4, 11, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("level", torch.tensor([1.0, 2.0]))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(tokens)) * self.scale)


def linear(values: Any = (1.0, 2.0, 3.0), *, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """One weight with the given values and no bias."""
    model = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    fill(model, values)
    return model


@torch.no_grad()
def fill(model: nn.Module, values: Any) -> None:
    """Every trained parameter's elements become `values` (a number, or as many as the weight has)."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.as_tensor(values, dtype=parameter.dtype).expand_as(parameter))


@torch.no_grad()
def wander(model: nn.Module, t: int) -> None:
    """θ_t: what an optimizer might do, decided by t and the name alone."""
    for number, (_, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(1000 * t + number)
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """{name: values} of every parameter, each storage once, copied."""
    return {name: twins.array(parameter) for name, parameter in model.named_parameters()}


def same_weights(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(twins.same_bits(left[name], right[name]) for name in left)


def mean_of(
    copies: list[dict[str, np.ndarray]], model: nn.Module, c: Any = None, *, wide: type = np.float32
) -> dict[str, np.ndarray]:
    """The twin's average of copied weights, in the dtypes of `model`; frozen ones as they are."""
    return {
        name: twins.rounded(twins.mean([copy[name] for copy in copies], c, wide), parameter.dtype)
        if parameter.requires_grad
        else twins.array(parameter)
        for name, parameter in model.named_parameters()
    }


def seen_by(averager: Any, name: str | None = None) -> dict[str, np.ndarray]:
    """The weights that a model has inside `averaged(name)`."""
    with averager.averaged(name) as model:
        return weights(model)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    """One update of a Tied model on tokens that t decides."""
    tokens = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(t))
    logits = model(tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


class Memory(TorchDispatchMode):
    """Bytes of new storages that torch hands out while it is on, each one seen as an operator returns it.

    new   of all of them together
    peak  of those alive at the same time
    ops   how many operators ran
    """

    def __init__(self) -> None:
        super().__init__()
        self.new = self.peak = self.ops = 0
        self._alive: list[tuple[StorageWeakRef, int]] = []
        self._known: set[int] = set()

    def ignore(self, *tensors: Tensor) -> None:
        """These exist already."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ignore(*(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))
        result = func(*args, **(kwargs or {}))
        self.ops += 1
        self._alive = [(ref, nbytes) for ref, nbytes in self._alive if not ref.expired()]
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage._cdata)
                self._alive.append((StorageWeakRef(storage), storage.nbytes()))
                self.new += storage.nbytes()
        self._known = {cdata for cdata in self._known if any(ref.cdata == cdata for ref, _ in self._alive)}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._alive))
        return result

    @property
    def alive(self) -> int:
        return sum(nbytes for ref, nbytes in self._alive if not ref.expired())


@contextmanager
def counting(target: Any, name: str) -> Iterator[list[Any]]:
    """The arguments of every call of target.name within the block."""
    calls: list[Any] = []
    original: Callable[..., Any] = getattr(target, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    setattr(target, name, counted)
    try:
        yield calls
    finally:
        setattr(target, name, original)


AVERAGES: dict[str, Any] = {
    "short": Window(2, every=2),
    "long": Window(3, every=4, coefficients="linear"),
    "late": Window(2, every=3, start=7),
    "early": Window(3, every=1, stop=5),
    "ema": EMA(0.5, every=2, start=3),
    "swa": RunningMean(every=2, start=6, stop=10),
}


def evaluate(model: nn.Module, **settings: Any) -> WeightAverager:
    return WeightAverager(model, mode="evaluate", **settings)


def replace(model: nn.Module, optimizer: Any = None, **settings: Any) -> WeightAverager:
    return WeightAverager(model, optimizer, mode="replace", **settings)
