from dataclasses import replace

import numpy as np
import pytest

from sera_core.builtin.annotated import Annotated
from sera_core.builtin.length import Length
from sera_core.builtin.reference_gap import ReferenceGap
from sera_core.errors import ConfigError, DataError, ModelError
from sera_core.protocols import Needs
from sera_core.records import ScoringLogps
from sera_core.testing.samples import response

LOGPS = ScoringLogps(np.array([2, 5, 0]), initial=np.array([-3.0, -4.0, 0.0]))


def test_length_counts_tokens_with_a_sign():
    assert Length().scores((), LOGPS).tolist() == [2.0, 5.0, 0.0]
    assert Length(sign="shorter").scores((), LOGPS).tolist() == [-2.0, -5.0, 0.0]
    assert Length().needs == Needs()


def test_annotated_reads_scores():
    scored = [response(0, "red", score=1.5), response(1, "blue", score=-2.0)]
    assert Annotated().scores(scored, LOGPS).tolist() == [1.5, -2.0]
    assert Annotated().needs == Needs(annotations=True)


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_missing_annotation_names_the_prompt(score):
    with pytest.raises(DataError, match="response to prompt 'p4' has no annotated score"):
        Annotated().scores([response(0, "red", score=1.0), response(4, "red", score=score)], LOGPS)


def test_reference_gap_is_the_initial_log_prob():
    assert ReferenceGap().scores((), LOGPS).tolist() == [-3.0, -4.0, 0.0]
    assert ReferenceGap(normalise=True).scores((), LOGPS).tolist() == [-1.5, -0.8, 0.0]
    assert ReferenceGap().needs == Needs(initial=True)


def test_missing_initial_log_probs_are_named():
    with pytest.raises(ModelError, match="initial policy"):
        ReferenceGap().scores((), replace(LOGPS, initial=None))


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="scorer 'length': option sign must be 'longer' or 'shorter'; got 'up'"):
        Length(sign="up")
    with pytest.raises(ConfigError, match="scorer 'reference_gap': option normalise must be true or false; got 1"):
        ReferenceGap(normalise=1)
