"""Families at equal KL: gaps by hand and by quadrature, steps that are only longer, and what cannot be compared."""

import numpy as np
import pytest
from scipy.integrate import quad

from sera_core.statistics.frontier import compare_families, equal_kl_gap, family_baselines, frontier, line_of
from sera_core.statistics.intervals import WHOLE
from sera_core.statistics.metrics import GOLD, WIN_RATE

PROMPTS = 60


def study(families, seeds=3, noise=0.2):
    """Outcomes of gold and KL by arm; `families` maps a family to the (KL, gold) of its settings.

    Prompts are as hard for one arm as for another, and arms named alike draw alike.
    """
    values, kls, members = {}, {}, {}
    for family, points in families.items():
        for number, (kl, gold) in enumerate(points):
            arm = f"{family}-{number}"
            members.setdefault(family, []).append(arm)
            values[arm], kls[arm] = {}, {}
            for seed in range(seeds):
                generator = np.random.default_rng([seed, number])
                names = [f"{seed}-{i:03d}" for i in range(PROMPTS)]
                draws = generator.normal(size=(2, PROMPTS))
                values[arm][seed] = dict(zip(names, gold + noise * draws[0], strict=True))
                kls[arm][seed] = dict(zip(names, kl * (1 + 0.1 * draws[1]), strict=True))
    return members, values, kls


def test_a_gap_by_hand():
    # Roots of KL: ours from 0 to 2, theirs from 1 to 3. At 1 the gap is 0.7 - 0.5, at 2 it is 0.9 - 0.65.
    ours, theirs = line_of([(0.0, 0.5), (4.0, 0.9)]), line_of([(9.0, 0.8), (1.0, 0.5)])
    assert equal_kl_gap(ours, theirs) == pytest.approx((0.225, 1, 2))
    assert equal_kl_gap(theirs, ours) == pytest.approx((-0.225, 1, 2))


def test_a_gap_is_the_integral_of_the_difference():
    generator = np.random.default_rng(3)
    lines = [line_of(zip(generator.uniform(0, 9, 5), generator.normal(size=5), strict=True)) for _ in range(2)]
    gap, least, most = equal_kl_gap(*lines)
    inside = sorted({*np.concatenate([x for x, _ in lines]).clip(least, most)})
    area = quad(lambda x: np.interp(x, *lines[0]) - np.interp(x, *lines[1]), least, most, points=inside)[0]
    assert gap == pytest.approx(area / (most - least))


def test_a_single_setting_is_read_off_the_other_line():
    line = line_of([(1.0, 0.5), (9.0, 0.9)])
    assert equal_kl_gap(line_of([(4.0, 0.75)]), line) == pytest.approx((0.05, 2, 2))
    assert equal_kl_gap(line_of([(9.1, 0.9)]), line) is None
    assert equal_kl_gap(line_of([]), line) is None


def test_settings_of_one_kl_count_as_their_mean_and_a_negative_kl_as_none():
    x, y = line_of([(-0.1, 0.5), (0.0, 0.7), (4.0, 0.9)])
    assert (x.tolist(), y.tolist()) == ([0, 2], pytest.approx([0.6, 0.9]))


def test_a_longer_step_on_the_same_line_is_no_better():
    curve = [(kl, 0.4 * kl**0.5) for kl in (0.25, 1.0, 2.25, 4.0, 6.25)]
    families, values, kls = study({"short": curve[:4], "long": curve[1:]})
    (found,) = compare_families(families, values, kls, {"long": "short"}, GOLD)
    raw = frontier(families["long"], values, kls, GOLD)[0].value.mean
    assert raw > frontier(families["short"], values, kls, GOLD)[0].value.mean + 0.1
    assert found.comparison.verdict == "not distinguishable"
    assert found.comparison.difference.low < 0 < found.comparison.difference.high
    assert found.kl == (pytest.approx(1, rel=0.1), pytest.approx(4, rel=0.1))


def test_a_better_method_is_better_at_equal_kl():
    base = [(kl, 0.4 * kl**0.5) for kl in (0.25, 1.0, 4.0)]
    families, values, kls = study({"base": base, "ours": [(kl, gold + 0.3) for kl, gold in base]})
    for arm in families["ours"]:
        values[arm] = {seed: {p: gold + 0.01 * seed for p, gold in each.items()} for seed, each in values[arm].items()}
    (found,) = compare_families(families, values, kls, {"ours": "base"}, GOLD)
    assert found.comparison.difference.mean == pytest.approx(0.31)
    assert (found.comparison.verdict, found.left_out) == ("better", ())
    assert found.comparison.difference.covers == "seeds and prompts"
    assert found.comparison.difference.prompts == 3 * PROMPTS


def test_identical_families_differ_by_exactly_nothing():
    points = [(0.5, 0.2), (1.0, 0.4)]
    families, values, kls = study({"a": points, "b": points})
    (found,) = compare_families(families, values, kls, {"a": "b"}, GOLD)
    gap = found.comparison.difference
    assert (gap.mean, gap.low, gap.high, found.comparison.verdict) == (0, 0, 0, "not distinguishable")


def test_the_order_of_seeds_and_arms_does_not_matter():
    points = [(0.5, 0.2), (1.0, 0.4)]
    families, values, kls = study({"a": points, "b": [(0.6, 0.3), (2.0, 0.5)]})
    found = compare_families(families, values, kls, {"a": "b"}, GOLD)
    turned = [{arm: dict(reversed(seeds.items())) for arm, seeds in reversed(each.items())} for each in (values, kls)]
    again = compare_families({name: arms[::-1] for name, arms in families.items()}, *turned, {"a": "b"}, GOLD)
    assert again == found


def test_families_that_share_no_kl_are_not_compared():
    families, values, kls = study({"near": [(0.1, 0.1), (0.5, 0.2)], "far": [(4.0, 0.5), (9.0, 0.6)]})
    (found,) = compare_families(families, values, kls, {"far": "near"}, GOLD)
    assert (found.comparison.verdict, found.kl, found.left_out) == ("not compared", None, (0, 1, 2))
    assert found.comparison.reason == "the two span no KL in common in any seed"
    (found,) = compare_families({"a": ["x"], "b": ["y"]}, {}, {}, {"a": "b"}, GOLD)
    assert found.comparison.reason == "no finished run of either has both gold and KL"
    (found,) = compare_families(families, values, {"near-0": kls["near-0"]}, {"far": "near"}, GOLD)
    assert found.comparison.reason == "no finished run of far has both gold and KL"


def test_seeds_in_which_they_share_no_kl_are_named():
    families, values, kls = study({"a": [(1.0, 0.4), (4.0, 0.8)], "b": [(1.0, 0.3), (4.0, 0.7)]})
    for arm in families["b"]:
        kls[arm][1] = {prompt: kl + 50 for prompt, kl in kls[arm][1].items()}
    (found,) = compare_families(families, values, kls, {"a": "b"}, GOLD)
    assert (found.left_out, found.comparison.difference.seeds) == ((1,), 2)


def test_runs_without_evidence_by_prompt_are_compared_over_seeds():
    points = {"a": (0.8, 0.6), "b": (0.7, 0.5)}
    values = {
        f"{name}{i}": {s: {WHOLE: win + 0.01 * s * (name == "a")} for s in range(3)}
        for name, w in points.items()
        for i, win in enumerate(w)
    }
    kls = {arm: {s: {WHOLE: 2.0 if arm.endswith("0") else 1.0} for s in range(3)} for arm in values}
    (found,) = compare_families({"a": ["a0", "a1"], "b": ["b0", "b1"]}, values, kls, {"a": "b"}, WIN_RATE)
    assert found.comparison.difference.mean == pytest.approx(0.11)
    assert (found.comparison.difference.covers, found.kl) == ("seeds", (pytest.approx(1), pytest.approx(2)))


def test_a_family_is_compared_with_the_family_of_its_arms_baselines():
    families = {
        "dpo": ["dpo,s", "dpo,l"],
        "sera": ["sera,s", "sera,l"],
        "one": ["one,s"],
        "mixed": ["mixed,s", "mixed,l"],
    }
    baselines = {"sera,s": "dpo,s", "sera,l": "dpo,l", "dpo,l": "dpo,s", "mixed,s": "dpo,s", "mixed,l": "sera,l"}
    assert family_baselines(families, {**baselines, "one,s": "elsewhere"}) == {"sera": "dpo"}


def test_points_stand_in_the_order_of_their_kl_and_need_both_figures():
    families, values, kls = study({"a": [(4.0, 0.5), (1.0, 0.4)]})
    assert [point.arm for point in frontier([*families["a"], "none"], values, kls, GOLD)] == ["a-1", "a-0"]
    assert frontier(families["a"], values, {}, GOLD) == ()


def test_settings_within_the_compared_kl_are_counted():
    near, far = [(0.25, 0.2), (1.0, 0.4), (4.0, 0.8)], [(1.0, 0.5), (1.5, 0.6), (2.5, 0.7), (9.0, 0.9)]
    families, values, kls = study({"near": near, "far": far, "wide": [(0.1, 0.1), (20.0, 0.9)], "one": [(2.0, 0.5)]})
    found = compare_families(families, values, kls, {"far": "near", "wide": "near", "one": "near"}, GOLD)
    # By hand: KL from about 1 to 4 holds two of near and three of far; wide has its settings on either side.
    assert [each.inside for each in found] == [(3, 2), (0, 3), (1, 0)]
    (none,) = compare_families(families, values, {}, {"far": "near"}, GOLD)
    assert none.inside == (0, 0)


def test_a_gap_that_does_not_vary_is_not_called_certain():
    points = [(0.5, 0.2), (1.0, 0.4)]
    families, values, kls = study({"a": [(kl, gold + 0.3) for kl, gold in points], "b": points})
    (found,) = compare_families(families, values, kls, {"a": "b"}, GOLD)
    assert found.comparison.difference.mean == pytest.approx(0.3)
    assert (found.comparison.verdict, found.comparison.p) == ("nothing varies", None)
