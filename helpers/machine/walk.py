"""Walk: the files below a folder that its owner put there to be read."""

import os
from collections.abc import Iterable
from pathlib import Path

from helpers.text.messages import DataError

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


def text_of(path: Path) -> str:
    """Read a text file in UTF-8, lines ended by any system's mark. Raises DataError for a file that is not one."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text or move it away.") from None
    except OSError as error:  # a link that leads nowhere, a file of somebody else
        raise DataError(f"{path}: cannot be read: {error.strerror}. Change that, or move the file away.") from None
    if "\0" in text:
        raise DataError(f"{path}: this is a binary file, not text. Move it away or convert it.")
    return text
