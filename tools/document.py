"""Write what documents have from elsewhere: numbers from records, docs/configuration.md from the settings themselves.

    python tools/document.py            after make demo, make demo-high and make bench, and after a change of settings
    python tools/document.py --check    exit 1 if a document says something else

The records are copied from runs/ (which git ignores) to docs/demo/ by --take.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import charts  # noqa: E402

from lawa.pretrain.config import Config  # noqa: E402
from lawa.pretrain.reference import Setting, sections  # noqa: E402
from measure import Found, Record, machine, read_found, row, table  # noqa: E402  (it lies beside the benchmarks)

DISK = ROOT / "docs/disk.png"
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/configuration.md")
RUNS = {"demo": "runs/demo/report", "high": "runs/demo-high/report"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--take", action="store_true", help="copy summaries and pictures from runs/ first")
    parser.add_argument("--check", action="store_true", help="change nothing; say whether the documents are true")
    given = parser.parse_args()
    if given.take:
        take()
    demo, high = (summary(name) for name in RUNS)
    cpu = json.loads((ROOT / "benchmarks/results/cpu.json").read_text(encoding="utf-8"))["benchmarks"]
    blocks = {
        "demo": arms(demo),
        "high": arms(high),
        "lead": lead(demo, high),
        "benchmarks": "\n\n".join(["\n".join(section(one)) for one in cpu] + [machine(cpu[-1])]),
        "disk": disk(cpu),
        "costs": costs(cpu),
        "settings": settings(),
    }
    wrong = [path for path in DOCUMENTS if not fill(ROOT / path, blocks, given.check)]
    wrong += [] if draw(cpu, given.check) else [str(DISK.relative_to(ROOT))]
    for path in wrong:
        print(f"{path} differs from what it is made of; run: python tools/document.py", file=sys.stderr)
    return 1 if wrong else 0


def take() -> None:
    (ROOT / "docs/demo").mkdir(exist_ok=True)
    for name, report in RUNS.items():
        found = json.loads((ROOT / report / "summary.json").read_text(encoding="utf-8"))
        for run in found["runs"]:
            run.pop("path")  # of this machine
        (ROOT / f"docs/demo/{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
        shutil.copy(ROOT / report / "losses.png", ROOT / f"docs/demo/{name}.png")


def summary(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"docs/demo/{name}.json").read_text(encoding="utf-8"))


def arms(found: dict[str, Any]) -> str:
    """The report's table, of the arms that the picture shows."""
    lines = ["| arm | what | final loss | gain | largest gain | most ahead |", "|---|---|---|---|---|---|"]
    for arm in found["arms"]:
        if " · " in arm["label"]:
            continue  # an average along a run that replaces
        baseline = arm["label"] == found["baseline"]
        gain = "" if baseline else signed(arm["gain"])
        most = arm["largest_gain"]
        behind = baseline or most is None or most <= 0
        largest = "" if behind else f"{signed(most)} at update {arm['largest_gain_update']}"
        most = arm["most_ahead"]
        ahead = "" if baseline or not most or most <= 0 else f"{most:.0f} updates at {arm['most_ahead_update']}"
        lines.append(f"| {arm['label']} | {arm['what']} | {arm['final_loss']:.4f} | {gain} | {largest} | {ahead} |")
    return "\n".join(lines)


def lead(demo: dict[str, Any], high: dict[str, Any]) -> str:
    """What the demo's records say, in sentences whose numbers are theirs."""

    def of(found: dict[str, Any], label: str) -> dict[str, Any]:
        return next(arm for arm in found["arms"] if arm["label"] == label)

    window, plain, slide = (of(demo, label) for label in ("lawa-5", "plain", "slide"))
    high_plain, high_slide = of(high, "plain"), of(high, "slide-3")
    gained = (
        f"up to {window['largest_gain']:.3f} nats below the plain weights (at update {window['largest_gain_update']})"
    )
    ahead = f"up to {window['most_ahead']:.0f} of {plain['final_update']} updates (at {window['most_ahead_update']})"
    slower = f"ends at {slide['final_loss']:.3f} against {plain['final_loss']:.3f}"
    higher = f"ends at {high_slide['final_loss']:.3f}, plain training at {high_plain['final_loss']:.3f}"
    over_five = of(high, "slide")
    longer = f"is up to {over_five['largest_gain']:.3f} ahead in the middle, and ends at {over_five['final_loss']:.3f}"
    return f"""\
- **In the middle of training the averages are far ahead**: the mean of the last 5 snapshots is {gained}, \
and reaches the same loss earlier by {ahead}. \
When the learning rate decays at the end, plain training catches up (gain {signed(window["gain"], 3)}): part \
of a gain in the middle is what the decay brings later anyway.
- **Replacing the weights slows training at an ordinary learning rate**: literal sliding replacement {slower}. The \
average of the last M snapshots lies behind the latest weights, and going on from it repeats part of the way: with a \
constant drift, progress falls to 2/(M + 1). Clearing the window after each replacement costs less.
- **It bears a higher one**: at five times the learning rate (`make demo-high`), too high for plain training, sliding \
replacement over 3 snapshots {higher}; over 5 it {longer}.

One seed each: hints, not results."""


def section(described: dict[str, Any]) -> list[str]:
    found: list[Found] = list(read_found(described))
    return [f"### {described['benchmark']}", "", table(found)]


def costs(cpu: list[dict[str, Any]]) -> str:
    """What a reader of the README asks for first."""
    asked = {
        "a capture, GPT-2 small / a copy of its weights": "148 tensors): capture into a full window",
        "an EMA at every update / the fastest peer's": "our EMA / the fastest peer",
        "a window of 10 every 100 updates / training": "our Window(10, every=100): 100 updates",
        "an average of 10 snapshots / the memory traffic it must move": "average into memory in use",
        "seconds averaging / seconds training, the demo": "demo, plain (",
        "an update of the driver / of a bare loop, the demo": "demo, plain: the driver",
        "`lawa --help` / an empty Python process": "`lawa --help`",
    }
    records = [one for described in cpu for one in read_found(described) if isinstance(one, Record)]
    lines = ["| what | ratio (least – most) | target |", "|---|---|---|"]
    for text, start in asked.items():
        cells = row(next(record for record in records if start in record.question)).strip("|").split("|")
        lines.append(f"| {text} |{cells[1]}|{cells[2]}|")
    return "\n".join(lines)


def disk(cpu: list[dict[str, Any]]) -> str:
    if not any(described["benchmark"] == "disk" for described in cpu):
        return "Not on record yet."
    return f"![Seconds and peak memory of averaging checkpoints on disk]({DISK.name})"


def draw(cpu: list[dict[str, Any]], check: bool) -> bool:
    """The picture of averaging on disk; whether it was drawn from these records already, or is now."""
    for described in cpu:
        if described["benchmark"] != "disk":
            continue
        if DISK.is_file() and charts.digest(described).encode() in DISK.read_bytes():
            return True
        if check:
            return False
        DISK.write_bytes(charts.picture(described))
    return True


def settings() -> str:
    """A table a section: every setting, what it may be, and what it is when it is not given."""
    blocks = []
    for one in sections(Config):
        rows = "\n".join(f"| {' | '.join(cells(setting))} |" for setting in one.settings)
        heading = f"## {one.name or 'Outside the sections'}\n\n{one.purpose}"
        blocks.append(f"{heading}\n\n| setting | value | default | what it does |\n|---|---|---|---|\n{rows}")
    return "\n\n".join(blocks)


def cells(setting: Setting) -> tuple[str, str, str, str]:
    once = len(setting.choices) > 4 and setting.choices_named  # a long list, which the help has
    choices = "" if once else ", ".join(f"`{choice}`" for choice in setting.choices)
    value = f"{setting.type}: {choices}" if "list" in setting.type and choices else choices or setting.type
    default = "**required**" if setting.required else f"`{setting.default}`" if setting.default else ""
    help = re.sub(r"([<>|])", r"\\\1", setting.help)
    return f"`{setting.path}`", value, default, help


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def fill(path: Path, blocks: dict[str, str], check: bool) -> bool:
    """Put each block between its marks; whether the document was right already, or is now."""
    before = path.read_text(encoding="utf-8")

    def block(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{blocks[match[1]]}\n<!-- /{match[1]} -->"

    after = re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", block, before, flags=re.DOTALL)
    if not check:
        path.write_text(after, encoding="utf-8")
        return True
    return after == before


if __name__ == "__main__":
    sys.exit(main())
