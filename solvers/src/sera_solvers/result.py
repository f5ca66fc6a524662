"""What the solvers return: immutable, printable, and able to show why the answer is right."""

from __future__ import annotations

from dataclasses import dataclass

from sera_solvers.arrays import Array, Scalar, frozen, is_tensor, namespace


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The worst distribution within a Wasserstein-1 ball around a sample on the line, with its certificate.

    Arrays are NumPy (read-only) for NumPy input and detached float64 tensors on the input's device for tensors;
    scalars are floats or 0-d tensors alike.

    Attributes:
        value: the worst-case expected loss, attained by the distribution of `atoms()`.
        empirical_value: mean over the sample itself of what was solved: the loss, or the affine pieces of a program.
        dual_price: lambda >= 0, what one more unit of radius adds to `value`.
        moved: [N] in [0, 1], the fraction of each atom's mass that moves. An atom already on the end it would move to
            counts as moved. A program may move all of an atom part of the way; that counts as the part of the way.
        weights: [N] gradient / l'(xi): the weight of each pair's base loss that gives the gradient of the worst case;
            where l'(xi_i) is 0, it is 1 if the gradient is 0 as well and nan otherwise.
        gradient: [N] N dV/dxi_i with the support fixed (envelope theorem).
        alpha: [N, K] >= 0, rows sum to 1: the shares each atom is split into. Exact: columns stay, lo and, unless the
            loss is decreasing, hi. Program: one column per affine piece.
        displacement: [N, K] q; the share alpha_ik sits at xi_i - q_ik / alpha_ik.
        xi: [N] the sample.
        radius: the ball's radius, in units of xi.
        support: (lo, hi).
        duality_gap: dual bound at `dual_price` minus `value`; >= 0 up to rounding, and no better worst case than
            `value + duality_gap` exists.
        tangent_gap: the most by which the loss exceeds the affine pieces of a program; 0 for exact results.
        loss: the loss's name.
        method: "exact" or "program".
        status: "optimal".
        solve_seconds: wall time of the call; on an accelerator the time to launch it.

    Source: the finite convex program of Mohajerin Esfahani and Kuhn 2018, Theorem 4.4.
    """

    value: Scalar
    empirical_value: Scalar
    dual_price: Scalar
    moved: Array
    weights: Array
    gradient: Array
    alpha: Array
    displacement: Array
    xi: Array
    radius: Scalar
    support: tuple[float, float]
    duality_gap: Scalar
    tangent_gap: float
    loss: str
    method: str
    status: str
    solve_seconds: float

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def positions(self) -> Array:
        """[N, K] where each share sits, xi_i - q_ik / alpha_ik, inside the support; xi_i for empty shares."""
        xp = namespace(self.xi)
        held = self.alpha > 0
        away = xp.where(held, self.displacement, 0.0) / xp.where(held, self.alpha, 1.0)
        return (self.xi[:, None] - away).clip(*self.support)

    @property
    def transport(self) -> Scalar:
        """Sum |q| / N: what the worst case spends of the radius, in units of xi."""
        return abs(self.displacement).sum() / len(self.xi)

    def atoms(self) -> tuple[Array, Array]:
        """The worst-case distribution: positions and masses, 1-D, masses > 0 with total 1.

        The number of atoms depends on the values, so this waits for an accelerator.

        Source: Mohajerin Esfahani and Kuhn 2018, Theorem 4.4 (atoms xi_i - q_ik / alpha_ik of mass alpha_ik / N).
        """
        held = self.alpha > 0
        return self.positions[held], self.alpha[held] / len(self.xi)

    def __str__(self) -> str:
        low, high = self.support
        lines = [
            f"Worst case of {self.loss}, {len(self.xi)} atoms on [{low:g}, {high:g}] ({self.method}, {self.status})",
            f"  radius         {_number(self.radius)}  (spent {_number(self.transport)})",
            f"  value          {_number(self.value)}  (empirical {_number(self.empirical_value)})",
            f"  dual price     {_number(self.dual_price)}  per unit of radius",
            f"  mass moved     {_number(self.moved.sum() / len(self.xi))}",
            f"  weights        {_number(self.weights.min())} to {_number(self.weights.max())}",
            f"  duality gap    {_number(self.duality_gap)}  tangent gap {_number(self.tangent_gap)}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class WorstWeights:
    """The worst reweighting of a sample whose atoms stay where they are.

    Attributes:
        value: mean of weights times losses, or what `name`'s definition makes of it.
        empirical_value: mean loss of the sample.
        weights: [N] >= 0, mean 1.
        dual_price: price of the constraint, or the temperature, as the function that made it documents.
        name: the ambiguity set.
        status: "optimal".
    """

    value: Scalar
    empirical_value: Scalar
    weights: Array
    dual_price: Scalar
    name: str
    status: str = "optimal"

    def __post_init__(self) -> None:
        _freeze(self)

    @property
    def effective_size(self) -> Scalar:
        """(sum w)^2 / sum w^2: how many equally weighted atoms the weights are worth, in [1, N]."""
        return self.weights.sum() ** 2 / (self.weights**2).sum()

    def __str__(self) -> str:
        lines = [
            f"Worst weights of {len(self.weights)} atoms, {self.name} ({self.status})",
            f"  value          {_number(self.value)}  (empirical {_number(self.empirical_value)})",
            f"  dual price     {_number(self.dual_price)}",
            f"  weights        {_number(self.weights.min())} to {_number(self.weights.max())}",
            f"  effective size {_number(self.effective_size)}",
        ]
        return "\n".join(lines)


def _freeze(result: WorstCase | WorstWeights) -> None:
    for name in result.__dataclass_fields__:
        frozen(getattr(result, name))


def _number(x: Scalar) -> str:
    """A scalar in six digits; the word 'unknown' on the meta device, which holds no values."""
    return "unknown" if is_tensor(x) and x.is_meta else f"{float(x):.6g}"
