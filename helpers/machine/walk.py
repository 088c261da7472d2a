"""Walk: the files below a folder that its owner put there to be read."""

import os
from collections.abc import Iterable
from pathlib import Path

# What programs keep beside a person's files. Whatever begins with a dot is left out as well.
NOT_MEANT = {"node_modules", "venv", "env", "site-packages", "dist-packages", "__pycache__", "__MACOSX", "wandb", "runs"}


def _meant(folder: Path) -> bool:
    """Tell whether a folder below another one is the owner's own: no environment, no checkpoint, nothing hidden."""
    if folder.name.startswith(".") or folder.name in NOT_MEANT or folder.name.startswith("checkpoint-"):
        return False
    return not any(os.path.exists(folder / mark) for mark in ("pyvenv.cfg", "conda-meta", "trainer_state.json"))


def files_below(folder: str | Path, endings: Iterable[str]) -> list[Path]:
    """List a folder's files with such endings of their names, in lower case with the dot; sorted, links not followed.

    Left out are hidden files and folders, and those that programs keep: packages, environments, checkpoints. A pipe or
    a device is no file.
    """
    found, endings = [], tuple(endings)
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _meant(Path(place, name)))
        for name in names:
            path = Path(place, name)
            if name.lower().endswith(endings) and not name.startswith((".", "~$")) and (path.is_file() or path.is_symlink()):
                found.append(path)
    return sorted(found)
