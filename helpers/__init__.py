"""The small shared package of the course.

A class reads its core in an hour, in this order:

    data → tokenization → attention → lora → models → training → generation → evaluation → lesson → recipe

What lies below the core stands in `machine` (files, memory, checkpoints, models as they come) and `text` (messages,
templates, what counts as the same answer). Five of its files go with the core: `text.messages` with data, `text.templates`
with tokenization, `machine.kernels` with attention, `machine.preparing` with training, `machine.decoding` with generation.
Beside it are wings, each for its lesson: `own_data` (any common file), `retrieval`, `measures`, `hardware`, `serving` and
`workshop`. The core imports what lies below and no wing. Nothing heavy is imported here, so `import helpers` is instant;
take what you need from its room.
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
