"""The text of the runs that are measured."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from measure import ROOT


def demo_corpus() -> Path:
    """Shakespeare, as the demo has it."""
    corpus = ROOT / ".demo" / "corpus"
    if not any(corpus.glob("*.txt")):
        made = [sys.executable, str(ROOT / "examples" / "demo_corpus.py"), str(corpus)]
        subprocess.run(made, check=True, stdout=sys.stderr)
    return corpus


def small_corpus(folder: Path) -> Path:
    """Documents of a made-up language: where what is read does not matter, and for smoke tests."""
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    draw = random.Random(0)
    words = ["the", "of", "and", "to", "in", "that", "was", "he", "it", "his", "as", "for", "with", "had", "on", "she"]
    for document in range(12):
        sentences = [" ".join(draw.choices(words, k=draw.randint(4, 9))) for _ in range(200)]
        (corpus / f"{document:02}.txt").write_text(". ".join(sentences) + ".\n", encoding="utf-8")
    return corpus
