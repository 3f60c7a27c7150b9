"""Updates ↔ what a run calls its checkpoints. No torch.

step{step}                         step1000                        Pythia
ckpt_{number:03}                   ckpt_007                        Amber, K2: counted, one every `interval` updates
stage1-step{step}-tokens{tokens}B  stage1-step1000-tokens5B        OLMo 2: tokens in billions, rounded up
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lawa.errors import UsageError

ROUNDINGS = ("up", "nearest")
_FIELD = re.compile(r"\{(step|number|tokens)(?::0?(\d+))?\}")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """
    pattern        with {step} or {number}, which may have a width ({number:03}), and {tokens}
    interval       updates from one number to the next
    numbered_from  the number of the checkpoint of update `interval`
    tokens         of an update
    rounding       of tokens to billions: up, nearest
    named          {update: its revision} where the pattern does not hold
    """

    pattern: str
    interval: int
    numbered_from: int = 1
    tokens: int = 0
    rounding: str = "up"
    named: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        told = {match[1] for match in _FIELD.finditer(self.pattern)}
        if len(told & {"step", "number"}) != 1 or set("{}") & set(_FIELD.sub("", self.pattern)):
            raise UsageError(
                f"revisions={self.pattern!r} must hold {{step}} or {{number}}, as step{{step}} or ckpt_{{number:03}}; "
                "{tokens} beside it are billions of tokens"
            )
        if "tokens" in told and not self.tokens:
            raise UsageError(f"revisions={self.pattern!r} tells tokens; set batch and context, of which they follow")

    def revision(self, step: int) -> str:
        """What the checkpoint of update `step` is called."""
        if step in self.named:
            return self.named[step]
        values = {
            "step": step,
            "number": step // self.interval - 1 + self.numbered_from,
            "tokens": self._billions(step),
        }
        return _FIELD.sub(lambda match: f"{values[match[1]]:0{match[2] or 1}}", self.pattern)

    def step(self, revision: str) -> int | None:
        """The update that a revision's name tells; None for another name. Tokens may be rounded as they like."""
        named = {name: step for step, name in self.named.items()}
        if revision in named:
            return named[revision]
        if not (match := re.fullmatch(self._expression, revision)):
            return None
        told = match.groupdict()
        if "step" in told:
            return int(told["step"])
        step = (int(told["number"]) + 1 - self.numbered_from) * self.interval
        return step if step >= 0 else None

    def among(self, step: int, revisions: Iterable[str]) -> str | None:
        """The one of `revisions` that is of update `step`; the run's own name for it where that is there."""
        found = [name for name in revisions if self.step(name) == step]
        own = self.revision(step)
        return own if own in found else min(found, default=None)

    @property
    def _expression(self) -> str:
        parts, end = [], 0
        for match in _FIELD.finditer(self.pattern):
            parts += [re.escape(self.pattern[end : match.start()]), rf"(?P<{match[1]}>\d+)"]
            end = match.end()
        return "".join([*parts, re.escape(self.pattern[end:])])

    def _billions(self, step: int) -> int:
        tokens, billion = step * self.tokens, 10**9
        return -(-tokens // billion) if self.rounding == "up" else (2 * tokens + billion) // (2 * billion)
