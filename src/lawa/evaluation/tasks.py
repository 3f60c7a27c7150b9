"""Tasks of lm-eval (EleutherAI/lm-evaluation-harness), carried out by lm-eval itself on a model in memory.

What is computed, in which order and with which seeds is lm-eval's own: the numbers are those of

    lm_eval --model hf --model_args pretrained=DIR,dtype=float32 --tasks TASK --batch_size N

on a directory with the same weights, configuration and tokenizer. Each task is run by itself, as a task that is named
alone: with several, lm-eval sorts their requests into common batches, which may change a last digit.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lawa.data.tokenizer import load
from lawa.errors import LawaError, UsageError, require

_EXTRA = "eval"
_DEFINITIONS = (".yaml", ".yml", ".py")  # of tasks


class Tasks:
    """lm-eval's tasks, and those defined in the folders `include`, which come first where names are the same."""

    def __init__(self, names: Sequence[str], include: Sequence[str | Path] = ()) -> None:
        self.names = list(dict.fromkeys(names))
        self.include = [Path(folder) for folder in include]
        if missing := next((folder for folder in self.include if not folder.is_dir()), None):
            raise UsageError(f"--include-path {missing} is no folder; name one that has tasks' YAML files")
        known = self._manager.all_tasks
        if unknown := next((name for name in self.names if name not in known), None):
            near = difflib.get_close_matches(unknown, known, n=3)
            there = f"is it {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists those that it has"
            raise UsageError(f"--tasks {unknown} is no task of lm-eval or of --include-path; {there}")

    @cached_property
    def _manager(self) -> Any:
        manager = require("lm_eval.tasks", extra=_EXTRA).TaskManager
        with _quiet():
            return manager(include_path=[str(folder) for folder in self.include] or None)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What decides the numbers beside the model: lm-eval's version, and the definitions of --include-path."""
        hashed = hashlib.sha256()
        for folder in self.include:
            for file in sorted(file for file in folder.rglob("*") if file.suffix in _DEFINITIONS):
                hashed.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
        return {"lm_eval": require("lm_eval", extra=_EXTRA).__version__, "included": hashed.hexdigest()}

    def run(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: str | Path,
        *,
        batch: int,
        limit: float | None = None,
        fewshot: int | None = None,
    ) -> dict[str, Any]:
        """Of one task or group: lm-eval's own `results`, `versions`, `n-samples` and `configs`, as plain values.

        tokenizer  the folder or hub name that it is read from, as lm-eval reads it; or a tokenizer.json
        limit      documents of each task, or below 1 a share of them
        """
        huggingface, evaluator = (
            require(f"lm_eval.{module}", extra=_EXTRA) for module in ("models.huggingface", "evaluator")
        )
        with _quiet(), _one_sentence(name):
            wrapped = huggingface.HFLM(
                pretrained=model,
                tokenizer=_tokenizer(tokenizer),
                batch_size=batch,
            )
            found = evaluator.simple_evaluate(
                model=wrapped,
                tasks=[name],
                num_fewshot=fewshot,
                batch_size=batch,
                limit=limit,
                log_samples=False,
                task_manager=self._manager,
            )
        told = {
            part: found[part] for part in ("results", "groups", "versions", "n-samples", "configs") if part in found
        }
        plain = require("lm_eval.utils", extra=_EXTRA).handle_non_serializable
        return json.loads(json.dumps(told, default=plain))


def metrics(found: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """(task, metric, value, its standard error if there is one) of what `run` gave."""
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, how = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = values.get(f"{metric}_stderr,{how}")
                yield task, metric if how == "none" else key, value, error if isinstance(error, int | float) else None


def _tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    return (
        load(source) if Path(source).is_file() else AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    )


@contextmanager
def _one_sentence(task: str) -> Iterator[None]:
    """What a task's data or definition raises, as one LawaError."""
    try:
        yield
    except (LawaError, MemoryError, RuntimeError):
        raise
    except Exception as failed:  # of datasets, jinja2, huggingface_hub, a task's own code
        where = traceback.extract_tb(failed.__traceback__)[-1].line  # an assert tells nothing else
        line = str(failed).strip().partition("\n")[0].rstrip(".") or where
        raise LawaError(
            f"lm-eval cannot do the task {task} ({type(failed).__name__}: {line}); see to its data and its definition"
        ) from failed


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's warnings that definitions were replaced and a model in memory was given; stdout is not its."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
