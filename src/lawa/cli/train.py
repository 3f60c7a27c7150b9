"""lawa train: pre-train a language model with latest weight averaging."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lawa.errors import UsageError, require
from lawa.pretrain.config import Config, load
from lawa.pretrain.directory import FINAL, check_new, check_resumable, way_on
from lawa.pretrain.settings import merge, nested, walk

SUMMARY = "pre-train a language model with latest weight averaging"
USAGE = "lawa train CONFIG.yaml --output RUN [options]\n       lawa train --resume RUN"
DESCRIPTION = """Pre-train a language model with latest weight averaging.

Every setting of the configuration file can be given as a flag, which wins over the file:
--training.lr 4e-3, --data.train '[a.txt, b.txt]'."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the configuration")
    parser.add_argument("--output", metavar="RUN", type=Path, help="the new directory of the run")
    parser.add_argument("--arm", metavar="NAME", help="lay one of the file's arms over it")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run from its latest checkpoint")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    settings = parser.add_argument_group("settings")
    for path, field, hint in walk(Config):
        default = (
            "" if field.default in (None, Ellipsis) or not _plain(field.default) else f" (default {field.default})"
        )
        settings.add_argument(
            f"--{path}",
            dest=f"setting:{path}",
            metavar=_metavar(hint, field.metadata["choices"]),
            default=argparse.SUPPRESS,
            help=(field.metadata["help"] + default).replace("%", "%%"),
        )


def run(given: argparse.Namespace) -> int:
    flags = {key.removeprefix("setting:"): text for key, text in vars(given).items() if key.startswith("setting:")}
    if given.resume is not None:
        if given.config or given.output or given.arm or flags:
            raise UsageError("--resume takes its configuration from the run; give nothing else with it")
    elif not given.config or not given.output:
        raise UsageError("name a configuration and where the run goes: lawa train CONFIG.yaml --output RUN")
    directory = given.resume or given.output
    config = None
    if given.resume is not None:
        check_resumable(directory)
    else:
        check_new(directory)
        overrides: dict[str, Any] = {}
        hints = {path: hint for path, _, hint in walk(Config)}
        for path, text in flags.items():
            overrides = merge(overrides, nested(path, _value(path, text, hints[path])))
        config = load(given.config, arm=given.arm, overrides=overrides)

    try:
        for module in ("torch", "transformers", "rich"):
            require(module, extra="train")
        from lawa.pretrain.run import resume, start

        losses = resume(directory) if config is None else start(config, directory)
    except KeyboardInterrupt:
        print(f"lawa train: interrupted; {way_on(directory)}", file=sys.stderr)
        return 130
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
    texts = hint in (list[str], list[str] | None)
    if texts or hint in (str, str | None):
        if text == "null":
            return None
        if not (texts and text.startswith("[")):
            return [text] if texts else text
    try:
        return yaml.load(text, Loader=yaml.BaseLoader if texts else yaml.SafeLoader)  # the former makes text only
    except yaml.YAMLError:
        raise UsageError(f"--{path} {text!r} is not a value") from None


def _plain(value: object) -> bool:
    return isinstance(value, (str, int, float, bool))


def _metavar(hint: Any, choices: Sequence[str] | None) -> str:
    if choices:
        return "|".join(choices) if len(choices) <= 4 else "NAME"
    text = getattr(hint, "__name__", None) or str(hint)
    for long, short in (("str", "TEXT"), ("int", "N"), ("float", "X"), ("bool", "true|false"), ("dict", "{…}")):
        if text.startswith(long):
            return short
    return "[…]" if "list" in text else "VALUE"
