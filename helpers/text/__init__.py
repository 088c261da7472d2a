"""What is said in a text: normalised words, values, refusals."""
