"""What an output says of its making: every input with its files, digests that somebody knows, and the card."""

import hashlib
import json
from pathlib import Path

import pytest

from lawa.checkpoints.catalog import Catalog, Stored
from lawa.checkpoints.formats.safetensors import header_bytes, read_header
from lawa.checkpoints.hub import Repo
from lawa.checkpoints.publish import write_manifest
from lawa.checkpoints.select import Found
from lawa.checkpoints.sources import stamps
from lawa.offline import card, provenance
from lawa.offline.plan import Mean, Plan, make_plan
from lawa.offline.policy import Policy, match

Tensors = dict[str, tuple[str, tuple[int, ...]]]
PLAIN: Tensors = {"w": ("float32", (3, 2)), "n": ("int64", (2,))}


def weights(file: Path, tensors: Tensors = PLAIN, fill: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    begin, _ = header_bytes([(name, dtype, shape) for name, (dtype, shape) in tensors.items()], {})
    nbytes = sum(Stored(file, 0, dtype, shape).nbytes for dtype, shape in tensors.values())
    file.write_bytes(begin + bytes([fill]) * nbytes)
    return file


def catalog(path: Path, *files: Path, label: str = "") -> Catalog:
    tensors = {name: at for file in files for name, at in read_header(file).tensors.items()}
    return Catalog(label=label or path.name, directory=path, format="hf", tensors=tensors)


def planned(catalogs: list[Catalog], *means: Mean, out_dtype: str | None = None, policy: Policy | None = None) -> Plan:
    return make_plan(catalogs, match(catalogs, policy or Policy()), means, out_dtype=out_dtype)


@pytest.fixture
def two(tmp_path: Path) -> list[Catalog]:
    return [
        catalog(tmp_path / name, weights(tmp_path / name / "model.safetensors", fill=fill))
        for fill, name in enumerate(("step1", "step2"), start=1)
    ]


def found(path: Path, step: int | None, repo: Repo | None = None) -> Found:
    return Found(label=path.name, step=step, path=path, repo=repo)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_every_input_of_the_mean_oldest_first(two: list[Catalog], tmp_path: Path) -> None:
    plan = planned(two, Mean("a", (0, 1), (0.25, 0.75)), Mean("b", (1,), None))
    inputs = provenance.inputs(two, [found(tmp_path / "step1", 1), found(tmp_path / "step2", 2)])
    made = provenance.describe(plan, plan.means[0], inputs, policy=Policy(latest=("x*",)), command="lawa average …")
    assert made["inputs"] == [
        {
            "label": f"step{step}", "coefficient": weight, "step": step, "format": "hf", "dtype": ["float32", "int64"],
            "files": [{"name": "model.safetensors", "bytes": two[0].files[0].stat().st_size}],
        }
        for step, weight in ((1, 0.25), (2, 0.75))
    ]  # fmt: skip
    assert {key: made[key] for key in ("average", "kind", "update", "snapshots", "accumulate", "dtype", "rounded")} == {
        "average": "a", "kind": "2 checkpoints on disk, weighted", "update": 2, "snapshots": [1, 2],
        "accumulate": "float32", "dtype": ["float32"], "rounded": False,
    }  # fmt: skip
    assert made["policy"] == {"ignore": (), "latest": ("x*",), "buffers": "drop", "ties": "keep"}
    assert (made["latest"], made["dropped"], made["tied"]) == (["n"], [], {})
    assert made["command"] == "lawa average …"
    assert made["versions"]["latest-weight-averaging"]
    other = provenance.describe(plan, plan.means[1], inputs)
    assert [(one["label"], one["coefficient"]) for one in other["inputs"]] == [("step2", 1.0)]
    assert json.loads(json.dumps(made))["inputs"] == made["inputs"]


def test_without_steps_snapshots_are_counted(two: list[Catalog]) -> None:
    plan = planned(two, Mean("", (0, 1), None))
    made = provenance.describe(plan, plan.means[0])
    assert (made["average"], made["update"], made["snapshots"]) == (None, None, 2)
    assert [one["coefficient"] for one in made["inputs"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("stored", "out", "rounded"),
    [
        ("float32", None, False), ("float32", "bfloat16", True), ("bfloat16", "float32", False),
        ("float16", "bfloat16", True), ("float64", "float32", True), ("bfloat16", "bfloat16", False),
    ],
)  # fmt: skip
def test_rounded_where_the_output_does_not_hold_what_an_input_has(
    stored: str, out: str | None, rounded: bool, tmp_path: Path
) -> None:
    one = catalog(tmp_path, weights(tmp_path / "model.safetensors", {"w": (stored, (4,))}))
    plan = planned([one], Mean("", (0,), None), out_dtype=out)
    assert provenance.describe(plan, plan.means[0])["rounded"] is rounded


@pytest.mark.parametrize(
    ("stored", "sums", "rounded"),
    [
        ("bfloat16", "float32", True), ("float16", "float32", True), ("float32", "float32", False),
        ("float32", "float64", True), ("float64", "float64", False),
    ],
)  # fmt: skip
def test_rounded_where_the_output_does_not_hold_the_sums(stored: str, sums: str, rounded: bool, tmp_path: Path) -> None:
    catalogs = [
        catalog(tmp_path / name, weights(tmp_path / name / "model.safetensors", {"w": (stored, (4,))})) for name in "ab"
    ]
    plan = make_plan(catalogs, match(catalogs, Policy()), [Mean("", (0, 1), None)], accumulate=sums)
    assert provenance.describe(plan, plan.means[0])["rounded"] is rounded


def test_what_is_not_averaged_is_named(tmp_path: Path) -> None:
    tensors: Tensors = {**PLAIN, "m.rotary_emb.inv_freq": ("float32", (2,)), "frozen": ("float32", (1,))}
    one = catalog(tmp_path, weights(tmp_path / "model.safetensors", tensors))
    tied = Catalog(**{**vars(one), "tensors": {**one.tensors, "head": one.tensors["w"]}})
    policy = Policy(latest=("frozen",))
    plan = planned([tied], Mean("", (0,), None), policy=policy)
    made = provenance.describe(plan, plan.means[0], policy=policy)
    assert sorted(made["latest"]) == ["frozen", "n"]
    assert made["dropped"] == ["m.rotary_emb.inv_freq"]
    assert made["tied"] == {"head": "w"}
    said = card.card(made, title="t")
    for line in ("latest checkpoint's: `n`, `frozen`", "left out: `m.rotary_emb.inv_freq`", "written once: `head`"):
        assert line in said


# ---- digests


def test_a_manifest_knows_digests_and_is_believed_where_the_bytes_are_right(two: list[Catalog], tmp_path: Path) -> None:
    file = two[0].files[0]
    write_manifest(file.parent)
    where = [found(tmp_path / "step1", 1), found(tmp_path / "step2", 2)]
    known, unknown = (one["files"][0] for one in provenance.inputs(two, where))
    assert known["sha256"] == digest(file)
    assert known["known_by"] == "manifest"
    assert unknown.keys() == {"name", "bytes"}
    file.write_bytes(file.read_bytes() + b"!")
    assert "sha256" not in provenance.inputs(two, where)[0]["files"][0]


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"model.safetensors": {"bytes": 3}}}', '{"name": "an app"}'])
def test_another_program_s_manifest_is_passed_over(text: str, two: list[Catalog], tmp_path: Path) -> None:
    (tmp_path / "step1" / "manifest.json").write_text(text)
    assert "sha256" not in provenance.inputs(two, [found(tmp_path / "step1", 1), found(tmp_path / "step2", 2)])[0]


def test_digests_are_computed_only_where_nobody_told_them(
    two: list[Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(two[0].files[0].parent)
    read: list[Path] = []
    real = provenance.sha256
    monkeypatch.setattr(provenance, "sha256", lambda file: read.append(file) or real(file))
    inputs = provenance.inputs(two, digest=True, threads=2)
    assert [one["files"][0]["sha256"] for one in inputs] == [digest(one.files[0]) for one in two]
    assert [one["files"][0]["known_by"] for one in inputs] == ["manifest", "reading it"]
    assert read == two[1].files


def in_cache(tmp_path: Path, blob: str) -> Path:
    """A snapshot as huggingface_hub keeps it."""
    folder = tmp_path / "models--EleutherAI--pythia-14m"
    weights(folder / "blobs" / blob)
    snapshot = folder / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob)
    return snapshot


@pytest.mark.parametrize("asked", [True, False])
def test_the_hub_s_cache_tells_repo_commit_and_digests(asked: bool, tmp_path: Path) -> None:
    snapshot = in_cache(tmp_path, "c" * 64)
    one = catalog(snapshot, snapshot / "model.safetensors")
    repo = Repo("EleutherAI/pythia-14m", "step1000") if asked else None
    [described] = provenance.inputs([one], [found(snapshot, 1000, repo)])
    assert described["repo"] == "EleutherAI/pythia-14m"
    assert described["commit"] == "ab" * 20
    assert described.get("revision") == ("step1000" if asked else None)
    assert described["files"][0]["sha256"] == "c" * 64
    assert described["files"][0]["known_by"] == "hub"


def test_a_small_file_s_blob_is_no_sha256(tmp_path: Path) -> None:
    snapshot = in_cache(tmp_path, "c" * 40)  # git's own, of files that are not in LFS
    [described] = provenance.inputs([catalog(snapshot, snapshot / "model.safetensors")])
    assert described["files"][0].keys() == {"name", "bytes"}


def test_what_was_put_together_elsewhere_is_listed_as_it_was(tmp_path: Path) -> None:
    """A DCP checkpoint of a run: its weights, not what was made of them in scratch, nor what the run goes on from."""
    spooled = weights(tmp_path / "scratch" / "0.safetensors")
    checkpoint = tmp_path / "step00000007"
    for name in ("weights/__0_0.distcp", "weights/.metadata", "training/optimizer/__0_0.distcp", "config.json"):
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(b"12345")
    write_manifest(checkpoint / "training")
    write_manifest(checkpoint)
    one = Catalog(**{**vars(catalog(checkpoint, spooled)), "format": "dcp", "sources": stamps(checkpoint)})
    [described] = provenance.inputs([one], [found(checkpoint, 7)])
    assert [(file["name"], file["bytes"], file["known_by"]) for file in described["files"]] == [
        ("weights/.metadata", 5, "manifest"), ("weights/__0_0.distcp", 5, "manifest"),
    ]  # fmt: skip


def test_of_a_spooled_file_the_file_itself_is_listed(tmp_path: Path) -> None:
    spooled = weights(tmp_path / "scratch" / "0.safetensors")
    (tmp_path / "ckpt_5.pt").write_bytes(b"123")
    one = Catalog(**{**vars(catalog(tmp_path, spooled)), "sources": stamps(tmp_path / "ckpt_5.pt")})
    [described] = provenance.inputs([one], [found(tmp_path / "ckpt_5.pt", 5)])
    assert described["files"] == [{"name": "ckpt_5.pt", "bytes": 3}]


# ---- the card


def test_the_card_is_read_by_the_hub_s_own_reader(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    snapshot = in_cache(tmp_path, "c" * 64)
    local = tmp_path / "a|b_step2"
    catalogs = [
        catalog(snapshot, snapshot / "model.safetensors", label="EleutherAI/pythia-14m@step1 (abababababab)"),
        catalog(local, weights(local / "model.safetensors")),
    ]
    plan = planned(catalogs, Mean("", (0, 1), (0.25, 0.75)), out_dtype="bfloat16")
    inputs = provenance.inputs(catalogs, [found(snapshot, 1), found(local, 2)])
    made = provenance.describe(plan, plan.means[0], inputs, command="lawa average a b --output c")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    card.write(tmp_path / "out", made, title="An average")
    read = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert read.data.base_model == ["EleutherAI/pythia-14m"]
    assert read.data.base_model_relation == "merge"
    assert read.data.library_name == "transformers"
    assert read.data.tags == ["lawa", "weight-averaging", "merge"]
    assert "The weighted average of the weights of 2 checkpoints, steps 1 to 2" in read.text
    assert "summed in float32, oldest first, and rounded once, to bfloat16." in read.text
    link = (
        f"[EleutherAI/pythia-14m@step1 (abababababab)](https://huggingface.co/EleutherAI/pythia-14m/tree/{'ab' * 20})"
    )
    assert f"| {link} | 1 | 0.25 | hf | float32, int64 | abababababab |" in read.text
    assert r"| a\|b\_step2 | 2 | 0.75 | hf | float32, int64 |  |" in read.text
    assert "```\nlawa average a b --output c\n```" in read.text
    assert "from_pretrained" in read.text


def test_a_card_of_local_weights_alone_claims_no_base_and_no_library(two: list[Catalog], tmp_path: Path) -> None:
    plan = planned(two, Mean("", (0, 1), None))
    (tmp_path / "out").mkdir()
    card.write(tmp_path / "out", provenance.describe(plan, plan.means[0]), title="An average")
    said = (tmp_path / "out" / "README.md").read_text()
    front, _, body = said.removeprefix("---\n").partition("\n---\n")
    assert front == 'tags: ["lawa", "weight-averaging", "merge"]'
    assert "The uniform average of the weights of 2 checkpoints, by" in body
    assert "from_pretrained" not in body
    assert "make it again" not in body


def test_a_card_of_very_many_inputs_shows_the_first_hundred(two: list[Catalog]) -> None:
    many = [two[0]] * 150
    plan = planned(many, Mean("", tuple(range(150)), None))
    said = card.card(provenance.describe(plan, plan.means[0]), title="t")
    assert said.count("| step1 |") == 100
    assert "and 50 more" in said
