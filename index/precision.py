"""Average precision: how well a score puts what is wanted before what is not."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under precision over recall, step-wise (as scikit-learn defines it); ties are taken together."""
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.asarray(positive)[order].astype(np.float64), scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    found = np.cumsum(hits)[last]
    return float(np.sum(np.diff(found, prepend=0.0) / found[-1] * found / (last + 1)))
