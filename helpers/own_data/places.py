"""Places: where rows are: a file, a folder as its owner meant it, standard input, a part of a data set, the hub."""

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from helpers.machine.paths import DATA
from helpers.machine.walk import files_below
from helpers.own_data.containers import container_of
from helpers.own_data.names import CONTAINERS, PARTS, ChoiceError
from helpers.text.messages import DataError, listed

DATA_ENDINGS = tuple(e for name in ("jsonl", "csv", "tsv", "parquet", "arrow") for e in CONTAINERS[name])
PACKED_ENDINGS = tuple(ending + packed for ending in (*DATA_ENDINGS, ".json") for packed in (".gz", ".bz2", ".xz", ".zst"))
CARDS = ("readme", "license", "changelog", "contributing")  # pages about the data
# JSON that programs keep beside data, models and code.
KEPT = {"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "package.json", "package-lock.json"}
KEPT |= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
PART = re.compile(r"(?P<name>.*?)(?::(?P<config>[\w.-]+))?(?:\[(?P<split>[\w.-]+)\])?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where rows are. container: how they are stored, "" where each file tells of itself. said: what else is there."""

    name: str
    content: list[Path] | Iterable[dict]
    container: str
    said: str = ""


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Find the parts of a data set in a folder, such as ":en[train]"; a folder without parts has one, called "".

    They are those that `save_to_disk` or the data set's card lists, or else those that the files' names tell.
    """
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return {f"[{name}]": _saved(folder / name) for name in names}
    if (folder / "state.json").is_file():
        return {"": _saved(folder)}
    card = folder / "README.md"
    found: dict[str, list[Path]] = {}
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---\s*(\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    try:
        told = yaml.safe_load(front[1]) if front else {}
        configs = told.get("configs") or [] if isinstance(told, dict) else []
        for config in configs:
            files = config.get("data_files", [])
            entries = files if isinstance(files, list) and files and isinstance(files[0], dict) else [{"path": files}]
            label = f":{config['config_name']}" if len(configs) > 1 else ""
            for entry in entries:
                patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
                paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
                found[label + (f"[{entry['split']}]" if "split" in entry else "")] = paths
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, NotImplementedError):
        found = {}  # a card that is written otherwise: the names tell
    if any(found.values()):
        return {name: paths for name, paths in found.items() if paths}
    for path in _data_files(folder):
        words = re.split(r"[^a-z]+", path.relative_to(folder).as_posix().lower())
        part = next((PARTS[word] for word in words if word in PARTS), "")
        found.setdefault(f"[{part}]" if part else "", []).append(path)
    return found


def _saved(folder: Path) -> list[Path]:
    """List the files of a data set that `save_to_disk` wrote, in their order."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return [folder / entry["filename"] for entry in state["_data_files"]]


def _data_files(folder: Path) -> list[Path]:
    """List the files of a folder that hold rows; its pages where there are none; its plain texts where there is neither."""
    pages = files_below(folder, CONTAINERS["markdown"])
    notes = [page for page in pages if page.stem.lower() not in CARDS]
    own = [path for path in files_below(folder, CONTAINERS["json"]) if path.name not in KEPT]
    data = files_below(folder, (*DATA_ENDINGS, *PACKED_ENDINGS)) + ([] if notes else own)
    return sorted(data) or pages or files_below(folder, CONTAINERS["text"])


def _beside(path: Path) -> bool:
    """Tell whether a file is about the data beside it, or a program's, so that nobody misses it."""
    return path.name in KEPT or path.stem.lower() in CARDS or path.name in ("Thumbs.db", "desktop.ini")


def _folder(name: str, folder: Path, part: str) -> Place:
    """Take what a folder's owner meant, or one of its parts."""
    resolved, here = folder.resolve(), Path.cwd()
    if resolved in (here, *here.parents, Path.home()):
        raise DataError(f"{name}: is where you work, or above it. Name the folder that holds the data, and nothing else.")
    parts = _parts(folder)
    if not any(parts.values()):
        endings = ", ".join(ending for endings in CONTAINERS.values() for ending in endings)
        raise DataError(f"{name}: there is no file in this folder that can be read ({endings}). Name another one.")
    if part and part not in parts:
        raise DataError(f"{name}{part}: there is no such part. There are: {listed(f'{name}{other}' for other in parts)}.")
    if not part and len(parts) > 1:
        named = " or ".join(
            [f"{name}{other}" for other in sorted(parts) if other] + [str(path) for path in parts.get("", [])[:3]]
        )
        raise ChoiceError(f"{name}: has several parts. Name the one that is meant: {named}")
    paths = parts[part or next(iter(parts))]
    kinds = sorted({container_of(path) for path in paths})
    shown = f"{len(paths)} files ({listed(path.name for path in paths[:3])}{', ...' if paths[3:] else ''})"
    shown = shown if len(paths) > 1 else f"the file {paths[0].name}"
    read = {path for paths in parts.values() for path in paths}
    rest = [path for path in files_below(folder, [""]) if path not in read and not _beside(path)]
    shown += f" (not read: {listed(path.name for path in rest[:3])}{', ...' if rest[3:] else ''})" if rest else ""
    return Place(name + part, paths, kinds[0] if len(kinds) == 1 else "", shown)


def _hub(name: str, config: str | None, split: str | None) -> Place:
    """Fetch a data set from the hub, or from the cache of an earlier time where the hub is out of reach."""
    from huggingface_hub import constants  # these take seconds to load, and are needed for names on the hub only

    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        from helpers.machine.network import online

        why = "" if online(2.0) else "the hub is out of reach"
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if why:  # then only its cache is asked, at once and without retries
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        configs = [] if config else datasets.get_dataset_config_names(name)
        if len(configs) > 1 and "default" not in configs:
            raise ChoiceError(
                f"{name}: has several configurations. Name one, as in {name}:{configs[0]} (there are {listed(configs)})."
            )
        parts = datasets.load_dataset(name, config)
    except ChoiceError:
        raise
    except Exception as error:  # the hub's client lets many kinds through: sockets, HTTP, timeouts, wrong files
        why = why or f"{type(error).__name__}: {error}".split("\n")[0][:160]
        remedy = "Check the name and the network, or fetch the data set elsewhere and give its file."
        raise DataError(f"{name}: there is no such file, and the hub did not give this data set ({why}). {remedy}") from None
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
    label = name + (f":{config}" if config else "")
    if split is None and len(parts) > 1:
        raise ChoiceError(
            f"{label}: has several parts. Name the one that is meant: {' or '.join(f'{label}[{p}]' for p in parts)}"
        )
    if split is not None and split not in parts:
        raise DataError(f"{label}[{split}]: there is no such part. There are: {listed(f'{label}[{part}]' for part in parts)}.")
    chosen = split or next(iter(parts))
    return Place(f"{label}[{chosen}]", parts[chosen], "hub")


class _StandardInput(type(Path())):  # type: ignore[misc]
    """The file that standard input was put into, with a name that says so."""

    def __str__(self) -> str:
        return self.name

    def __fspath__(self) -> str:
        return super().__str__()


def _standard_input() -> Path:
    """Put what comes through standard input into a file, which can be read twice; it is deleted at the end."""
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("-: nothing is piped in. Write it as: python -m helpers check --data - < FILE")
    folder = tempfile.mkdtemp(prefix="standard-input-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = _StandardInput(folder, "standard input")
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def located(source: str | Path | Iterable[dict], format: str | None) -> Place:
    """Find what is to be read. format: how rows are stored, where that is not to be recognised.

    A path may end in a part of its data set, as in "folder[train]", "owner/name:config[split]". Raises ChoiceError where
    there are several and none is named.
    """
    if isinstance(source, Mapping):
        raise DataError(f"This data set has parts. Give one of them: {', '.join(map(repr, source))}.")
    if not isinstance(source, (str, Path)):
        return Place("data set", source if iter(source) is not source else list(source), "dataset")
    name, container = str(source), format if format in CONTAINERS else ""
    if not name.strip() or (isinstance(source, Path) and not source.parts):
        raise DataError("The name of the file is empty. Name a file, a folder, or a data set on the hub.")
    if hub := re.match(r"(?:hf://|https?://huggingface\.co/)datasets/([\w.-]+/[\w.-]+)", name):
        raise DataError(f"{name}: is an address. Give the name of the data set: {hub[1]}")
    if re.match(r"\w+://", name):
        raise DataError(f"{name}: is an address. Download it, and give the file.")
    if name == "-":
        path = _standard_input()
        return Place("standard input", [path], container or container_of(path))
    part: dict[str, str | None] = {"name": name, "config": None, "split": None}
    if not os.path.exists(name) and (match := PART.fullmatch(name)):
        part = match.groupdict()
    path = Path(part["name"] or "")
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", path.as_posix()) and not os.path.exists(path.parent)
    file_like = path.name.lower().endswith((*DATA_ENDINGS, *PACKED_ENDINGS, ".json", ".md", ".txt", ".gz", ".zip"))
    if container == "hub" or (not container and on_hub and not file_like):
        return _hub(path.as_posix(), part["config"], part["split"])
    label = (f":{part['config']}" if part["config"] else "") + (f"[{part['split']}]" if part["split"] else "")
    if os.path.isdir(path):
        return _folder(str(path) if label else name, path, label)
    if not os.path.lexists(path) or label:
        raise DataError(f"{name[:300]}: there is no such file. Check the path; the course's own data is in {DATA}.")
    return Place(name, [path], container or container_of(path))
