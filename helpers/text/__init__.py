"""What is said in a text: messages, JSON Lines, Markdown, chat templates, normalised words, values, refusals, outcomes."""
