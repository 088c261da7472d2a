"""Files: whether what a long computation will write can be written, asked before it begins; and writing without half a file."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OutputError(OSError):
    """What cannot be written. The message is one line and names the remedy."""


def _existing(path: Path) -> Path:
    """Find the lowest folder above a path that is there already. `is_symlink` sees links that lead nowhere."""
    return next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())


def _check_place(path: Path, option: str) -> None:
    """Raise OutputError when no file or folder of this name can be made."""
    place = _existing(path)
    if not place.is_dir():
        raise OutputError(f"{option} {path}: {place} is not a folder, so nothing can be written in it. Choose another place.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{option} {path}: nothing can be written in {place}. Choose another place, or change its rights.")


def check_file(path: Path | None, option: str) -> None:
    """Raise OutputError when this file cannot be written. An older one may be there; None is fine.

    option: what the path was given for, as the user typed it, such as "--json".
    """
    if path is None:
        return
    _check_place(path, option)
    if path.is_dir():
        raise OutputError(f"{option} {path}: is a folder. Name a file in it.")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{option} {path}: is write-protected. Choose another name.")


def check_folder(path: Path | None, option: str) -> None:
    """Raise OutputError when nothing can be written into this folder, which need not be there yet; None is fine."""
    if path is not None:
        _check_place(path / "file", option)


def check_model_folder(path: Path, option: str, mark: str, overwrite: bool) -> None:
    """Raise OutputError when a model cannot be saved as this folder; see `replace_folder`.

    mark: a file that such folders hold; a folder with other things in it is never replaced.
    overwrite: whether a model that is there already may be replaced.
    """
    _check_place(path, option)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{option} {path}: there is a file of this name. Choose another folder.")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / mark).is_file():
        raise OutputError(f"{option} {path}: holds other things, and no {mark} that could be replaced. Choose another folder.")
    if os.path.ismount(path):
        raise OutputError(f"{option} {path}: is a disk of its own, which cannot be replaced. Choose a folder in it.")
    if not overwrite:
        raise OutputError(
            f"{option} {path}: there is a model already. Choose another folder, or add --overwrite to replace it."
        )


def check_apart(folder: Path, others: dict[str, str | Path | None]) -> None:
    """Raise OutputError when another path, by its option, lies in a folder that will be replaced as a whole."""
    for option, other in others.items():
        if other is not None and Path(other).resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                f"{option} {other}: lies in {folder}, which is replaced when the model is saved. Move it elsewhere."
            )


def check_disk(path: Path, needed: float, what: str) -> None:
    """Raise OutputError when the disk that a path is on has less than so many bytes free. what: what they are for."""
    free = shutil.disk_usage(_existing(path)).free
    if free < needed:
        raise OutputError(
            f"{path}: {what} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there. "
            "Make room, or choose a folder on another disk."
        )


def _aside(path: Path) -> Path:
    """Name the place beside a file or folder where this process writes it, until it is complete and is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}-{os.getpid()}.partial")


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; what is there at the end takes the place of the file. A kill never leaves half of one.

    It is on the disk, not in the system's memory alone, before it takes that place. Pipes and devices are written to directly.
    """
    path = Path(path).resolve()  # of a link, the file it leads to
    if path.exists() and not path.is_file():
        yield path
        return
    partial = _aside(path)
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: str | Path, mark: str) -> Iterator[Path]:
    """Give a folder to write to; at the end it takes the place of `folder`: an interrupted save leaves an older one as it was.

    mark: a file that such folders hold; a folder with other things in it is not replaced: OutputError.
    """
    folder = Path(folder).resolve()  # of a link, the folder it leads to
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise OutputError(f"{folder}: holds something that is not a model. Choose another folder.")
    partial = _aside(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process with this number
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file aside, see `written_aside`; its folder is made where it is missing."""
    with written_aside(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file aside, see `written_aside`; numbers of NumPy and PyTorch become plain ones."""
    write_text(path, json.dumps(content, indent=1, default=float))
