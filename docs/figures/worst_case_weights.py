"""Draws docs/images/worst_case_weights.svg: weight against confidence for several radii.

python docs/figures/worst_case_weights.py [TARGET]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

from sera_solvers import wasserstein

TARGET = Path(__file__).parents[1] / "images" / "worst_case_weights.svg"
RADII = (0.01, 0.05, 0.15)


def draw(target: Path) -> None:
    """A batch of confidences spread evenly over (0.01, 1): the weight of each, for each radius."""
    mpl.use("svg")
    # Without these two the file would differ from run to run.
    mpl.rcParams["svg.hashsalt"] = "worst-case weights"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    xi = np.linspace(0.01, 1, 400)
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for radius in RADII:
        worst = wasserstein(xi, radius)
        axes.plot(xi, worst.weights, label=f"radius {radius:g}")
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="confidence in the given label", ylabel="weight", xlim=(0, 1), ylim=(0, None))
    axes.legend(frameon=False)
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
