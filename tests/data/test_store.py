"""The token store: exact, whole or absent, and never taken for another."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from lawa.checkpoints.publish import verify
from lawa.data import encoding
from lawa.data.files import File
from lawa.data.sources import TextSource
from lawa.data.store import TokenStore, build, build_or_open, open_store
from lawa.data.tokenizer import train
from lawa.errors import LawaError

Write = Callable[[Path, dict[str, str]], Path]


def text(*paths: Path, name: str = "text") -> dict[str, TextSource]:
    return {name: TextSource(paths=[str(path) for path in paths])}


def build_small(path: Path, folder: Path, **changed: Any) -> TokenStore:
    return build_or_open(path, **{"sources": text(folder), "validation_fraction": 0.3, "vocab_size": 300, **changed})


def decoded(store: TokenStore, name: str = "text") -> dict[str, list[str]]:
    """split → texts, read back from nothing but the store."""
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_path)
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    for split, sources in (("train", store.train), ("validation", store.validation)):
        offsets = store.documents(split, name)
        for first, end in pairwise(offsets.tolist()):
            ids = sources[name][first:end]
            assert ids[-1] == store.end_of_text
            texts[split].append(tokenizer.decode(ids[:-1].tolist()))
        assert offsets[-1] == len(sources[name])
    return texts


def test_every_document_comes_back_exactly_and_on_one_side_only(tmp_path: Path, folder: Path, texts: dict[str, str]):
    store = build_small(tmp_path / "store", folder)
    back = decoded(store)
    for split in ("train", "validation"):
        ids, counts = getattr(store, split)["text"], store.info["splits"][split]
        there = [texts[file["name"]] for file in store.files("train.text") if file["documents"][split]]
        assert back[split] == there
        assert (ids == store.end_of_text).sum() == len(there) == counts["documents"] > 0
        assert len(ids) == counts["tokens"] == getattr(store, f"{split}_tokens")
        assert counts["bytes"] == sum(len(text.encode()) for text in there)
    assert [file["name"] for file in store.files("train.text")] == sorted(texts)
    assert sum(sum(file["documents"].values()) for file in store.files("train.text")) == len(texts)
    assert store.weights == {"train": {"text": 1.0}, "validation": {"text": 1.0}}


def test_the_arrays_are_read_only_little_endian_maps(tmp_path: Path, folder: Path):
    store = build_small(tmp_path / "store", folder)
    assert isinstance(store.train["text"], np.memmap)
    assert store.train["text"].dtype == np.dtype("<u2")
    assert store.train["text"].tolist() == np.fromfile(tmp_path / "store/train/text.bin", dtype="<u2").tolist()
    with pytest.raises(ValueError, match="read-only"):
        store.train["text"][0] = 1
    assert store.vocab_size == 300
    assert store.end_of_text == 0


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, folder: Path):
    one, two = (build_small(tmp_path / name, folder) for name in ("one", "two"))
    assert one.digest == two.digest == GOLDEN_DIGEST
    verify(tmp_path / "one")
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    digests = {build_small(tmp_path / f"seed{seed}", folder, seed=seed).digest for seed in range(6)}
    assert one.digest in digests
    assert len(digests) > 1


def test_the_tokenizer_has_not_seen_the_validation_text(tmp_path: Path, texts: dict[str, str], write: Write):
    unseen = {"validation/z.txt": "zyzzyva " * 500}
    write(tmp_path, {f"train/{name}": text for name, text in texts.items()} | unseen)
    store = build(
        tmp_path / "store", sources=text(tmp_path / "train"), validation=text(tmp_path / "validation"), vocab_size=320
    )
    trained = json.loads((store.tokenizer_path / "tokenizer.json").read_text())["model"]
    ours, both = train(texts.values(), 320), train([*texts.values(), *unseen.values()], 320)
    assert trained == json.loads(ours.backend_tokenizer.to_str())["model"]
    assert "Ġzyzzyva" in both.get_vocab()
    assert "Ġzyzzyva" not in trained["vocab"]
    assert decoded(store)["validation"] == [unseen["validation/z.txt"]]


def test_a_large_given_vocabulary_is_stored_in_32_bits(tmp_path: Path, folder: Path, texts: dict[str, str]):
    train(["rain rain"], 260).save_pretrained(tmp_path / "given")
    file = tmp_path / "given/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["rain"] = 70_000
    file.write_text(json.dumps(content))
    store = build_small(tmp_path / "store", folder, tokenizer=tmp_path / "given", vocab_size=None)
    assert store.train["text"].dtype == np.dtype("<u4")
    assert store.vocab_size == 70_001
    assert 70_000 in [*store.train["text"], *store.validation["text"]]
    back = decoded(store)
    assert sorted(back["train"] + back["validation"]) == sorted(texts.values())
    assert store.info["tokenizer"]["given"] == str(tmp_path / "given")


def test_progress_counts_bytes_to_the_end(
    tmp_path: Path, folder: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "_CHUNK", 1)
    seen: list[tuple[int, int | None]] = []
    build_small(tmp_path / "store", folder, progress=lambda done, total: seen.append((done, total)))
    total = sum(len(text.encode()) for text in texts.values())
    assert len(seen) == len(texts)
    assert seen == sorted(seen, key=lambda call: call[0])
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("after", [1, 4])
def test_a_build_that_is_interrupted_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    monkeypatch.setattr(encoding, "_CHUNK", 1)
    calls = iter(range(1, 100))

    def interrupt(done: int, total: int | None) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "store", sources=text(folder), validation_fraction=0.3, vocab_size=300, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    build_small(tmp_path / "store", folder)  # and stands in nobody's way


def test_a_store_is_used_again_and_not_written_again(tmp_path: Path, folder: Path):
    first = build_small(tmp_path / "store", folder)
    before = (tmp_path / "store").stat().st_mtime_ns

    def never(done: int, total: int | None) -> None:
        raise AssertionError("built again")

    again = build_small(tmp_path / "store", folder, progress=never)
    assert again.digest == first.digest
    assert again.info == first.info == open_store(tmp_path / "store").info
    assert (tmp_path / "store").stat().st_mtime_ns == before
    folder.rename(tmp_path / "moved")
    assert build_small(tmp_path / "store", tmp_path / "moved", progress=never).digest == first.digest
    with pytest.raises(LawaError, match="store exists already; remove it or choose another place"):
        build(tmp_path / "store", sources=text(tmp_path / "moved"), validation_fraction=0.3, vocab_size=300)


def test_a_store_of_another_request_is_refused_with_what_differs(tmp_path: Path, folder: Path, write: Write):
    build_small(tmp_path / "store", folder)
    held_out = write(tmp_path / "held_out", {"v.txt": "other text"})
    train(["ab ab"], 259).save_pretrained(tmp_path / "given")
    for changed, what in (
        ({"vocab_size": 301}, "tokenizer.vocab_size is 300 there and 301 here"),
        ({"seed": 5}, "validation.seed is 0 there and 5 here"),
        ({"validation_fraction": 0.4}, "validation.fraction is 0.3 there and 0.4 here"),
        (
            {"validation_fraction": None, "validation": text(held_out)},
            "validation.fraction is 0.3 there and not set here",
        ),
        ({"tokenizer": tmp_path / "given", "vocab_size": None}, "tokenizer.given is not set there and sha256:"),
    ):
        with pytest.raises(LawaError, match=what) as refused:
            build_small(tmp_path / "store", folder, **changed)
        assert str(refused.value).startswith(f"{tmp_path / 'store'} was built from another request (")
        assert "; choose another data.store, or remove it" in str(refused.value)
    (folder / "sonnet.txt").write_text("Changed")
    (folder / "more.txt").write_text("More")
    with pytest.raises(
        LawaError,
        match=r"\(text of train.text only there: sonnet.txt; text of train.text only here: more.txt and 1 more\)",
    ):
        build_small(tmp_path / "store", folder)


def test_named_validation_text_is_compared_too_and_the_seed_is_not(tmp_path: Path, folder: Path, write: Write):
    held_out = write(tmp_path / "held_out", {"v.txt": "other text"})
    named = {"validation_fraction": None, "validation": text(held_out)}
    store = build_small(tmp_path / "store", folder, **named)
    assert build_small(tmp_path / "store", folder, seed=9, **named).digest == store.digest
    (held_out / "v.txt").write_text("text other")
    with pytest.raises(LawaError, match=r"validation.text only there: v.txt; text of validation.text only here: v.txt"):
        build_small(tmp_path / "store", folder, **named)
    (held_out / "v.txt").write_bytes((folder / "sonnet.txt").read_bytes())
    with pytest.raises(LawaError, match=r"sonnet.txt is training text, and the same text is validation .*v.txt"):
        build_small(tmp_path / "other", folder, **named)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"validation": text(Path("x"))}, "either named .validation. or held out .validation_fraction.; set one"),
        ({"validation_fraction": None}, "either named .validation. or held out .validation_fraction.; set one"),
        ({"tokenizer": "x"}, "either given .tokenizer. or trained to a size .vocab_size.; set one"),
        ({"vocab_size": None}, "either given .tokenizer. or trained to a size .vocab_size.; set one"),
        ({"validation_fraction": None, "validation": text()}, "no text was given"),
        ({"vocab_size": 9}, "vocab_size is 9; a byte-level tokenizer needs at least 257"),
    ],
)
def test_a_request_that_says_too_much_or_too_little_is_refused(
    tmp_path: Path, folder: Path, changed: dict[str, Any], sentence: str
):
    with pytest.raises(LawaError, match=sentence):
        build_small(tmp_path / "store", folder, **changed)
    assert not (tmp_path / "store").exists()


def test_of_two_that_ask_at_once_one_builds(tmp_path: Path, folder: Path):
    stores: list[TokenStore] = []
    built: list[str] = []

    def ask(name: str) -> None:
        def progress(done: int, total: int | None) -> None:
            built.append(name)
            if second.ident is None:  # not started yet
                second.start()
                second.join(timeout=0.5)  # it waits for the lock, which the first holds

        stores.append(build_small(tmp_path / "store", folder, progress=progress))

    second = threading.Thread(target=ask, args=("second",))
    ask("first")
    second.join()
    assert set(built) == {"first"}
    assert len({store.digest for store in stores}) == 1
    assert len(stores) == 2


def rows(folder: Path, name: str, texts: list[str]) -> Path:
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / name


def test_several_sources_are_apart_and_in_the_order_of_their_names(tmp_path: Path, folder: Path, texts: dict[str, str]):
    lines = [f"line {i} of the rows" for i in range(100)]
    plays, web = text(folder, name="plays"), text(rows(tmp_path, "web.jsonl", lines), name="web")
    store = build_small(tmp_path / "store", folder, sources=web | plays)
    assert list(store.train) == list(store.validation) == ["plays", "web"]
    for name, there in (("plays", [*texts.values()]), ("web", lines)):
        back = decoded(store, name)
        assert sorted(back["train"] + back["validation"]) == sorted(there)
        assert min(len(back["train"]), len(back["validation"])) > 0
    assert store.train_tokens == sum(map(len, store.train.values()))
    (listed,) = store.files("train.web")
    held_out = store.info["splits"]["validation"]["sources"]["web"]["documents"]
    assert listed["documents"] == {"train": 100 - held_out, "validation": held_out}
    assert build_small(tmp_path / "store", folder, sources=plays | web).digest == store.digest
    with pytest.raises(LawaError, match=r"train.web is only there"):
        build_small(tmp_path / "store", folder, sources=plays)
    heavy = {"plays": plays["plays"], "web": TextSource(paths=web["web"].paths, weight=3)}
    assert build_small(tmp_path / "store", folder, sources=heavy).weights["train"]["web"] == 1  # only what was built
    alone = build_small(tmp_path / "alone", folder)
    assert alone.train["text"].tolist() != store.train["plays"].tolist()  # the tokenizer has seen both
    assert alone.digest != store.digest


def test_text_on_both_sides_is_refused_wherever_it_comes_from(tmp_path: Path, folder: Path, texts: dict[str, str]):
    held_out = text(rows(tmp_path, "held.jsonl", ["other", texts["sonnet.txt"]]))
    named = {"validation": held_out, "validation_fraction": None}
    with pytest.raises(
        LawaError, match=r"sonnet.txt is training text, and the same text is validation \(.*held.jsonl, line 2\); take"
    ):
        build_small(tmp_path / "store", folder, **named)
    training = text(rows(tmp_path, "web.jsonl", ["a row", "other"]))
    with pytest.raises(LawaError, match=r"web.jsonl, line 2 is training text, .*held.jsonl, line 1"):
        build_small(tmp_path / "store", folder, sources=training, **named)
    copies = tmp_path / "copies"
    copies.mkdir()
    for name, content in texts.items():
        (copies / f"{9 - len(name)}{Path(name).name}").write_bytes(content.encode())  # other names, another split
    with pytest.raises(LawaError, match="is training text, and the same text is validation"):
        build_small(tmp_path / "store", folder, sources=text(folder) | text(copies, name="more"))
    assert not (tmp_path / "store").exists()


def test_a_source_of_which_nothing_is_held_out_is_refused(tmp_path: Path, folder: Path):
    few = text(rows(tmp_path, "few.jsonl", ["one", "two"]), name="few")
    with pytest.raises(LawaError, match=r"no document of source 'few' is validation text; give more documents, or"):
        build_small(tmp_path / "store", folder, sources=few, validation_fraction=0.001)


def test_opening_reads_no_text_and_no_tokens(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    build_small(tmp_path / "store", folder)
    digested: list[str] = []
    monkeypatch.setattr(File, "digest", lambda self: digested.append(self.name) or "")
    opened: list[str] = []
    real = Path.open

    def watched(self: Path, *rest: Any, **options: Any) -> Any:
        opened.append(self.name)
        return real(self, *rest, **options)

    monkeypatch.setattr(Path, "open", watched)
    build_small(tmp_path / "store", folder)
    assert digested == []
    assert set(opened) == {"manifest.json", "store.json", "train.text.jsonl"}


def test_a_damaged_store_is_refused(tmp_path: Path, folder: Path):
    path = tmp_path / "store"
    build_small(path, folder)
    whole = (path / "train/text.bin").read_bytes()
    (path / "train/text.bin").write_bytes(whole[:-2])
    with pytest.raises(LawaError, match=r"store is damaged \(.*text.bin has .* bytes where .*\); remove it and build"):
        open_store(path)
    with pytest.raises(LawaError, match="bytes where"):
        build_small(path, folder)
    (path / "train/text.bin").unlink()
    with pytest.raises(LawaError, match=r"text.bin is missing.*; remove it and build it again"):
        open_store(path)
    (path / "train/text.bin").write_bytes(whole)
    open_store(path)
    (path / "manifest.json").unlink()
    with pytest.raises(LawaError, match=r"has no manifest.json: it was never finished"):
        open_store(path)


def test_what_is_no_store_is_refused(tmp_path: Path, folder: Path, write: Write):
    with pytest.raises(LawaError, match=r"there is no token store at .*nowhere; build one from text, or correct"):
        open_store(tmp_path / "nowhere")
    other = write(tmp_path / "checkpoint", {"manifest.json": '{"files": {}}'})
    with pytest.raises(LawaError, match=r"checkpoint is no token store .*no store.json.; choose another data.store"):
        open_store(other)
    build_small(tmp_path / "store", folder)
    described = tmp_path / "store/store.json"
    described.write_text(described.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(LawaError, match="a token store of format 1, and this version reads format 2; choose another"):
        open_store(tmp_path / "store")


def test_importing_the_room_loads_neither_torch_nor_transformers():
    heavy = "sorted({'torch', 'transformers', 'tokenizers', 'datasets'} & set(sys.modules))"
    modules = "import lawa.data.store, lawa.data.order"
    for imports, loaded in ((modules, "[]"), (f"{modules}, tokenizers", "['tokenizers']")):
        script = f"import sys; {imports}; print({heavy})"
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == loaded


GOLDEN_DIGEST = "6a67373b3746c14272fcaeb26857b82d4c7b027dcea9a3c939bbb111c6882710"
