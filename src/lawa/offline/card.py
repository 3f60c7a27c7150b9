"""README.md of an average: the model card that says how it was made. No torch.

Its front matter is YAML as JSON writes it, as the hub reads it; all else is told by provenance.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa.checkpoints.carry import CONFIG

CARD = "README.md"
DCP = "weights"  # the folder of an output's torch DCP
TAGS = ("lawa", "weight-averaging", "merge")
_ROWS = 100  # of the table of inputs


def card(made: Mapping[str, Any], *, title: str, transformers: bool = True, dcp: bool = False) -> str:
    """The model card of an average with this provenance.

    transformers  whether the directory is a model of transformers: one with a config.json
    dcp           whether its weights are torch DCP's
    """
    use = [*_of_transformers()] if transformers else [*_of_dcp()] if dcp else []
    return "\n".join([*_front(made, transformers), "", f"# {title}", "", *_body(made), *use, ""])


def _front(made: Mapping[str, Any], transformers: bool) -> Iterator[str]:
    repos = sorted({one["repo"] for one in made["inputs"] if "repo" in one})
    matter: dict[str, object] = {"base_model": repos, "base_model_relation": "merge"} if repos else {}
    matter |= {"library_name": "transformers"} if transformers else {}
    matter |= {"tags": list(TAGS)}
    yield "---"
    yield from (f"{key}: {json.dumps(value)}" for key, value in matter.items())
    yield "---"


def _body(made: Mapping[str, Any]) -> Iterator[str]:
    inputs: Sequence[Mapping[str, Any]] = made["inputs"]
    kind = "uniform" if len({one["coefficient"] for one in inputs}) == 1 else "weighted"
    yield (
        f"The {kind} average of the weights of {len(inputs)} checkpoints{_steps(inputs)}, "
        f"by latest weight averaging (LAWA): summed in {made['accumulate']}, oldest first, and rounded once, to "
        f"{' and '.join(made['dtype'])}."
    )
    yield from ("", "## Inputs, oldest first", "", "| checkpoint | step | coefficient | format | dtype | commit |")
    yield "|---|---|---|---|---|---|"
    yield from map(_row, inputs[:_ROWS])
    if len(inputs) > _ROWS:
        yield f"\nand {len(inputs) - _ROWS} more: see `provenance.json`."
    yield ""
    yield from _others(made)
    yield (
        "`provenance.json` lists every input's files with their bytes and, where it is known, their SHA-256, and the "
        "software's versions."
    )
    if made["command"]:
        version = made["versions"]["latest-weight-averaging"]
        yield from ("", "## To make it again", "", f"With latest-weight-averaging {version}:", "")
        yield from ("```", made["command"], "```")


def _of_transformers() -> Iterator[str]:
    yield from ("", "## To use it", "", "```python", "from transformers import AutoModelForCausalLM", "")
    yield from ('model = AutoModelForCausalLM.from_pretrained("…")  # this repository', "```")


def _of_dcp() -> Iterator[str]:
    yield from ("", "## To use it", "", "```python", "import torch.distributed.checkpoint as dcp", "")
    yield from ('dcp.load({"model": model.state_dict()}, checkpoint_id="…/weights")  # of this directory', "```", "")
    yield "`lawa average` makes a Hugging Face model directory of it."


def _others(made: Mapping[str, Any]) -> Iterator[str]:
    """What became of tensors that are not averaged."""
    for names, fate in (
        (made["latest"], "not averaged, but the latest checkpoint's"),
        (made["dropped"], "left out"),
        (sorted(made["tied"]), "tied to others, and written once"),
    ):
        if names:
            some = ", ".join(f"`{name}`" for name in names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            yield f"- {fate}: {some}"
    if made["latest"] or made["dropped"] or made["tied"]:
        yield ""


def _row(one: Mapping[str, Any]) -> str:
    label = _cell(one["label"])
    if "repo" in one and "commit" in one:
        label = f"[{label}](https://huggingface.co/{one['repo']}/tree/{one['commit']})"
    step = "" if one["step"] is None else one["step"]
    commit = one.get("commit", "")[:12]
    return f"| {label} | {step} | {one['coefficient']:.6g} | {one['format']} | {', '.join(one['dtype'])} | {commit} |"


def _steps(inputs: Sequence[Mapping[str, Any]]) -> str:
    known = [one["step"] for one in inputs if one["step"] is not None]
    return f", steps {known[0]} to {known[-1]}" if len(known) == len(inputs) > 1 else ""


def _cell(text: str) -> str:
    for special in "\\`*_[]<>|":
        text = text.replace(special, f"\\{special}")
    return text


def write(directory: Path, made: Mapping[str, Any], *, title: str) -> None:
    """Beside the weights in `directory`."""
    dcp = (directory / DCP).is_dir()
    text = card(made, title=title, transformers=(directory / CONFIG).is_file() and not dcp, dcp=dcp)
    (directory / CARD).write_text(text, encoding="utf-8")
