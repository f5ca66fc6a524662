"""What arms and axes are called: any script, one folder on every file system, no two axes under one name."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sera_core.ablating.config import label_of
from sera_core.ablating.frame import frame_of
from sera_core.ablating.jobs import Result
from sera_core.ablating.names import folded, folder_name, run_name, short_axes
from sera_core.ablating.run import check_arms
from sera_core.ablation import make_ablation, presets, read_ablation
from sera_core.errors import ConfigError

FRACTIONS = {"offline.selector.fraction": [0.3, 0.7], "generated.selector.fraction": [0.1, 0.3]}


def made(**changes):
    return make_ablation({"name": "named", "base": "sera-dpo", "seeds": [0], **changes}, Path())


def names(**changes):
    return [arm.name for arm in made(**changes).arms]


def test_names_keep_every_script():
    texts = ["β=0.1", "标准", "方法", "résumé", "हिन्दी", "ру́сский"]
    ablation = made(variants={text: {} for text in texts})
    assert [arm.name for arm in ablation.arms] == texts
    assert len({arm.settings["name"] for arm in ablation.arms}) == len(texts)
    check_arms(ablation)


def test_names_are_composed():
    composed, apart = "é", "e\u0301"
    assert names(variants={apart: {}}) == [composed]
    with pytest.raises(ConfigError, match="would be called 'é': the variants 'é' and 'e\u0301', written alike"):
        made(variants={composed: {}, apart: {}})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b\\c:d", "a_b_c_d"),
        ("a\n\x00 b", "a_b"),
        ("-x", "_x"),
        ("...x", "_x"),
        ("x..", "x"),
        ("nul", "_nul"),
        ("COM1.5", "_COM1.5"),
        ("nullable", "nullable"),
        ("a_b,c=-1.5+d", "a_b,c=-1.5+d"),
        ("\u202eabc", "_abc"),
    ],
)
def test_names_are_safe_folders(text, name):
    assert folder_name(text) == name


@given(st.text(max_size=150))
def test_any_text_becomes_one_safe_folder(text):
    name = folder_name(text)
    assert len(name.encode()) <= 100
    assert not set(name) & set('/\\:*?"<>|')
    assert all(unicodedata.category(char)[0] in "LMN" or char in "._=,+-" for char in name)
    assert name[:1] not in {".", "-"} or not name
    assert not name.endswith(".")
    assert unicodedata.is_normalized("NFC", name)
    assert folder_name(name) == name


@given(st.text(min_size=1, max_size=40))
def test_any_name_becomes_a_run_s(text):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_name(folder_name(text)))


def test_long_names_are_cut_by_bytes_and_stay_apart():
    found = names(variants={"标" * 60: {}, "标" * 61: {}})
    assert all(90 < len(name.encode()) <= 100 for name in found)
    assert len(set(found)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"A": {}, "a": {}}}, "called 'A' and 'a', which not every .* 'A' and 'a'. Rename one of the var"),
        ({"variants": {"ﬁ": {}, "FI": {}}}, "which not every file system tells apart"),
        ({"variants": {"a b": {}, "a?b": {}}}, "called 'a_b': the variants 'a b' and 'a.b', written alike .* Rename"),
        (
            {"grid": {"source.noise": [1, "1"]}},
            "called 'noise=1': the values 1 and '1' of the axis source.noise, .* Give the values labels",
        ),
        (
            {"grid": {"step": {"x y": {}, "x/y": {}}}},
            "the labels 'x y' and 'x/y' of the axis step, .* Rename one of the l",
        ),
        ({"variants": {"??": {}}}, r"called '_', by the variant '\?\?'. Give the variant a name with a letter"),
        ({"variants": {"..": {}}}, r"called '_', by the variant '\.\.'"),
        ({"variants": {"": {}}}, "called '', by the variant ''"),
    ],
)
def test_names_that_fall_together_are_told_by_their_originals(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**changes)


def test_axes_go_by_the_shortest_end_that_no_other_has():
    assert short_axes(["a.b.c", "d.c", "e"]) == {"a.b.c": "b.c", "d.c": "d.c", "e": "e"}
    assert short_axes(["a.x.c", "b.x.c"]) == {"a.x.c": "a.x.c", "b.x.c": "b.x.c"}
    assert short_axes(["c", "a.c"]) == {"c": "c", "a.c": "a.c"}
    assert short_axes(["objective.loss.beta"]) == {"objective.loss.beta": "beta"}


def test_two_axes_with_the_same_last_part_stay_two():
    ablation = made(grid=FRACTIONS, frontier="offline.selector.fraction")
    assert [arm.name for arm in ablation.arms][:2] == [
        "offline.selector.fraction=0.3,generated.selector.fraction=0.1",
        "offline.selector.fraction=0.3,generated.selector.fraction=0.3",
    ]
    assert list(ablation.families) == ["generated.selector.fraction=0.1", "generated.selector.fraction=0.3"]
    frame = frame_of(ablation, [Result(arm.name, 0, "out", {}, {}) for arm in ablation.arms])
    assert frame["offline.selector.fraction"].tolist() == [0.3, 0.3, 0.7, 0.7]
    assert frame["generated.selector.fraction"].tolist() == [0.1, 0.3, 0.1, 0.3]
    assert "fraction" not in frame


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"baseline": "fraction=0.3"},
            r"several axes end in 'fraction'. Write offline.selector.fraction=0.3 or generated.selector.fraction=0.3\.",
        ),
        ({"baseline": "selector.fraction=0.1"}, r"in 'selector.fraction'. Write generated.selector.fraction=0.1\."),
        (
            {"frontier": "fraction"},
            r"frontier 'fraction': several .* Write offline.selector.fraction or generated.selector.fraction\.",
        ),
    ],
)
def test_an_end_that_several_axes_have_names_none(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(grid=FRACTIONS, **changes)


def test_a_baseline_may_be_any_end_that_one_axis_has():
    for text in ("generated.selector.fraction=0.1", "selector.fraction=0.1", "fraction=0.1"):
        axes = FRACTIONS if text.startswith("generated") else {"generated.selector.fraction": [0.1, 0.3]}
        ablation = made(grid=axes, baseline=text)
        at = {arm.name: arm.point for arm in ablation.arms}
        assert len(ablation.baseline) == len(ablation.arms) // 2
        assert all(at[base]["generated.selector.fraction"] == "0.1" for base in ablation.baseline.values())


def test_an_axis_called_as_another_column_has_one_of_its_own():
    ablation = made(grid={"source.seed": [1, 2], "accuracy": {"low": {}, "high": {}}})
    results = [Result(arm.name, 0, "out", {"accuracy": 0.5}, {}) for arm in ablation.arms]
    frame = frame_of(ablation, results)
    assert frame["seed"].tolist() == [0] * 4
    assert frame["accuracy"].tolist() == [0.5] * 4
    assert frame["grid.source.seed"].tolist() == [1, 1, 2, 2]
    assert frame["grid.accuracy"].tolist() == ["low", "high"] * 2


def test_shipped_ablations_keep_the_names_of_their_folders():
    """Their finished runs are found again: the variant, and axes by the last part of their path."""
    for path in presets().values():
        for arm in read_ablation(path).arms:
            parts = [] if arm.variant is None else [arm.variant]
            parts += [f"{axis.rpartition('.')[2]}={label_of(label)}" for axis, label in arm.point.items()]
            assert arm.name == ",".join(parts)
            assert folded(arm.name) == arm.name.casefold()
