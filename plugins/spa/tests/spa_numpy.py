"""Both refinements once more, in plain numpy and step by step: (confidences, progress) in, (tau, flags, keep, flip) out."""

import numpy as np


def paper(steps, *, alpha, share, warmup, scope="window", window=50):
    """Kim 2024 (SPA), Eq. 9-10; the quantile interpolates between order statistics."""
    seen = np.empty(0)
    for confidences, progress in steps:
        confidences = np.asarray(confidences, dtype=np.float64)
        seen = np.concatenate([seen, confidences])
        pool = np.sort(seen[-window:] if scope == "window" else confidences)
        at = share * (len(pool) - 1)
        low = int(np.floor(at))
        high = min(low + 1, len(pool) - 1)
        tau = pool[low] + (at - low) * (pool[high] - pool[low])
        z = np.zeros(len(confidences))
        if progress >= warmup and share > 0:
            z[confidences < tau] = 1
        yield tau, z, 1 - alpha * z, alpha * z


def released(steps, *, alpha, share, warmup, window=50, micro_batch=1):
    """The released code: a ring of mean margins, tau between two of its neighbours."""
    ring = []
    for confidences, progress in steps:
        xi = np.asarray(confidences, dtype=np.float64)
        margins = np.log(xi) - np.log1p(-xi)
        z, tau = np.zeros(len(margins)), 0.0
        for first in range(0, len(margins), micro_batch):
            chunk = margins[first : first + micro_batch]
            ring.append(chunk.mean())
            if len(ring) > window:
                ring.pop(0)
            tau = 0.0
            if len(ring) == window:
                ordered, at = sorted(ring), int(window * share)
                tau = (ordered[at] + ordered[at + 1]) / 2
            confident = chunk > tau
            if progress >= warmup:
                z[first : first + micro_batch] = ~confident
        yield tau, z, 1 - alpha * z, alpha * z
