"""A user's own trajectory: a few lines of YAML, a run of lawa train; what is wrong is named."""

import pytest
import yaml

from lawa.errors import LawaError, UsageError
from lawa.pretrain.config import load
from lawa.trajectories import families
from lawa.trajectories.registry import find

MINE = """
repo: me/mine
revisions: checkpoint-{step}
interval: 500
total: 20000
batch: 256
context: 1024
training: {lr: 3e-4, min_lr: 3e-5, schedule: cosine, warmup: 200}
"""


@pytest.fixture
def mine(tmp_path):
    def write(text=MINE):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def test_a_few_lines_are_enough(mine):
    run = find(mine())
    assert (run.name, run.family, run.repo, run.tokenizer) == ("mine", "mine", "me/mine", "me/mine")
    assert [*run.steps] == [*range(500, 20_001, 500)]
    assert (run.revision(1500), run.step("checkpoint-1500"), run.step("main")) == ("checkpoint-1500", 1500, None)
    assert run.rate(200) == 3e-4
    assert run.rate(20_000) == pytest.approx(3e-5)
    assert run.tokens(10) == 10 * 256 * 1024
    assert (run.data, run.optimizer, dict(run.bad), run.horizon) == (None, None, {}, 20_000)
    assert "beta1" not in run.training, "what is not told is not known"


def test_all_that_can_be_told(mine):
    run = find(
        mine(
            MINE
            + """
name: other
main: 20000
steps: ["0, 1", "1000:20000:1000", 1234]
vocab_size: 4096
tokenizer: me/words
data: {kind: preshuffled, repo: me/tokens, files: {pattern: "part-{:02}.bin", count: 3}}
optimizer: {repo: me/states, format: neox, revisions: "global_step{step}", steps: ["10000:20000:10000"]}
bad: {"1000, 3000:5000:1000": uploaded twice}
same: [[checkpoint-0, checkpoint-1]]
notes: [mine]
"""
        )
    )
    assert (run.name, run.vocab_size, run.tokenizer, run.step("main")) == ("other", 4096, "me/words", 20_000)
    assert run.steps[:4] == (0, 1, 1000, 1234)
    assert run.data["files"] == ["part-00.bin", "part-01.bin", "part-02.bin"]
    assert run.optimizer["steps"] == (10_000, 20_000)
    assert run.bad == dict.fromkeys([1000, 3000, 4000, 5000], "uploaded twice")
    assert run.notes == ["mine"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("intervall: 5", "unknown setting intervall; did you mean interval?"),
        ("interval: 0", "trajectory.interval=0 must be at least 1"),
        ("total: many", "total='many' must be a whole number"),
        ("batch: -1", "trajectory.batch=-1 must be at least 0"),
        ("rounding: down", "trajectory.rounding='down' must be one of up, nearest"),
        ("revisions: main", "revisions='main' must hold {step} or {number}"),
        ("revisions: '{step}-{number}'", "must hold {step} or {number}"),
        ("revisions: 'step{step.__class__}'", "must hold {step} or {number}"),
        ("steps: [1, often]", "steps holds 'often', and not updates: N, or A:B:S with both ends"),
        ("steps: ['1:9:0']", "steps holds '1:9:0', and not updates"),
        ("steps: [30000]", "steps holds 30000, beyond total=20000"),
        ("training: {lr: 1e-3, shedule: cosine}", "unknown setting training.shedule; did you mean training.schedule?"),
        ("training: {schedule: cosine}", "training.lr is not set: the peak learning rate"),
        ("training: {lr: 1e-3, schedule: cos}", "training.schedule='cos' must be one of constant, linear, cosine"),
        ("training: {lr: 1e-3, updates: 9}", "training.updates is told beside training, as total"),
        ("training: {lr: 1e-3, batch: 9}", "training.batch is told beside training, as batch"),
        ("data: {kind: parquet}", "data.kind='parquet' must be one of preshuffled, documents, run, chunks, indices"),
        (
            "data: {kind: chunks, files: {pattern: 'a{x}', count: 2}}",
            "data.files must be names of files, or their ",
        ),
        ("optimizer: {repo: a/b, format: megatron}", "optimizer.format='megatron' must be one of neox, olmo"),
        ("optimizer: {format: neox}", "optimizer needs either a repo or a url"),
        ("optimizer: {repo: a/b}", "optimizer.format is not set"),
        ("bad: {some: why}", "bad holds 'some', and not updates"),
        ("bad: [1000]", "bad=[1000] must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(mine, line, said):
    key = line.partition(":")[0]
    path = mine("\n".join([one for one in MINE.splitlines() if not one.startswith(f"{key}:")] + [line]))
    with pytest.raises(UsageError) as wrong:
        find(path)
    assert str(wrong.value).startswith(f"{path}: ")
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_what_is_missing_is_named(mine):
    for key in ("repo", "revisions", "interval", "total"):
        with pytest.raises(UsageError, match=f"{key} is not set: "):
            find(mine("\n".join(one for one in MINE.splitlines() if not one.startswith(f"{key}:"))))
    with pytest.raises(UsageError, match=r"tells tokens; set batch and context, of which they follow"):
        find(mine("repo: a/b\nrevisions: 'step{step}-tokens{tokens}B'\ninterval: 1\ntotal: 2\n"))


def test_without_its_training_a_run_has_checkpoints_all_the_same(mine):
    run = find(mine("repo: a/b\nrevisions: ckpt_{number:02}\nnumbered_from: 0\ninterval: 10\ntotal: 35\n"))
    assert [run.revision(step) for step in run.steps] == ["ckpt_00", "ckpt_01", "ckpt_02"]
    assert (run.step("ckpt_07"), run.step("ckpt-07")) == (80, None)
    with pytest.raises(LawaError, match="the learning rate of mine is not known"):
        run.rate(1)


def test_layers_of_a_family_are_laid_over_one_another():
    values = {
        "family": "f",
        "common": {"revisions": "step{step}", "interval": 10, "total": 20, "batch": 4, "context": 8, "notes": ["all"],
                   "training": {"warmup": 2}, "data": {"kind": "chunks", "repo": "o/{name}"}},
        "sizes": {"s": {"training": {"lr": 0.1}, "notes": ["small"]}, "l": {"training": {"lr": 0.2}, "batch": 16}},
        "runs": [{"name": "r-{size}", "for": {"size": ["s", "l"]}, "repo": "o/r-{size}", "notes": ["run"]},
                 {"name": "x-{size}-{seed}", "for": {"size": ["s"], "seed": [1, 2]}, "repo": "o/{name}"}],
        "one": {"r-l": {"data": None}, "x-s-2": {"total": 30, "notes": ["alone"], "bad": {"10": "{name} is bad"}}},
    }  # fmt: skip
    found = {one.name: one for one in families.of_family(values)}
    assert [*found] == ["r-s", "r-l", "x-s-1", "x-s-2"]
    assert (found["r-s"].training["lr"], found["r-l"].training["lr"], found["r-l"].batch) == (0.1, 0.2, 16)
    assert (found["r-s"].training["warmup"], found["r-l"].data) == (2, None)
    assert found["r-s"].notes == ["run", "small", "all"]
    assert (found["x-s-2"].total, found["x-s-1"].total, found["x-s-2"].notes[0]) == (30, 20, "alone")
    assert (found["x-s-1"].repo, found["x-s-1"].data["repo"]) == ("o/x-s-1", "o/x-s-1")
    assert found["x-s-2"].bad == {10: "x-s-2 is bad"}


def test_a_run_of_lawa_train(own_run):
    run = find(own_run)
    assert (run.name, run.family, run.repo) == (own_run.name, "own", str(own_run))
    assert {step: folder.name for step, folder in run.folders.items()} == {step: f"step{step:08}" for step in run.steps}
    assert (run.revision(4), run.step("step00000004"), run.total) == ("step00000004", 4, 12)
    assert run.rate(3) == load(own_run / "config.yaml").training.rate(3) > 0
    assert not {"micro_batch", "device", "log_every", "start"} & {*run.training}
    assert run.data["kind"] == "run"
    assert (run.data["batch"], run.data["context"]) == (run.batch, run.context)
    assert run.vocab_size > 0


def test_a_path_comes_before_a_registered_name(own_run, tmp_path, monkeypatch):
    (tmp_path / "amber").symlink_to(own_run)
    (tmp_path / "k2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("amber").family == "own"
    assert find("k2").family == "llm360", "a folder that is no run"


def test_a_branched_run_is_one_too(own_run, tmp_path):
    """A factor on its rate is part of the rule; its batches are those it was given."""
    values = yaml.safe_load((own_run / "config.yaml").read_text())
    values["training"] |= {"lr_scale": 2.0, "min_lr": 1e-3, "start": 4, "rewarmup": 3}
    values["model"] |= {"weights": "released", "architecture": None, "overrides": {}}
    values["data"] |= {"train": None, "store": None, "batches": {"preshuffled": {"files": ["a.bin"], "batch": 4}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run = find(tmp_path)
    assert (run.training["lr"], run.training["min_lr"], run.rate(12)) == (2e-2, 2e-3, 2e-3)
    assert run.data == {"kind": "preshuffled", "files": ["a.bin"], "batch": 4}
    assert (run.steps, run.notes) == ((), ["updates 5 … 7 had smaller rates (training.rewarmup)"])
    with pytest.raises(LawaError, match=r"has no checkpoint of update 4; none is known"):
        run.revision(4)
