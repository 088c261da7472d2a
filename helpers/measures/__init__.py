"""More measures than right and wrong: text, likelihood, comparisons, votes."""
