"""Repos on the hub: what is fetched, to which commit it is pinned, what the cache does, and what is said."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save

import lawa
from hub_server import Hub, serving, use
from lawa.checkpoints import describe, hub
from lawa.checkpoints.hub import Repo, fetch_all, parse, pin, pin_all, revisions
from lawa.checkpoints.select import Selection, resolve
from lawa.errors import LawaError
from lawa.records import read_json

NAME = "org/tiny"


def weights(value: float, **more: torch.Tensor) -> bytes:
    return save({"a": torch.full((3,), float(value)), **more}, metadata={"format": "pt"})


def repo() -> dict[str, dict[str, bytes]]:
    both = {
        "model.safetensors": weights(7), "pytorch_model.bin": b"old", "config.json": b'{"model_type": "gpt_neox"}',
        "tokenizer.json": b"{}", "chat.jinja": b"x", "README.md": b"# it", "flax_model.msgpack": b"f",
        "onnx/model.safetensors": b"o", "original/tokenizer.model": b"t",
    }  # fmt: skip
    steps = {f"step{n}": {"model.safetensors": weights(n), "config.json": b"{}"} for n in (10000, 0, 1000, 2000)}
    shards = {f"pytorch_model-{n}-of-2.bin": bytes(n) for n in (1, 2)} | {"pytorch_model.bin.index.json": b"{}"}
    neox = {f"layer_0{n}-model_00-model_states.pt": bytes(n) for n in (0, 2)} | {"mp_rank_00_model_states.pt": b"o"}
    return {"main": both, **steps, "sharded": shards, "neox": neox, "empty": {"notes.txt": b""}}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving({NAME: repo()}, tmp_path / "cache", monkeypatch) as served:
        yield served


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", Repo("org/name")),
        ("EleutherAI/pythia-1.4b@step1000", Repo("EleutherAI/pythia-1.4b", "step1000")),
        ("org/name@refs/pr/1", Repo("org/name", "refs/pr/1")),
        ("org/name@", None),
        ("/org/name", None),
        ("./name", None),
        ("../name", None),
        ("a/b/c", None),
        ("name", None),
    ],
)
def test_what_can_name_a_repo(text: str, expected: Repo | None) -> None:
    assert parse(text) == expected


def test_a_revision_is_pinned_and_only_what_is_needed_is_fetched(there: Hub) -> None:
    pinned = pin(Repo(NAME, "main"))
    assert pinned.commit == there.commit(NAME, "main")
    assert pinned.label == f"org/tiny@main ({pinned.commit[:12]})"
    assert set(pinned.files) == {"model.safetensors", "config.json", "tokenizer.json", "chat.jinja"}
    assert pinned.nbytes == sum(len(repo()["main"][name]) for name in pinned.files)
    assert pinned.cached is None
    assert there.fetched() == []
    [path] = fetch_all([pinned])
    assert path.name == pinned.commit
    assert (path / "model.safetensors").read_bytes() == weights(7)
    assert there.fetched() == sorted(pinned.files)
    assert (path / "model.safetensors").readlink().name == pinned.digests["model.safetensors"]


def test_what_kind_of_weights_is_fetched(there: Hub) -> None:
    assert set(pin(Repo(NAME, "sharded")).files) == set(repo()["sharded"])
    assert "mp_rank_00_model_states.pt" not in pin(Repo(NAME, "neox")).files
    assert len(pin(Repo(NAME, "neox")).files) == 2
    with pytest.raises(LawaError, match=r"org/tiny@empty has no weights that are known here .* holds notes\.txt"):
        pin(Repo(NAME, "empty"))


def test_several_at_once_keep_their_order_and_tell_when_each_is_there(there: Hub) -> None:
    repos = [Repo(NAME, f"step{step}") for step in (2000, 0, 10000, 1000)]
    told = []
    paths = fetch_all(pin_all(repos), done=told.append)
    assert [path.name for path in paths] == [there.commit(NAME, str(one.revision)) for one in repos]
    assert {one.repo for one in told} == set(repos)


@pytest.mark.parametrize("disabled", [False, True])
def test_the_clients_own_bars_are_left_as_they_were(there: Hub, disabled: bool) -> None:
    before = are_progress_bars_disabled()
    try:
        (disable_progress_bars if disabled else enable_progress_bars)()
        fetch_all([pin(Repo(NAME, "step0"))])
        assert are_progress_bars_disabled() == disabled
    finally:
        (disable_progress_bars if before else enable_progress_bars)()


def test_what_is_in_the_cache_is_not_fetched_again(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = fetch_all([pin(Repo(NAME, "step1000"))])
    there.requests.clear()
    again = pin(Repo(NAME, "step1000"))
    assert again.cached == first
    assert fetch_all([again]) == [first]
    assert there.fetched() == []
    there.requests.clear()
    offline = pin(Repo(NAME, "step1000"), offline=True)
    assert (offline.cached, offline.commit, there.requests) == (first, first.name, [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pin(Repo(NAME, "step1000")).cached == first
    assert revisions(Repo(NAME)) == ["step1000"]
    with pytest.raises(LawaError, match=r"the hub is not asked .*, and org/tiny@main is not in its cache"):
        pin(Repo(NAME, "main"))


def test_a_moved_revision_is_fetched_as_it_was_pinned(there: Hub) -> None:
    pinned = pin(Repo(NAME, "step1000"))
    there.repos[NAME] |= {"before": there.repos[NAME]["step1000"], "step1000": there.repos[NAME]["step2000"]}
    [path] = fetch_all([pinned])
    assert path.name == pinned.commit
    assert (path / "model.safetensors").read_bytes() == weights(1000)


def test_a_transfer_that_broke_off_goes_on(there: Hub) -> None:
    there.repos[NAME]["step0"]["model.safetensors"] = weights(0, b=torch.zeros(100_000))
    there.cut["model.safetensors"] = 100_000
    [path] = fetch_all([pin(Repo(NAME, "step0"))])
    assert (path / "model.safetensors").read_bytes() == there.repos[NAME]["step0"]["model.safetensors"]


def test_without_the_hub_the_cache_serves(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = fetch_all([pin(Repo(NAME, "step1000"))])
    use(closed_port(), tmp_path / "cache", monkeypatch)
    assert pin(Repo(NAME, "step1000")).cached == path
    assert revisions(Repo(NAME)) == ["step1000"]
    with pytest.raises(
        LawaError,
        match=r"^there is no path org/tiny; .*127\.0\.0\.1:\d+ cannot be reached \(.*, and org/tiny@step0 is not in",
    ):
        pin(Repo(NAME, "step0"))
    with pytest.raises(
        LawaError,
        match=r"^there is no path org/other; .*cannot be reached .*, and no revision of org/other is in its cache",
    ):
        revisions(Repo("org/other"))


def test_refusals_are_sentences(there: Hub) -> None:
    there.refused |= {"org/gated": (403, "GatedRepo"), "org/down": (503, "Down"), "org/odd": (403, "Odd")}
    for text, sentence in [
        ("org/nowhere@main", r"^there is no path org/nowhere, nor a model at http"),
        (f"{NAME}@step7", r"org/tiny has no revision 'step7'; its branches and tags are at http.*/org/tiny"),
        ("org/gated@main", "org/gated is gated: accept its conditions at .*/org/gated, then log in"),
        ("org/odd@main", r"refused org/odd@main \(.*403"),
        ("org/down@main", r"does not answer as it should .*, and org/down@main is not in its cache"),
    ]:
        with pytest.raises(LawaError, match=sentence) as said:
            pin(parse(text) or Repo(""))
        assert "\n" not in str(said.value)


def test_room_is_looked_for_before_anything_is_fetched(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = pin(Repo(NAME, "main"))
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: type("Usage", (), {"free": pinned.nbytes - 1}))
    with pytest.raises(LawaError, match=r"1 revisions need .*name another cache \(HF_HUB_CACHE\)"):
        fetch_all([pinned])
    assert there.fetched() == []


def test_a_repos_steps_are_a_trajectory(there: Hub) -> None:
    def steps(text: str, **selection: object) -> list[int | None]:
        return [one.step for one in resolve([text], Selection(**selection))]  # type: ignore[arg-type]

    assert steps(NAME, last=3) == [1000, 2000, 10000]
    assert steps(NAME, steps="0:2000:1000") == [0, 1000, 2000]
    assert steps(f"{NAME}@step1*") == [1000, 10000]
    assert steps(NAME) == [None]
    [main] = resolve([NAME], Selection())
    assert main.label == "org/tiny@main"
    with pytest.raises(LawaError, match=r"org/tiny has no checkpoint of step 3000; it has 0, 1000, 2000, 10000"):
        steps(NAME, steps="1000:3000:1000")
    with pytest.raises(LawaError, match=r"org/tiny@e\*: no branch or tag of its 1 tells a step"):
        steps(f"{NAME}@e*")


def test_revisions_and_paths_are_averaged_together(there: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_bytes(weights(8000))
    out = lawa.average([f"{NAME}@step1000", tmp_path / "mine", f"{NAME}@main"], output=tmp_path / "out")
    assert load_file(out / "model.safetensors")["a"].tolist() == [pytest.approx((1000 + 8000 + 7) / 3)] * 3
    assert (out / "tokenizer.json").is_file()
    inputs = read_json(out / "provenance.json")["inputs"]
    assert inputs[0]["commit"] == there.commit(NAME, "step1000")
    assert inputs[0]["files"][0]["known_by"] == "hub"


def test_a_dry_run_fetches_nothing(there: Hub, tmp_path: Path) -> None:
    told = lawa.average(NAME, steps="1000:2000:1000", output=tmp_path / "out", dry_run=True)
    assert there.fetched() == []
    assert [one["read"] for one in told["inputs"]] == ["fetched first"] * 2
    assert told["bytes_fetched"] == 2 * (len(weights(1000)) + 2)
    assert told["tensors"] is None
    fetch_all(pin_all([Repo(NAME, "step1000"), Repo(NAME, "step2000")]))
    told = lawa.average(NAME, steps="1000:2000:1000", output=tmp_path / "out", dry_run=True)
    assert (told["bytes_fetched"], told["bytes_read"], told["tensors"]["averaged"]) == (0, 24, 1)


def test_a_repo_is_described_from_its_headers(there: Hub) -> None:
    found = describe.repo(Repo(NAME))
    assert (found["revision"], found["commit"]) == ("main", there.commit(NAME, "main"))
    assert (found["tensors"], found["parameters"], found["dtypes"]) == (1, 3, {"float32": 3})
    assert found["steps"] == [0, 1000, 2000, 10000]
    assert found["listing"] == [{"name": "a", "dtype": "float32", "shape": [3]}]
    assert not any((Path(constants.HF_HUB_CACHE)).rglob("*.safetensors"))
    assert describe.repo(Repo(NAME, "sharded"))["tensors"] is None


def test_of_a_repo_in_the_cache_no_headers_are_asked_for(there: Hub) -> None:
    fetch_all([pin(Repo(NAME, "step1000"))])
    there.requests.clear()
    assert describe.repo(Repo(NAME, "step1000"))["parameters"] == 3
    assert [request for request in there.requests if "/resolve/" in request] == []


def test_without_huggingface_hub_a_wrong_path_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LawaError, match=r"^there is no path runs/a; .*huggingface_hub is not installed.*\[hub\]"):
        resolve(["runs/a"], Selection(last=2))
