"""The curriculum keeps each prompt's pair of one rank, from easy to hard."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sera_core.builtin.curriculum import Curriculum
from sera_core.curate.select import prompt_numbers, select
from sera_core.errors import ConfigError

#                   prompt 0        prompt 1   prompt 2        prompt 0
MARGINS = np.array([0.5, 3.0, 2.0, 7.0, 1.0, 1.0, 1.0, -1.0, 2.5])
PROMPTS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 0])


def chosen(stage, margins=MARGINS, prompts=PROMPTS):
    return Curriculum(stage).select_by_prompt(margins, prompts, len(margins), np.random.default_rng(0)).tolist()


@pytest.mark.parametrize(("stage", "kept"), [(1, [1, 3, 5]), (2, [4, 6, 8]), (3, [2, 7]), (4, [0]), (5, [])])
def test_stages_go_from_the_largest_margin_to_the_smallest(stage, kept):
    assert chosen(stage) == kept


def test_no_pairs():
    assert chosen(1, np.zeros(0), np.zeros(0, dtype=np.int64)) == []


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-1.0, 0.0, 0.5, 2.0])), max_size=20))
@settings(max_examples=60, deadline=None)
def test_stages_share_out_all_pairs_and_margins_fall(pairs):
    prompts = np.array([p for p, _ in pairs], dtype=np.int64)
    margins = np.array([m for _, m in pairs], dtype=np.float64)
    stages = [chosen(stage, margins, prompts) for stage in range(1, 21)]
    assert sorted(index for kept in stages for index in kept) == list(range(len(pairs)))
    for easier, harder in itertools.pairwise(stages):
        by_prompt = {prompts[i]: margins[i] for i in easier}
        assert all(by_prompt[prompts[i]] >= margins[i] for i in harder)
        assert len({prompts[i] for i in harder}) == len(harder)


def test_the_core_asks_by_prompt():
    pairs = [SimpleNamespace(prompt=SimpleNamespace(id=name)) for name in "bbabac"]
    numbers = prompt_numbers(pairs)
    assert numbers.tolist() == [0, 0, 1, 0, 1, 2]
    margins = np.array([1.0, 3.0, 0.0, 2.0, 5.0, 9.0])
    kept = select(Curriculum(2), margins, 6, np.random.default_rng(0), numbers)
    assert kept.tolist() == [2, 3]


def test_alone_all_pairs_are_those_of_one_prompt():
    assert Curriculum(2).select(MARGINS, 9, np.random.default_rng(0)).tolist() == [1]


@pytest.mark.parametrize("stage", [0, -1, True, 1.5])
def test_a_stage_is_a_whole_number(stage):
    with pytest.raises(ConfigError, match="stage must be a whole number >= 1"):
        Curriculum(stage)
