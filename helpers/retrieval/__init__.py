"""Search: passages, the index, and prompts made of what was found."""
