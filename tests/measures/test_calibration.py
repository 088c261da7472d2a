import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from helpers.measures.calibration import calibration_error, reliability


def test_calibration_of_a_forecaster_who_means_it():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    right = rng.random(20_000) < confidence
    assert calibration_error(confidence, right) < 0.02
    table = reliability(confidence, right)
    assert len(table) == 10 and table["count"].sum() == 20_000
    assert np.abs(table["confidence"] - table["right"]).max() < 0.05


def test_calibration_error_by_hand():
    confidence, right = [0.95, 0.95, 0.95, 1.0, 0.55], [1, 0, 0, 0, 1]
    assert calibration_error(confidence, right) == pytest.approx(4 / 5 * (3.85 / 4 - 1 / 4) + 1 / 5 * 0.45)
    assert calibration_error([1.0, 0.0], [1, 0]) == 0


def test_reliability_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    confidence = rng.beta(5, 2, 500)
    right = rng.random(500) < confidence
    for bins in (5, 10):
        table = reliability(confidence, right, bins)
        share, mean = calibration_curve(right, confidence, n_bins=bins)
        assert table["right"].to_numpy() == pytest.approx(share) and table["confidence"].to_numpy() == pytest.approx(mean)
