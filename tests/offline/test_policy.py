"""Which tensors are one, and what happens to each: every sentence of policy.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from lawa.checkpoints.catalog import Catalog, Stored
from lawa.errors import LawaError, UsageError
from lawa.offline.policy import Matched, Policy, match

W = ("float32", (4, 2))
Told = tuple[str, tuple[int, ...]]


def checkpoint(label: str, tensors: Mapping[str, Told], ties: Mapping[str, str] | None = None) -> Catalog:
    """Tensors one after the other in a file; `ties` gives others the place of one."""
    places: dict[str, Stored] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        places[name] = Stored(Path(label), at, dtype, shape)
        at += places[name].nbytes
    places |= {other: places[name] for other, name in (ties or {}).items()}
    return Catalog(label=label, directory=None, format="hf", tensors=places)


def both(older: Mapping[str, Told], newer: Mapping[str, Told], **policy: object) -> Matched:
    return match([checkpoint("old", older), checkpoint("new", newer)], Policy(**policy))  # type: ignore[arg-type]


def named(matched: Matched) -> dict[str, bool]:
    """{row: whether it is averaged}."""
    return {row.name: row.averaged for row in matched.rows}


# ---- matching


def test_rows_come_in_the_latest_ones_order_each_with_its_places() -> None:
    matched = both({"b": W, "a": ("bfloat16", (4, 2))}, {"a": W, "b": ("float64", (4, 2))})
    assert named(matched) == {"a": True, "b": True}
    assert [row.name for row in matched.rows] == ["a", "b"]
    assert [[at and (str(at.file), at.dtype) for at in row.stored] for row in matched.rows] == [
        [("old", "bfloat16"), ("new", "float32")],
        [("old", "float32"), ("new", "float64")],
    ]
    assert (matched.tied, matched.dropped) == ({}, [])
    assert matched.rows[1].newest.dtype == "float64"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_floating_tensors_are_averaged(dtype: str) -> None:
    assert named(both({"w": (dtype, (3,))}, {"w": (dtype, (3,))})) == {"w": True}


def test_a_missing_tensor_is_named_with_its_checkpoint_and_the_ways_out() -> None:
    with pytest.raises(LawaError, match=r"^old lacks the tensor 'b' of new; .*--ignore 'b' .*--latest 'b'"):
        both({"a": W}, {"a": W, "b": W})
    assert named(both({"a": W}, {"a": W, "b": W}, ignore=("b",))) == {"a": True}
    matched = both({"a": W}, {"a": W, "b": W}, latest=("b",))
    assert named(matched) == {"a": True, "b": False}
    assert matched.rows[1].stored[0] is None


def test_one_more_tensor_is_named_with_its_checkpoint_and_the_way_out() -> None:
    with pytest.raises(LawaError, match=r"^old has a tensor 'b' that new lacks; .*--ignore 'b' leaves it out"):
        both({"a": W, "b": W}, {"a": W})
    for policy in ({"ignore": ("b",)}, {"latest": ("b",)}):
        matched = both({"a": W, "b": W}, {"a": W}, **policy)
        assert (named(matched), matched.dropped) == ({"a": True}, ["b"])


@pytest.mark.parametrize("shape", [(2, 4), (8,), (4, 2, 1), (4, 3), ()])
def test_another_shape_is_named_with_both_checkpoints(shape: tuple[int, ...]) -> None:
    told = {"w": W, "v": ("float32", shape)}, {"w": W, "v": W}
    with pytest.raises(LawaError, match=r"^tensor 'v' has shape \(.*\) in old and \(4, 2\) in new; .*--latest 'v'"):
        both(*told)
    assert named(both(*told, latest=("v",))) == {"w": True, "v": False}


def test_the_first_checkpoint_that_differs_is_named() -> None:
    tensors = [{"w": W}, {"w": W}, {"w": ("float32", (1,))}, {"w": ("float32", (2,))}, {"w": W}]
    with pytest.raises(LawaError, match=r"shape \(1,\) in c2 and \(4, 2\) in c4"):
        match([checkpoint(f"c{number}", one) for number, one in enumerate(tensors)], Policy())


# ---- dtypes


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "int8", "uint64"])
def test_integers_are_the_latest_ones_whatever_the_others_have(dtype: str) -> None:
    newest = {"w": W, "n": (dtype, (3,))}
    assert named(both({"w": W, "n": ("int64", (5,))}, newest)) == {"w": True, "n": False}
    assert named(both({"w": W}, newest)) == {"w": True, "n": False}
    matched = both(newest, {"w": W})
    assert (named(matched), matched.dropped) == ({"w": True}, ["n"])


@pytest.mark.parametrize("other", ["int64", "bool", "float8_e4m3fn"])
def test_values_that_are_weights_in_one_checkpoint_alone_are_refused(other: str) -> None:
    told = {"w": W, "v": (other, (4, 2))}, {"w": W, "v": W}
    with pytest.raises(LawaError, match=rf"tensor 'v' is {other} in old and float32 in new; --latest 'v'"):
        both(*told)
    with pytest.raises(LawaError, match=rf"tensor 'v' (is float32 in new and|of new is) {other}.*--latest 'v'"):
        match([checkpoint("new", told[1]), checkpoint("new", told[0])], Policy())
    for order in (told, told[::-1]):
        assert named(both(*order, latest=("v",))) == {"w": True, "v": False}


def test_float8_weights_are_not_silently_the_latest_ones() -> None:
    told = {"w": W, "v": ("float8_e5m2", (4, 2))}
    with pytest.raises(LawaError, match=r"^tensor 'v' of new is float8_e5m2, which is not averaged; --latest 'v'"):
        both(told, told)
    assert named(both(told, told, latest=("v",))) == {"w": True, "v": False}


def test_checkpoints_without_a_tensor_to_average_are_refused() -> None:
    with pytest.raises(LawaError, match="new has no tensor to average: 1 are kept, 1 left out"):
        both({"n": ("int64", (2,)), "w": W}, {"n": ("int64", (2,)), "w": W}, ignore=("w",))


# ---- patterns


def test_patterns_stand_for_whole_names() -> None:
    names: dict[str, Told] = dict.fromkeys(("h.0.w", "h.1.w", "h.10.w", "h.1.b", "x"), W)
    assert named(both(names, names, ignore=("h.?.w",))) == {"h.10.w": True, "h.1.b": True, "x": True}
    assert [name for name, averaged in named(both(names, names, latest=("*.1.*", "x"))).items() if averaged] == [
        "h.0.w",
        "h.10.w",
    ]
    assert named(both(names, names, ignore=("h.1.w", "*.b"))).keys() == {"h.0.w", "h.10.w", "x"}


@pytest.mark.parametrize("option", ["ignore", "latest"])
def test_a_pattern_that_fits_nothing_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=rf"{option}='lm_haed.\*' is the name of no tensor"):
        both({"lm_head.weight": W}, {"lm_head.weight": W}, **{option: ("lm_haed.*",)})
    both({"lm_head.weight": W, "old.w": W}, {"lm_head.weight": W}, **{option: ("old.*",)})  # in any of them


def test_upper_and_lower_case_are_told_apart() -> None:
    assert named(both({"A": W, "a": W}, {"A": W, "a": W}, ignore=("A",))) == {"a": True}


@pytest.mark.parametrize("wrong", [{"buffers": "average"}, {"ties": "yes"}])
def test_settings_that_do_not_exist_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"must be one of"):
        Policy(**wrong)  # type: ignore[arg-type]


# ---- what is no weight

MASKS: dict[str, Told] = {
    "gpt_neox.layers.0.attention.bias": ("float16", (1, 1, 8, 8)),
    "gpt_neox.layers.0.attention.masked_bias": ("float16", ()),
    "gpt_neox.layers.0.attention.rotary_emb.inv_freq": ("float32", (4,)),
    "transformer.h.0.attn.bias": ("float32", (1, 1, 8, 8)),
    "transformer.h.0.attn.masked_bias": ("float32", ()),
    "h.3.attn.attention.bias": ("bool", (1, 1, 8, 8)),
    "model.layers.0.self_attn.rotary_emb.inv_freq": ("float32", (4,)),
    "bert.embeddings.position_ids": ("int64", (1, 8)),
}
BIASES: dict[str, Told] = {
    "encoder.attention.bias": ("float32", (8,)),
    "blocks.0.attn.bias": ("float32", (8,)),
    "attn.bias": ("float32", (8, 8)),
    "gpt_neox.layers.0.attention.dense.bias": ("float32", (8,)),
    "gpt_neox.layers.0.attention.query_key_value.bias": ("float32", (24,)),
    "transformer.h.0.attn.c_attn.bias": ("float32", (24,)),
    "my_attention.bias": ("float32", (1, 1, 8, 8)),
    "attention.bias_table": ("float32", (1, 1, 8, 8)),
    "rotary_emb.inv_freq_scale": ("float32", (1,)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_and_frequencies_are_left_out(name: str) -> None:
    told = {"w": W, name: MASKS[name]}
    matched = both(told, told)
    assert (named(matched), matched.dropped) == ({"w": True}, [name])


@pytest.mark.parametrize("name", MASKS)
def test_or_are_the_latest_ones_where_asked_for(name: str) -> None:
    told = {"w": W, name: MASKS[name]}
    assert named(both(told, told, buffers="latest")) == {"w": True, name: False}
    longer = {"w": W, name: ("float32", (1, 1, 9, 9) if name.endswith(".bias") else (9,))}
    assert named(both(longer, told, buffers="latest")) == {"w": True, name: False}


@pytest.mark.parametrize("buffers", ["drop", "latest"])
@pytest.mark.parametrize("name", MASKS)
def test_checkpoints_without_them_match_those_that_have_them(name: str, buffers: str) -> None:
    """Pythia's older branches store them, others do not."""
    told = {"w": W, name: MASKS[name]}
    assert named(both(told, {"w": W}, buffers=buffers)) == {"w": True}
    assert both(told, {"w": W}, buffers=buffers).dropped == [name]
    assert named(both({"w": W}, told, buffers=buffers)) == {"w": True} | ({name: False} if buffers == "latest" else {})


@pytest.mark.parametrize("name", BIASES)
def test_real_biases_are_averaged(name: str) -> None:
    told = {"w": W, name: BIASES[name]}
    assert named(both(told, told)) == {"w": True, name: True}


def test_a_mask_in_one_checkpoint_is_no_reason_to_drop_anothers_weight() -> None:
    mask, weight = {"w": W, "attention.bias": ("float32", (1, 1, 8, 8))}, {"w": W, "attention.bias": ("float32", (8,))}
    with pytest.raises(LawaError, match=r"old lacks the tensor 'attention.bias'"):
        both(mask, weight)
    with pytest.raises(LawaError, match=r"old has a tensor 'attention.bias' that new lacks"):
        both(weight, mask)


# ---- ties


def tied(*labels: str) -> list[Catalog]:
    return [checkpoint(label, {"wte": W, "x": W}, {"head": "wte"}) for label in labels]


def test_tensors_tied_in_all_are_written_once() -> None:
    matched = match(tied("a", "b"), Policy())
    assert (named(matched), matched.tied, matched.dropped) == ({"wte": True, "x": True}, {"head": "wte"}, [])


@pytest.mark.parametrize("only", ["wte", "head"])
@pytest.mark.parametrize("newest", [0, 1])
def test_and_where_some_store_them_under_one_name_alone(only: str, newest: int) -> None:
    """safetensors keep one of the names, .bin files both."""
    catalogs = [*tied("both"), checkpoint("single", {only: W, "x": W})]
    catalogs = [catalogs[1 - newest], catalogs[newest]]
    matched = match(catalogs, Policy())
    row = "wte" if catalogs[-1].label == "both" else only
    assert named(matched) == {row: True, "x": True}
    place = {"both": catalogs[[one.label for one in catalogs].index("both")].tensors["wte"]}
    place["single"] = catalogs[[one.label for one in catalogs].index("single")].tensors[only]
    stored = next(one for one in matched.rows if one.name == row).stored
    assert stored == tuple(place[one.label] for one in catalogs)


def test_tied_in_the_latest_and_two_in_another_is_refused() -> None:
    untied = checkpoint("old", {"wte": W, "head": W, "x": W})
    with pytest.raises(LawaError, match=r"'head' and 'wte' are one tensor in new and two in old; --ties untie"):
        match([untied, *tied("new")], Policy())
    matched = match([untied, *tied("new")], Policy(ties="untie"))
    assert (named(matched).keys(), matched.tied) == ({"wte", "x", "head"}, {})
    assert matched.rows[0].stored[1] == matched.rows[2].stored[1]
    assert matched.rows[0].stored[0] != matched.rows[2].stored[0]


def test_two_in_the_latest_and_tied_in_another_are_averaged_one_by_one() -> None:
    matched = match([*tied("old"), checkpoint("new", {"wte": W, "head": W, "x": W})], Policy())
    assert (named(matched).keys(), matched.tied) == ({"wte", "head", "x"}, {})


def test_three_names_of_one_tensor() -> None:
    catalogs = [checkpoint(label, {"a": W}, {"b": "a", "c": "a"}) for label in ("old", "new")]
    assert match(catalogs, Policy()).tied == {"b": "a", "c": "a"}
    assert named(match(catalogs, Policy(ignore=("a",)))) == {"b": True}


def test_empty_tensors_at_one_place_are_not_tied() -> None:
    empty = {"a": ("float32", (0,)), "b": ("float32", (0,)), "w": W}
    assert match([checkpoint("old", empty), checkpoint("new", empty)], Policy()).tied == {}


def test_one_of_two_tied_names_cannot_be_the_latest_ones_alone() -> None:
    with pytest.raises(LawaError, match=r"'head' and 'wte' are one tensor in b, and --latest names one of them"):
        match(tied("a", "b"), Policy(latest=("head",)))
    assert named(match(tied("a", "b"), Policy(latest=("head", "wte")))) == {"wte": False, "x": True}
    assert named(match(tied("a", "b"), Policy(latest=("head",), ties="untie")))["head"] is False
