"""Calibration: whether a model that is 90% sure is right nine times in ten."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Group answers by how sure the model was, in steps of 1 / bins: mean confidence, share right, and count of each.

    scikit-learn's `calibration_curve` gives the same points without the counts, which say how much a point is worth.
    """
    table = pd.DataFrame({"confidence": np.asarray(confidence, float), "right": np.asarray(right, float)})
    group = np.minimum((table["confidence"] * bins).astype(int), bins - 1)
    return table.groupby(group).agg(confidence=("confidence", "mean"), right=("right", "mean"), count=("right", "size"))


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 10) -> float:
    """Compute by how much confidence and accuracy differ on average, from 0 (calibrated) to 1.

    Known as expected calibration error. Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    table = reliability(confidence, right, bins)
    return float((table["count"] * (table["confidence"] - table["right"]).abs()).sum() / table["count"].sum())
