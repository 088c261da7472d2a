"""Records: what one lesson leaves for others, with the rule, the recipe and the data behind it; what is stale is left out."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

import yaml

from helpers.machine.files import written_aside
from helpers.machine.paths import DATA, build_folder

REGISTER = DATA / "claims.yaml"
NOTE = "recipe.json"  # in a model's folder
NOT_MEASURED = "not measured"  # the one piece of evidence of such a record: its value says why
# What a record came to, by its kind and whether it holds, where it was measured at all.
CAME_TO = {
    ("check", True): "checked",
    ("check", False): "broken",
    ("claim", True): "holds",
    ("claim", False): "does not hold",
    ("claim", None): "cannot tell",
}
# What of the data folder no lesson reads: what it is made of, and what describes it.
UNREAD = ("source", "build.py", "soil.py", "README.md", "claims.yaml", "replications.json", "__pycache__")


def short_hash(content: str | bytes) -> str:
    """Condense a text: the same text gives the same 12 letters and digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:12]


def data_hash() -> str:
    """Condense what lessons read of the data folder: names and contents."""
    lines = []
    for path in sorted(DATA.rglob("*")):
        name = path.relative_to(DATA)
        if path.is_file() and name.parts[0] not in UNREAD and not name.name.startswith("."):
            lines.append(f"{name.as_posix()} {short_hash(path.read_bytes())}")
    return short_hash("\n".join(lines))


@dataclass(frozen=True)
class Registration:
    """What was written down of a claim or a check before it was run; data/claims.yaml says what each field means."""

    id: str
    lesson: str
    kind: str
    sentence: str
    measured: str
    unit: str
    rule: str
    smallest_effect: str | None
    settings: list[str]
    changes: list[dict]

    @property
    def version(self) -> str:
        """Condense what decides: all but the lesson's number and the story of the changes."""
        deciding = {name: value for name, value in asdict(self).items() if name not in ("lesson", "changes")}
        return short_hash(json.dumps(deciding))


def registered() -> dict[str, Registration]:
    """Read what was written down of every claim and check: id → entry. Raises ValueError with file, entry and fields."""
    known, found = {field.name for field in fields(Registration)} - {"id"}, {}
    for id, entry in yaml.safe_load(REGISTER.read_text(encoding="utf-8")).items():
        if wrong := known ^ set(entry):
            raise ValueError(f"{REGISTER}, {id}: see to {', '.join(sorted(wrong))}. Fields are {', '.join(sorted(known))}.")
        found[id] = Registration(id, **entry)
    return found


def registration(id: str, kind: str) -> Registration:
    """Look up what was written down of a "check" or a "claim". Raises ValueError for an unknown id, and for the other kind."""
    entry = registered().get(id)
    if entry is None:
        raise ValueError(f"{id} is not in data/{REGISTER.name}. Write there first what it measures and what decides it.")
    if entry.kind != kind:
        raise ValueError(f"{id} is a {entry.kind} in data/{REGISTER.name}, not a {kind}: call {entry.kind}({id!r}, ...).")
    return entry


def save_record(entry: Registration, record: Mapping[str, object]) -> None:
    """Save what a claim or a check came to, with the version of its entry, the data and the day."""
    stamps = {"version": entry.version, "data": data_hash(), "date": date.today().isoformat()}
    with written_aside(build_folder() / "claims" / f"{entry.id}.json") as partial:
        whole = {"id": entry.id, "kind": entry.kind, "text": entry.sentence, **record, **stamps}
        partial.write_text(json.dumps(whole, indent=1, default=float), encoding="utf-8")


def claims(folder: Path | None = None, since: float = 0.0) -> list[dict]:
    """Read back what claims and checks came to under today's rules and data, by id; print which are left out, and why.

    folder: that of another run; else the build folder's.  since: only what was saved after this moment, in seconds since 1970.
    """
    entries, data, current, stale = registered(), data_hash(), [], defaultdict(list)
    for path in sorted((folder or build_folder() / "claims").glob("C*.json")):
        if path.stat().st_mtime < since:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        entry = entries.get(record["id"])
        if entry is None:
            stale[f"no longer in {REGISTER.name}"].append(record["id"])
        elif record.get("version") != entry.version:
            stale[f"measured under an older rule; run lesson {entry.lesson} again"].append(record["id"])
        elif record.get("data") != data:
            stale[f"measured on other data; run lesson {entry.lesson} again"].append(record["id"])
        else:
            current.append(record)
    if stale:
        print("Left out: " + ". ".join(f"{', '.join(ids)}: {why}" for why, ids in stale.items()) + ".")
    return current


def came_to(record: Mapping) -> str:
    """Say in words what a check or a claim came to: one of `CAME_TO`, or "not measured"."""
    return NOT_MEASURED if NOT_MEASURED in record["shown"] else CAME_TO[record["kind"], record["holds"]]


def tally(records: Iterable[Mapping]) -> str:
    """Count records in words, checks apart from claims: "checks 7 of 7; claims: 35 hold, 13 cannot tell, 1 does not"."""
    count = Counter(map(came_to, records))
    hold, fail = count["holds"], count["does not hold"]
    checks = f"checks {count['checked']} of {count['checked'] + count['broken']}"
    words = [f"{hold} hold{'s' if hold == 1 else ''}", f"{count['cannot tell']} cannot tell"]
    words.append(f"{fail} do{'es' if fail == 1 else ''} not")
    if NOT_MEASURED in count:
        words.append(f"{count[NOT_MEASURED]} not measured")
    return f"{checks}; claims: {', '.join(words)}"


def write_note(folder: str | Path, **made: object) -> None:
    """Leave in a model's folder how it was made: knobs, hashes of rows or data, and what it took."""
    with written_aside(Path(folder) / NOTE) as partial:
        partial.write_text(json.dumps({**made, "date": date.today().isoformat()}, indent=1), encoding="utf-8")


def read_note(folder: str | Path, **wanted: object) -> dict | None:
    """Read how a model was made, if it was made by all of this; else None, and for a model that is there, print why."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        return None
    note = folder / NOTE
    made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    other = [name.replace("_", " ") for name, value in wanted.items() if name not in made or made[name] != value]
    if not other:
        return made
    why = f"it was made by other {', '.join(other)}" if made else "nothing in it says how it was made"
    print(f"The model in {folder.parent.name}/{folder.name} is not used: {why}.")
    return None
