"""`lawa evaluate`: checkpoints and averages of them on texts and tasks, each once; what is recorded is not done again.

inputs → select → hub → what each is (digests) → per mean: recorded? else load → average → model → score → record

A checkpoint is loaded once, while windows slide over it, and averages are not written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lawa.checkpoints import formats, hub
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.layouts.transformers5 import names_in_files
from lawa.checkpoints.select import Found, resolve
from lawa.checkpoints.sources import stamps
from lawa.data.tokenizer import fingerprint
from lawa.errors import LawaError
from lawa.evaluation.asked import Asked
from lawa.evaluation.done import Done, key_of
from lawa.evaluation.model import make_model
from lawa.evaluation.reading import Reading, home, path_of
from lawa.evaluation.score import score
from lawa.evaluation.tasks import Tasks
from lawa.evaluation.text import Text
from lawa.offline import in_memory, provenance
from lawa.offline.plan import Mean
from lawa.offline.scratch import scratch
from lawa.offline.windows import used
from lawa.records import provenance as machine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMAT = 1  # of the records

Resolve = Callable[..., list[Found]]  # with select.resolve's signature


class Evaluating:
    """What was asked for, found and fetched when this is made; `run` carries it out.

    resolve  finds the checkpoints that are meant: select.resolve, or what knows more names than it does
    means    what is evaluated, by index into `found`
    notes    what a person wants to know
    """

    def __init__(self, asked: Asked, *, resolve: Resolve = resolve) -> None:
        self.asked = asked
        self.done = Done(asked.output)
        self.tasks = Tasks(asked.tasks, asked.include) if asked.tasks else None
        found = resolve(asked.inputs, asked.selection, trajectory=asked.windows is not None, offline=asked.offline)
        if asked.windows is None:
            means, self.notes = [Mean(one.label, (at,), None) for at, one in enumerate(found)], []
        else:
            means, self.notes = asked.windows.means(found)
        found, means = used(found, means)
        self.found = _fetched(found, offline=asked.offline)
        self.means = sorted(means, key=lambda mean: mean.inputs[-1])  # so that windows slide
        self.reading = Reading(asked)
        self._check_duplicates()

    @cached_property
    def described(self) -> list[dict[str, Any]]:
        """The checkpoints as records tell them, with the SHA-256 of every file of weights."""
        lights = [_light(one) for one in self.found]
        return [
            {key: value for key, value in one.items() if key != "dtype"}
            for one in provenance.inputs(lights, self.found, digest=True, threads=os.cpu_count() or 1)
        ]

    def run(self) -> Iterator[dict[str, Any]]:
        """A record for each mean and each text and task, in that order, as it is known.

        name  step  inputs  average (None: the checkpoint itself)  on {text | task}  score | results
        settings  versions  machine  again (whether it was there before)
        """
        loaded: dict[int, in_memory.Snapshot] = {}
        for number, mean in enumerate(self.means):
            questions = list(self._questions(mean))
            known = [self.done.find(key) for _, key, _ in questions]
            model = None if all(known) else self._model(mean, loaded)
            for (on, key, told), record in zip(questions, known, strict=True):
                if record is not None:
                    yield {**record, "name": mean.name, "again": True}
                    continue
                assert model is not None  # something is not known
                made = self.done.add(
                    key, mean.name, {**told, **self._answer(model, mean, on), **machine(("transformers",))}
                )
                yield {**made, "again": False}
            del model
            needed = {index for later in self.means[number + 1 :] for index in later.inputs}
            loaded = {index: one for index, one in loaded.items() if index in needed}

    def _questions(self, mean: Mean) -> Iterator[tuple[Text | str, str, dict[str, Any]]]:
        """(the text, or the task's name; the record's key; what the record tells beside the answer)."""
        asked, average = self.asked, self._average(mean)
        inputs = [self.described[index] for index in mean.inputs]
        latest = self.found[mean.inputs[-1]]
        model = {
            "inputs": [[file["sha256"] for file in one["files"]] for one in inputs],
            "config": self.reading.config_digest(latest),
            "average": average,
            "dtype": asked.dtype,
        }
        told = {
            "name": mean.name,
            "step": latest.step,
            "inputs": inputs,
            "average": average,
            "settings": {"dtype": asked.dtype, "device": asked.device, "batch": asked.batch, "limit": asked.limit},
        }
        for text in self.reading.texts(latest):
            question = {"format": _FORMAT, "model": model, "text": text.digest}
            on = {"text": text.name, "digest": text.digest, "context": text.context}
            yield text, key_of(question), {**told, "on": on}
        if self.tasks is None:
            return
        for task in self.tasks.names:
            known = {"task": task, **self.tasks.identity, "limit": asked.limit, "fewshot": asked.fewshot}
            tokenizer = fingerprint(self.reading.tokenizer(latest))
            question = {"format": _FORMAT, "model": model, "tokenizer": tokenizer, **known}
            yield task, key_of(question), {**told, "on": known}

    def _answer(self, model: PreTrainedModel, mean: Mean, on: Text | str) -> dict[str, Any]:
        asked = self.asked
        if isinstance(on, Text):
            return {"score": asdict(score(model, on, batch=asked.batch))}
        assert self.tasks is not None
        tokenizer = self.reading.tokenizer(self.found[mean.inputs[-1]])
        found = self.tasks.run(on, model, tokenizer, batch=asked.batch, limit=asked.limit, fewshot=asked.fewshot)
        return {"results": found}

    def _average(self, mean: Mean) -> dict[str, Any] | None:
        """What decides its bits beside its inputs; None of one checkpoint, which is itself."""
        asked = self.asked
        if len(mean.inputs) == 1:
            return None
        return {
            "coefficients": mean.coefficients,
            "accumulate": asked.accumulate,
            "out_dtype": asked.out_dtype,
            "policy": asdict(asked.policy),
        }

    def _model(self, mean: Mean, loaded: dict[int, in_memory.Snapshot]) -> PreTrainedModel:
        asked, latest = self.asked, self.found[mean.inputs[-1]]
        shape = self.reading.shape(latest)
        for index in mean.inputs:
            if index not in loaded:
                loaded[index] = self._load(index, shape.model_type)
        labels = [self.found[index].label for index in mean.inputs]
        snapshots = [loaded[index] for index in mean.inputs]
        if len(snapshots) == 1:
            weights = in_memory.kept(snapshots[0], asked.policy, label=labels[0])
        else:
            weights = in_memory.average(
                snapshots, mean.coefficients,
                accumulate=asked.accumulate, out_dtype=asked.out_dtype, policy=asked.policy, labels=labels,
            )  # fmt: skip
        return make_model(
            shape, weights, label=mean.name,
            dtype=getattr(torch, asked.dtype), device=asked.device, home=home(latest),
        )  # fmt: skip

    def _load(self, index: int, model_type: str) -> in_memory.Snapshot:
        """By the names of transformers' files; what has to be put together is so in a scratch folder, for a moment."""
        one = self.found[index]
        with scratch(_beside(self.asked.output)) as folders:
            catalog = formats.catalog(path_of(one), label=one.label, scratch=folders)
            names = names_in_files(model_type, catalog.tensors)
            return in_memory.load(replace(catalog, tensors={names[name]: at for name, at in catalog.tensors.items()}))

    def _check_duplicates(self) -> None:
        """Inputs with the same files: an error where they are averaged, since each would count; else a note."""
        first: dict[str, str] = {}
        for one in self.described if len(self.found) > 1 and not self.asked.allow_duplicates else ():
            content = key_of({"files": [file["sha256"] for file in one["files"]]})
            twin = first.setdefault(content, one["label"])
            if twin == one["label"]:
                continue
            same = f"{twin} and {one['label']} have the same content"
            if self.asked.windows is not None:
                raise LawaError(f"{same}; is each what it says? Leave one out, or average both with --allow-duplicates")
            self.notes.append(same)


def _fetched(found: Sequence[Found], *, offline: bool) -> list[Found]:
    """Those of the hub with their commit in their label and their place on this machine."""
    repos = list(dict.fromkeys(one.repo for one in found if one.repo and one.path is None))
    pinned = dict(zip(repos, hub.pin_all(repos, offline=offline), strict=True))
    paths = dict(zip(repos, hub.fetch_all(list(pinned.values())), strict=True))
    return [
        replace(one, path=paths[one.repo], label=pinned[one.repo].label) if one.repo in paths else one for one in found
    ]


def _light(one: Found) -> Catalog:
    """The checkpoint without its tensors, for a description of its files of weights."""
    path = path_of(one)
    seen = formats.foreseen(path, label=one.label)
    sources = seen.sources if seen is not None and seen.sources else stamps(path)
    return Catalog(label=one.label, directory=None, format=formats.look(path).name, tensors={}, sources=sources)


def _beside(output: Path | None) -> Path:
    """What scratch folders are named after: on the disk of the records, else where the system has such files."""
    return output.absolute() if output is not None else Path(tempfile.gettempdir()) / f"lawa-evaluate-{os.getuid()}"


def evaluate(asked: Asked, *, resolve: Resolve = resolve) -> Iterable[dict[str, Any]]:
    """The records of Evaluating(asked).run()."""
    return Evaluating(asked, resolve=resolve).run()
