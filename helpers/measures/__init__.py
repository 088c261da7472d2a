"""More measures than right and wrong: texts, kinds of error, likelihood, calibration, labels, comparisons, votes."""
