"""The trained tokenizer loses nothing, given ones are read, and both know the end of text."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from lawa.data import tokenizer as module
from lawa.data.tokenizer import encode, fingerprint, load, train, vocabulary_size
from lawa.errors import LawaError

TEXTS = ["the wind and the rain\n\n\tthe wind and the rain, hey, ho\n" * 30, "raineth every day\n" * 30]
TRAINED = train(TEXTS, 280)


def test_ids_are_the_end_of_text_then_bytes_then_merges():
    vocabulary = TRAINED.get_vocab()
    assert vocabulary["<|endoftext|>"] == 0 == TRAINED.eos_token_id
    assert vocabulary_size(TRAINED) == 280 == len(vocabulary)
    assert all(len(token) == 1 for token, i in vocabulary.items() if 1 <= i <= 256)
    assert all(len(token) > 1 for token, i in vocabulary.items() if i > 256)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_text_survives(text: str):
    assert TRAINED.decode(encode(TRAINED, text)) == text


def test_every_byte_there_is_survives():
    text = "".join(map(chr, range(0x800))) + "\u2028\ufeff\U0010ffff"
    assert TRAINED.decode(encode(TRAINED, text)) == text


def test_the_end_of_text_written_in_a_text_is_text():
    ids = encode(TRAINED, "a<|endoftext|>b")
    assert 0 not in ids
    assert TRAINED.decode(ids) == "a<|endoftext|>b"
    assert TRAINED("a<|endoftext|>b")["input_ids"].count(0) == 1  # so transformers would have read it by default


def test_training_is_deterministic_and_does_not_depend_on_the_order_of_texts():
    again = train(TEXTS[::-1], 280)
    assert again.backend_tokenizer.to_str() == TRAINED.backend_tokenizer.to_str()
    other = train([text.upper() for text in TEXTS], 280)
    assert other.backend_tokenizer.to_str() != TRAINED.backend_tokenizer.to_str()


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_training_in_pieces_equals_training_on_whole_texts(monkeypatch: pytest.MonkeyPatch, piece: int):
    monkeypatch.setattr(module, "_PIECE", piece)
    text = "a  b\n\n\nc \n d\t\te  \n" * 50 + TEXTS[0]
    pieces = list(module._pieces(text))
    assert len(pieces) > 10
    assert "".join(pieces) == text
    in_pieces = train([text], 280)
    monkeypatch.setattr(module, "_PIECE", len(text))
    assert list(module._pieces(text)) == [text]
    assert in_pieces.backend_tokenizer.to_str() == train([text], 280).backend_tokenizer.to_str()


@given(text=st.text(st.sampled_from("a1., \n\t\r\u00a0\u2028\x1c'sé日"), max_size=60), piece=st.integers(1, 9))
@settings(deadline=None, max_examples=300)
def test_pieces_are_cut_only_where_the_pre_tokenizer_cuts(text: str, piece: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        pieces = list(module._pieces(text))
    words = TRAINED.backend_tokenizer.pre_tokenizer.pre_tokenize_str  # pyright: ignore
    assert [word for piece in pieces for word, _ in words(piece)] == [word for word, _ in words(text)]


def test_a_short_text_gives_a_smaller_vocabulary_and_too_small_a_one_is_refused():
    assert vocabulary_size(train(["ab ab"], 1000)) == 259  # two merges: ab, Ġab
    assert vocabulary_size(train(["ab ab"], 257)) == 257
    with pytest.raises(LawaError, match="vocab_size is 256; a byte-level tokenizer needs at least 257"):
        train(["ab"], 256)


def test_an_error_while_texts_are_read_stops_the_training():
    def texts():
        yield TEXTS[0]
        raise LawaError("changed while it was in use")

    with pytest.raises(LawaError, match="changed while it was in use"):
        train(texts(), 280)


def test_a_given_tokenizer_is_read_from_a_folder_a_bare_folder_and_a_file(tmp_path: Path):
    TRAINED.save_pretrained(tmp_path / "folder")
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare/tokenizer.json"
    bare.write_bytes((tmp_path / "folder/tokenizer.json").read_bytes())
    for place in (tmp_path / "folder", str(tmp_path / "folder"), tmp_path / "bare", bare):
        given = load(place)
        assert given.eos_token_id == 0
        assert encode(given, TEXTS[0]) == encode(TRAINED, TEXTS[0])
        assert given.decode(encode(given, " a , b 's")) == " a , b 's"


def test_the_declared_end_of_text_is_the_one(tmp_path: Path):
    train(TEXTS, 280, end_of_text="</s>").save_pretrained(tmp_path)
    assert load(tmp_path).eos_token == "</s>"
    with pytest.raises(LawaError, match=r"tokenizer.json declares no end-of-text token.*name it as eos_token"):
        load(tmp_path / "tokenizer.json")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for place in (tmp_path / "tokenizer.json", tmp_path / "nowhere", tmp_path):
        with pytest.raises(LawaError, match=rf"no tokenizer could be read from {place} \(.*\); give a tokenizer.json"):
            load(place)


def test_the_size_counts_gaps(tmp_path: Path):
    Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 7}, unk_token="a")).save(str(tmp_path / "gaps.json"))
    assert vocabulary_size(load(tmp_path / "gaps.json")) == 8


def test_a_fingerprint_follows_the_files_and_not_their_place(tmp_path: Path):
    for name in ("one", "two", "three"):
        TRAINED.save_pretrained(tmp_path / name)
    (tmp_path / "two/model.safetensors").write_text("weights are none of it")
    settings = tmp_path / "three/tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "a"}))
    one, two, three = (fingerprint(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three
    assert one.startswith("sha256:")
    assert fingerprint(tmp_path / "one/tokenizer.json") != one
    assert fingerprint("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
