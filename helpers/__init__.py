"""The small shared package of the course: read it in an hour, from data to training to evaluation.

Nothing heavy is imported here, so `import helpers` is instant; take what you need from its room:

    formats → data → cleaning → loading → models → lora → tokenization → trial → attention → checkpoint → training
    → reading → generation → retrieval → judging → evaluation → measures → comparison → voting → lesson
    (beside them: packaged holds the models that come as packages, estimate says what a finetune takes,
    export writes a model as GGUF, progress shows how far work is,
    output tells beforehand what cannot be written)
    and beyond the hour, how models are served to many: the package `server`
"""

import sys
import warnings

# In words that every Python 3 understands: newer ones are first met in the other modules. The Makefile runs this file too.
if sys.version_info < (3, 11):  # noqa: UP036
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(
        f"error: The course needs Python 3.11 or newer, and this is {found}. Install a newer one, delete .venv if it is there, "
        "and say: make install PYTHON=python3.11, or python3.11 -m venv .venv"
    )

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm of a kernel without ipywidgets, where bars are text
