"""Models served to many, over the routes of Lamini and OpenAI, and exported."""
