"""The small shared package of the course: read it in an hour, from data to training to evaluation.

Nothing is imported here, so `import helpers` is instant; take what you need from its room:

    formats → data → cleaning → models → lora → tokenization → trial → attention → checkpoint → training
    → reading → generation → retrieval → evaluation → measures → comparison → voting → lesson
    (beside them: estimate says what a finetune takes, export writes a model as GGUF)
    and beyond the hour, how models are served to many: the package `server`
"""
