import numpy as np
import pytest
import torch

from sera_solvers import NEG_LOG, AffineMax, ConvexLoss, InputError, tangent_gap, tangents
from sera_solvers.losses import as_loss, check_support

SQUARE = ConvexLoss(lambda x: (x - 0.4) ** 2, lambda x: 2 * (x - 0.4), "square")


def test_neg_log_by_hand():
    x = np.array([1.0, 0.5, 0.25])
    np.testing.assert_allclose(NEG_LOG.value(x), [0, np.log(2), np.log(4)], rtol=1e-15)
    np.testing.assert_array_equal(NEG_LOG.derivative(x), [-1, -2, -4])


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_affine_max_by_hand(make):
    loss = AffineMax((-1.0, 0.0, 2.0), (1.0, 0.5, -1.0))
    x = make([0.0, 0.6, 1.0])
    np.testing.assert_allclose(np.asarray(loss.value(x)), [1.0, 0.5, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(np.asarray(loss.derivative(x)), [-1, 0, 2])
    assert not loss.decreasing
    assert AffineMax((-1.0, 0.0), (0.0, 0.0)).decreasing


@pytest.mark.parametrize(("loss", "support"), [(NEG_LOG, (0.01, 1.0)), (SQUARE, (-0.5, 1.0))])
@pytest.mark.parametrize("pieces", [2, 5, 16])
def test_tangents_touch_at_their_points_and_lie_below(loss, support, pieces):
    affine = tangents(loss, support, pieces)
    grid = np.linspace(*support, 20_001)
    below = loss.value(grid) - affine.value(grid)
    assert below.min() > -1e-12
    points = np.geomspace(*support, pieces) if support[0] > 0 else np.linspace(*support, pieces)
    np.testing.assert_allclose(affine.value(points), loss.value(points), rtol=1e-12, atol=1e-14)
    gap = tangent_gap(loss, affine, support)
    assert below.max() <= gap * (1 + 1e-12)
    assert below.max() == pytest.approx(gap, rel=2e-3)


def test_tangent_gap_by_hand():
    # The tangents of x^2 at 0 and 1 are 0 and 2x - 1; they meet at 1/2, where x^2 is 1/4.
    square = ConvexLoss(lambda x: x**2, lambda x: 2 * x, "square")
    assert tangent_gap(square, tangents(square, (0.0, 1.0), 2), (0.0, 1.0)) == pytest.approx(0.25, rel=1e-15)
    pieces = AffineMax((-1.0, 1.0), (0.0, 0.0))
    assert tangent_gap(pieces, pieces, (-1.0, 1.0)) == 0


def test_pairs_are_a_loss():
    assert as_loss([(-1, 2), (3, 4)]) == AffineMax((-1.0, 3.0), (2.0, 4.0))
    assert as_loss(np.array([[-1, 2], [3, 4]])) == AffineMax((-1.0, 3.0), (2.0, 4.0))
    assert as_loss(NEG_LOG) is NEG_LOG


def test_a_loss_without_a_value_at_an_end_is_named():
    open_ended = ConvexLoss(lambda x: -np.log(x), lambda x: -1 / x, "open")
    with pytest.raises(
        InputError, match=r"^loss: expected a finite .* got a value of inf at 0 for 'open'\. Choose a sup"
    ):
        tangents(open_ended, (0.0, 1.0), 4)
    steep = ConvexLoss(lambda x: -np.sqrt(1 - x), lambda x: 0.5 / np.sqrt(1 - x), "steep")
    with pytest.raises(InputError, match="^loss: .* got a derivative of inf at 1 for 'steep'"):
        tangents(steep, (0.0, 1.0), 4)
    flat = ConvexLoss(lambda x: -x, lambda x: -1.0, "flat")
    with pytest.raises(InputError, match=r"^loss: .* got shape \(\) from the derivative of 'flat'"):
        tangents(flat, (0.0, 1.0), 4)


@pytest.mark.parametrize(
    "loss",
    [[], [(1, 2, 3)], "neg-log", 3, [(np.nan, 0)], [("a", 1)], [(1, 2), (3,)], np.log, np.ones(2), np.ones((2, 3))],
)
def test_what_is_not_a_loss(loss):
    with pytest.raises(InputError, match="^loss: expected"):
        as_loss(loss)


def test_affine_max_needs_matching_lengths():
    with pytest.raises(InputError, match="loss: .* got 2 slopes and 1 intercepts"):
        AffineMax((1.0, 2.0), (0.0,))


@pytest.mark.parametrize("support", [(1.0, 0.0), (0.5, 0.5), (0.0, np.nan), (0.0, np.inf), 3, (0, 1, 2), ("a", 1)])
def test_bad_support(support):
    with pytest.raises(InputError, match="^support: expected"):
        check_support(support, SQUARE)


def test_neg_log_needs_a_positive_low_end():
    with pytest.raises(InputError, match="support: expected lo > 0 for the loss 'neg-log', got lo = 0"):
        check_support((0.0, 1.0), NEG_LOG)


@pytest.mark.parametrize("pieces", [1, 0, 2.0, True, "8"])
def test_too_few_pieces(pieces):
    with pytest.raises(InputError, match="pieces: expected an integer >= 2"):
        tangents(NEG_LOG, (0.01, 1.0), pieces)
