"""Measuring, scoring, labeling, selecting: the functions between a policy and its training set."""

import dataclasses

import numpy as np
import pytest

from sera_core.curate import diagnose
from sera_core.curate.label import label, with_targets
from sera_core.curate.measure import measure, pack, unpack
from sera_core.curate.prompts import named_prompts, offline_prompts, share_of_round
from sera_core.curate.score import both_sides, by_prompt, margins, pair_margins, score
from sera_core.curate.select import keep, mix, select
from sera_core.curate.streams import stream
from sera_core.errors import ConfigError, DataError, ModelError
from sera_core.protocols import Needs
from sera_core.records import Candidates, Pair, Pairs, Prompt, Response, ScoringLogps, SourceData, TextPrompt


def prompt(name):
    return Prompt(name, np.array([7], dtype=np.int32), TextPrompt(name, "ask"))


def response(name, *ids, owner=None):
    return Response(owner or prompt(name), np.array(ids, dtype=np.int32), "t", "stop", "policy:1")


def pair(name, chosen=(1, 2), rejected=(3,), flipped=None):
    owner = prompt(name)
    return Pair(
        name, response(name, *chosen, owner=owner), response(name, *rejected, owner=owner), "s", "t", 1.0, flipped
    )


def test_measure_computes_what_is_needed_and_nothing_else():
    asked = []

    def logps_of(model, responses):
        asked.append(model)
        return np.full(len(responses), float(len(asked)))

    responses = [response("a", 1), response("b", 1, 2)]
    found = measure(responses, Needs(history=1, reference=True), [(2, "p2", "p1"), (1, "p1", "p0")], "p0", logps_of)
    assert asked == ["p2", "p1"]
    assert found.lengths.tolist() == [1, 2]
    assert found.initial is None
    assert [(i.iteration, i.policy[0], i.reference[0]) for i in found.iterates] == [(2, 1.0, 2.0)]


def test_measure_without_reference_marks_it_as_missing():
    found = measure([response("a", 1)], Needs(history=1), [(1, "p1", "p0")], "p0", lambda *_: np.zeros(1))
    assert np.isnan(found.iterates[0].reference).all()


def test_measure_refuses_non_finite():
    with pytest.raises(ModelError, match="response 0 under model p0 is -inf"):
        measure([response("a", 1)], Needs(initial=True), [], "p0", lambda *_: np.array([-np.inf]))


def test_packed_logps_come_back_in_order():
    iterates = [(t, f"p{t}", f"p{t - 1}") for t in range(12, 0, -1)]
    needs = Needs(history=12, reference=True, initial=True)
    logps = measure([response("a", 1)], needs, iterates, "p0", lambda model, _: np.array([float(model[1:])]))
    again = unpack(pack(logps))
    assert [i.iteration for i in again.iterates] == list(range(12, 0, -1))
    assert [i.policy[0] for i in again.iterates] == [float(t) for t in range(12, 0, -1)]
    assert again.initial is not None


@dataclasses.dataclass(frozen=True)
class Fixed:
    values: tuple[float, ...]
    needs: Needs = Needs()

    def scores(self, responses, logps):
        return np.array(self.values)

    def select(self, margins, pool, rng):
        return np.array(self.values)


@pytest.mark.parametrize("values", [(1.0,), (1.0, float("nan"))])
def test_bad_scores_are_refused(values):
    with pytest.raises(ModelError, match="must return 2 finite scores"):
        score(Fixed(values), [response("a", 1), response("b", 1)], ScoringLogps(np.array([1, 1])))


def test_margins_are_chosen_minus_rejected():
    pairs = [pair("a"), pair("b")]
    assert [r.prompt.id for r in both_sides(pairs)] == ["a", "b", "a", "b"]
    assert margins(np.array([3.0, 5.0, 1.0, 7.0])).tolist() == [2.0, -2.0]


def test_scores_split_by_prompt():
    group = Candidates((prompt("a"), prompt("b")), ((response("a", 1),), (response("b", 1), response("b", 2))))
    assert [part.tolist() for part in by_prompt(group, np.array([1.0, 2.0, 3.0]))] == [[1.0], [2.0, 3.0]]
    assert by_prompt(Candidates((), ()), np.zeros(0)) == ()


def test_margins_of_labelled_pairs_and_invented_responses():
    owner = prompt("a")
    first, second = response("a", 1, owner=owner), response("a", 2, owner=owner)
    group = Candidates((owner,), ((first, second),))
    made = Pair("x", second, first, "", "")
    assert pair_margins([made], group, np.array([1.0, 4.0])).tolist() == [3.0]
    with pytest.raises(DataError, match="not a candidate of prompt 'a'"):
        pair_margins([Pair("x", response("a", 9, owner=owner), first, "", "")], group, np.array([1.0, 4.0]))


@pytest.mark.parametrize("values", [(2.0,), (-1.0,), (1.0, 0.0), (0.0, 0.0)])
def test_bad_selections_are_refused(values):
    with pytest.raises(ConfigError, match="not sorted, unique and in range"):
        select(Fixed(values), np.zeros(2), 2, np.random.default_rng(0), np.arange(2))


def test_an_empty_selection_is_a_selection():
    assert select(Fixed(()), np.zeros(2), 2, np.random.default_rng(0), np.arange(2)).size == 0


def test_mix_counts_drops_per_source():
    offline, generated = Pairs((pair("a"), pair("b")), {"identical_pair": 1}), Pairs((pair("c"),), {"tied_scores": 2})
    mixed = mix({"offline": keep(offline, np.array([1])), "generated": generated})
    assert [p.id for p in mixed.pairs] == ["b", "c"]
    assert mixed.dropped == {"offline.identical_pair": 1, "generated.tied_scores": 2}


def test_nothing_left_to_train_on():
    with pytest.raises(DataError, match="No pair is left to train on. Dropped: generated.tied_scores 3"):
        mix({"generated": Pairs((), {"tied_scores": 3})})


def test_prompts_of_a_round():
    assert [share_of_round("abcdefgh", i, 3) for i in range(3)] == [("a", "b"), ("c", "d"), ("e", "f")]
    with pytest.raises(ConfigError, match="2 prompts cannot be split over 3"):
        share_of_round("ab", 0, 3)


def test_offline_prompts_are_distinct_and_ordered():
    pairs = [pair("b"), pair("a"), dataclasses.replace(pair("b"), id="b2")]
    assert [p.id for p in offline_prompts(pairs)] == ["b", "a"]


def test_named_prompts_must_exist():
    with pytest.raises(ConfigError, match="brought no such prompts"):
        named_prompts(SourceData("s", (), (), ()), "fresh")


def test_targets_come_first():
    owner, target = prompt("a"), response("a", 9)
    group = with_targets(Candidates((owner,), ((response("a", 1, owner=owner),),)), {"a": target})
    assert [r.ids.tolist() for r in group.responses[0]] == [[9], [1]]
    assert group.responses[0][0].prompt is owner
    with pytest.raises(DataError, match="'a' has no reference answer"):
        with_targets(group, {})


def test_labelled_pairs_are_marked():
    class Labeler:
        needs = Needs()

        def label(self, candidates, scores, rng):
            return Pairs((pair("a"), pair("a")), {"tied_scores": 1})

    found = label(
        Labeler(), Candidates((), ()), (), stream(0, 2, "label"), iteration=2, template="abc", lost={"tied_scores": 2}
    )
    assert [p.id for p in found.pairs] == ["a#2.0", "a#2.1"]
    assert {(p.source, p.template) for p in found.pairs} == {("generated", "abc")}
    assert found.dropped == {"tied_scores": 3}


def test_streams_are_independent_and_repeatable():
    draws = {name: stream(0, 1, name).random() for name in ("a", "b")}
    assert draws["a"] == stream(0, 1, "a").random()
    assert len({draws["a"], draws["b"], stream(0, 2, "a").random(), stream(1, 1, "a").random()}) == 4


def test_flip_auc_by_hand():
    pairs = [pair("a", flipped=True), pair("b", flipped=False), pair("c", flipped=False)]
    assert diagnose.flip_auc(np.array([-1.0, 2.0, 3.0]), pairs) == 1.0
    assert diagnose.flip_auc(np.array([2.5, 2.0, 3.0]), pairs) == 0.5
    assert diagnose.flip_auc(np.array([1.0]), [pair("a")]) is None
    assert diagnose.flip_auc(np.array([1.0]), [pair("a", flipped=False)]) is None


def test_other_diagnostics_by_hand():
    pairs = [pair("a", flipped=True), pair("b", flipped=False)]
    assert diagnose.flipped_share(pairs) == 0.5
    assert diagnose.flipped_share([pair("a")]) is None
    assert diagnose.length_advantage(pairs) == 1.0
    assert diagnose.length_advantage([]) is None
    assert diagnose.agreement(np.array([1.0, 2.0, 0.0, 2.0]), 2) == 0.75
    assert diagnose.agreement(np.zeros(0), 0) is None
