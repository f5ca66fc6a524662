import numpy as np
import pytest

from sera_core.builtin.selectors import All, Random, Threshold, Top
from sera_core.builtin.share import resolve_share
from sera_core.errors import ConfigError

MARGINS = np.array([0.5, 3.0, -1.0, 3.0, 0.5])


def select(selector, margins=MARGINS, pool=None, seed=0):
    return selector.select(margins, len(margins) if pool is None else pool, np.random.default_rng(seed)).tolist()


def test_all_keeps_all():
    assert select(All()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "kept"), [(0, []), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (9, [0, 1, 2, 3, 4])])
def test_top_breaks_ties_by_index(count, kept):
    assert select(Top(count=count)) == kept


def test_fraction_is_of_the_pool_and_capped():
    assert select(Top(fraction=0.2)) == [1]
    assert select(Top(fraction=0.2), pool=10) == [1, 3]
    assert select(Top(fraction=0.9), pool=10) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fraction", "pool", "kept"),
    [
        (0.7, 1536, 1075),
        (0.3, 1536, 461),
        (0.7, 5, 4),
        (0.29, 50, 15),
        (0.35, 10, 4),
        (0.0, 9, 0),
        (1.0, 9, 9),
        (0.04, 10, 0),
    ],
)
def test_fraction_rounds_half_up_in_decimal(fraction, pool, kept):
    assert resolve_share(fraction, None, pool, available=10_000) == kept


def test_random_depends_on_the_generator_alone():
    margins = np.arange(50.0)
    chosen = select(Random(fraction=0.5), margins)
    assert len(chosen) == 25
    assert chosen == select(Random(fraction=0.5), -margins)
    assert chosen != select(Random(fraction=0.5), margins, seed=1)
    assert select(Random(count=3), margins[:2]) == [0, 1]


def test_random_takes_each_pair_equally_often():
    rng = np.random.default_rng(0)
    counts = np.zeros(5)
    for _ in range(2000):
        counts[Random(count=2).select(MARGINS, 5, rng)] += 1
    np.testing.assert_allclose(counts / 2000, 0.4, atol=0.05)


def test_threshold_includes_the_minimum():
    assert select(Threshold(minimum=0.5)) == [0, 1, 3, 4]
    assert select(Threshold(minimum=4)) == []


@pytest.mark.parametrize(("factory", "name"), [(Top, "top"), (Random, "random")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of fraction and count; got fraction=None, count=None"),
        ({"fraction": 0.5, "count": 2}, "exactly one of fraction and count"),
        ({"fraction": 1.5}, "fraction must be a number from 0 to 1; got 1.5"),
        ({"fraction": -0.1}, "fraction must be a number from 0 to 1"),
        ({"count": -1}, "count must be an integer >= 0; got -1"),
        ({"count": 2.5}, "count must be an integer >= 0"),
        ({"count": True}, "count must be an integer >= 0"),
    ],
)
def test_bad_share_is_named(factory, name, options, message):
    with pytest.raises(ConfigError, match=f"selector '{name}'.*{message}"):
        factory(**options)


def test_bad_threshold_is_named():
    with pytest.raises(ConfigError, match="selector 'threshold': option minimum must be a finite number; got nan"):
        Threshold(minimum=float("nan"))
