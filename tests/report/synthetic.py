"""Run directories as a training run writes them, from formulas instead of training.

python tests/report/synthetic.py OUT    writes OUT/plain, OUT/replace, OUT/replace-sliding, to look at a report
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import yaml

EVERY = 20


def run_json(name: str, **changes):
    return {
        "name": name,
        "seed": 0,
        "updates": 1200,
        "tokens_per_update": 1024,
        "mode": "evaluate",
        "replaced_with": None,
        "after_replace": None,
        "strength": 1.0,
        "averages": {},
        "model": {"architecture": "gpt_neox", "parameters": 1_320_000},
        "versions": {"python": "3.11.9", "torch": "2.9.0"},
        "commit": "0123abc",
        "machine": {"system": "Linux", "processor": "an example", "cores": 16},
        "data": {"dataset": "tiny", "validation": "ab12"},
        **changes,
    }


def write(directory: Path, description: dict, lines: list[dict], config: dict | None = None) -> Path:
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(description))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "config.yaml").write_text(yaml.safe_dump(config or {"training": {"lr": 0.004}}))
    return directory


def evaluation(update: int, **losses: float) -> dict:
    snapshots = {name: 5 for name in losses if name != "plain"}
    return {
        "kind": "evaluation", "update": update, "tokens": 1024 * update, "losses": losses, "snapshots": snapshots,
    }  # fmt: skip


def replacement(update: int, loss: float | None, applied: bool = True) -> dict:
    return {
        "kind": "replacement", "update": update, "tokens": 1024 * update,
        "name": "lawa", "snapshots": 5, "applied": applied, "loss": loss,
    }  # fmt: skip


def end(update: int) -> dict:
    seconds = {"training": 80.1, "averaging": 0.4, "evaluation": 12.0, "checkpoints": 1.0}
    return {"kind": "end", "update": update, "tokens": 1024 * update, "seconds": seconds}


def rate(update: int, total: int, peak: float) -> float:
    warm = min(update / 100, 1.0)
    return peak * warm * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * update / total)))


def floor(update: float, slow: float = 1.0) -> float:
    """What the loss would be without the noise of a high learning rate."""
    return 1.44 + 4.2 * math.exp(-update * slow / 45) + 1.05 * math.exp(-update * slow / 420)


def training_lines(total: int, peak: float, dice: random.Random, loss_at) -> list[dict]:
    return [
        {
            "kind": "train", "update": t, "tokens": 1024 * t, "loss": loss_at(t) - 0.03 + dice.gauss(0, 0.05),
            "lr": rate(t, total, peak), "grad_norm": 0.9,
        }
        for t in range(5, total + 1, 5)
    ]  # fmt: skip


def plain(directory: Path, total: int = 1200, peak: float = 4e-3) -> Path:
    dice = random.Random(1)

    def live(t):
        return floor(t) + 26 * rate(t, total, peak) * (1 - math.exp(-t / 150)) + 0.05

    lines = training_lines(total, peak, dice, live)
    for t in range(EVERY, total + 1, EVERY):
        losses = {"plain": live(t) + dice.gauss(0, 0.006)}
        if t >= 5 * EVERY:
            losses["lawa-5"] = floor(t - 28) + 8 * rate(t, total, peak) + 0.045 + dice.gauss(0, 0.002)
        losses["ema"] = floor(max(t - 36, 1)) + 11 * rate(t, total, peak) + 0.05 + dice.gauss(0, 0.002)
        lines.append(evaluation(t, **losses))
    lines.append(end(total))
    averages = {"lawa-5": "window 5, every 20, uniform", "ema": "EMA beta 0.98, every 1"}
    config = {
        "name": "plain", "seed": 0, "training": {"lr": peak, "updates": total}, "averaging": {"mode": "evaluate"},
    }  # fmt: skip
    return write(directory, run_json("plain", averages=averages, updates=total), lines, config)


def replacing(directory: Path, name: str, slide: bool, total: int = 1200, peak: float = 4e-3) -> Path:
    dice = random.Random(2)
    slow = 0.4 if slide else 0.88
    every = EVERY if slide else 5 * EVERY

    def after(t):
        return floor(t, slow) + 13 * rate(t, total, peak) + 0.05

    def live(t):
        since = t % every or every
        return after(t) + (0.09 if slide else 0.16) * (1 - math.exp(-since / 12)) * rate(t, total, peak) / peak

    lines = training_lines(total, peak, dice, live)
    for t in range(EVERY, total + 1, EVERY):
        due = t >= 5 * EVERY and t % every == 0
        losses = {"plain": live(t) + dice.gauss(0, 0.006)}
        if due:
            losses["lawa"] = after(t) + dice.gauss(0, 0.002)
        lines.append(evaluation(t, **losses))
        if due:
            lines.append(replacement(t, losses["lawa"]))
    lines.append(end(total))
    lines.sort(key=lambda line: line["update"])
    description = run_json(
        name,
        mode="replace",
        replaced_with="lawa",
        after_replace="slide" if slide else "clear",
        averages={"lawa": "window 5, every 20, uniform"},
    )
    config = {
        "name": name, "seed": 0, "training": {"lr": peak, "updates": total},
        "averaging": {"mode": "replace", "after_replace": description["after_replace"]},
    }  # fmt: skip
    return write(directory, description, lines, config)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    plain(out / "plain")
    replacing(out / "replace", "replace", slide=False)
    replacing(out / "replace-sliding", "replace-sliding", slide=True)
