"""lawa train: pre-train a language model with latest weight averaging."""

from __future__ import annotations

import argparse
import json
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawa.errors import UsageError, require
from lawa.pretrain.config import Config, load
from lawa.pretrain.directory import FINAL, check_new, check_resumable, way_on
from lawa.pretrain.reference import sections
from lawa.pretrain.signals import Stopped, Terminated, terminable
from lawa.settings import merge, nested, walk

SUMMARY = "pre-train a language model with latest weight averaging"
USAGE = "lawa train CONFIG.yaml --output RUN [options]\n       lawa train --resume RUN [options]"
DESCRIPTION = """Pre-train a language model with latest weight averaging.

Every setting of the configuration file can be given as a flag, which wins over the file:
--training.lr 4e-3, --data.train '[a.txt, b.txt]'."""
_FEW = 4  # choices that a flag shows beside its name; more are listed in its help


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the configuration")
    parser.add_argument("--output", metavar="RUN", type=Path, help="the new directory of the run")
    parser.add_argument("--arm", metavar="NAME", help="lay one of the file's arms over it")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run from its latest checkpoint")
    parser.add_argument(
        "--override", action="store_true", help="with --resume: also take settings that make it another run"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    for section in sections(Config):
        group = parser.add_argument_group(section.name or "seed", section.purpose)
        for setting in section.settings:
            default = f" (default {setting.default})" if setting.default else ""
            listed = len(setting.choices) > _FEW and not setting.choices_named
            choices = f": {', '.join(setting.choices)}" if listed else ""
            group.add_argument(
                f"--{setting.path}",
                dest=f"setting:{setting.path}",
                metavar=_metavar(setting.hint, setting.choices),
                default=argparse.SUPPRESS,
                help=(setting.help + choices + default).replace("%", "%%"),
            )


def run(given: argparse.Namespace) -> int:
    flags = {key.removeprefix("setting:"): text for key, text in vars(given).items() if key.startswith("setting:")}
    if given.resume is not None:
        if given.config or given.output or given.arm:
            raise UsageError("--resume takes its configuration from the run; give only settings to change with it")
    elif not given.config or not given.output:
        raise UsageError("name a configuration and where the run goes: lawa train CONFIG.yaml --output RUN")
    elif given.override:
        raise UsageError("--override belongs to --resume; a new run takes every setting")
    directory = given.resume or given.output
    overrides: dict[str, Any] = {}
    hints = {path: hint for path, _, hint in walk(Config)}
    for path, text in flags.items():
        overrides = merge(overrides, nested(path, _value(path, text, hints[path])))
    config = None
    main = int(os.environ.get("RANK", "0")) == 0  # as torchrun and accelerate launch tell
    if given.resume is not None:
        check_resumable(directory, updates=overrides.get("training", {}).get("updates"))
    else:
        if main:
            check_new(directory)
        config = load(given.config, arm=given.arm, overrides=overrides)

    try:
        with terminable():
            for module in ("torch", "transformers", "accelerate", "rich"):
                require(module, extra="train")
            from lawa.pretrain.ranks import leave
            from lawa.pretrain.run import resume, start

            try:
                if config is None:
                    losses = resume(directory, overrides=overrides, force=given.override)
                else:
                    losses = start(config, directory)
            except Stopped as stopped:
                leave()
                if main:
                    print(f"lawa train: {stopped}; {way_on(directory)}", file=sys.stderr)
                return 128 + stopped.signal_number
    except KeyboardInterrupt as interrupted:
        print(f"lawa train: interrupted; {way_on(directory)}", file=sys.stderr)
        return 143 if isinstance(interrupted, Terminated) else 130
    leave()
    if not main:
        return 0
    if given.json:
        print(json.dumps({"run": str(directory), "losses": losses}))
    else:
        for name, loss in losses.items():
            print(f"{name:<16} validation loss {loss:.4f}")
        print(f"model: {directory / FINAL}")
    return 0


def _value(path: str, text: str, hint: Any) -> Any:
    """A flag's text as YAML has it, so that lists and mappings can be written; text itself stays as it is given."""
    yaml = require("yaml", extra="train")
    texts = hint == list[str] or list[str] in typing.get_args(hint)
    if texts or hint in (str, str | None):
        if text == "null":
            return None
        if not (texts and text.startswith(("[", "{"))):
            return [text] if texts else text
    try:
        return yaml.load(text, Loader=yaml.BaseLoader if texts else yaml.SafeLoader)  # the former makes text only
    except yaml.YAMLError:
        raise UsageError(f"--{path} {text!r} is not a value") from None


def _metavar(hint: Any, choices: Sequence[str]) -> str:
    if choices:
        return "|".join(choices) if len(choices) <= _FEW else "NAME"
    text = getattr(hint, "__name__", None) or str(hint)
    for long, short in (("str", "TEXT"), ("int", "N"), ("float", "X"), ("bool", "true|false"), ("dict", "{…}")):
        if text.startswith(long):
            return short
    return "[…]" if "list" in text else "VALUE"
