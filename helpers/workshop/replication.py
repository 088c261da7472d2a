"""Replication: the lessons run again with other seeds, and what each such run came to is kept in data/replications.json."""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import nbformat
from filelock import FileLock, Timeout

from helpers.machine.device import this_machine
from helpers.machine.files import OutputError, check_folder, write_json
from helpers.machine.limits import check_seed
from helpers.machine.packaged import PACKAGED, installed
from helpers.machine.paths import DATA
from helpers.machine.records import NOT_MEASURED, Registration, data_hash, registered
from helpers.workshop.notebooks import Report, find, knobs, run_each

RECORDS = DATA / "replications.json"
# Of each record: what was run and when, on what (see `this_machine`), and what it came to: of each box id, the version of its
# entry in data/claims.yaml, whether it holds, and the evidence that it showed.  models: the optional ones that were there.
FIELDS: dict[str, type | tuple[type, ...]] = {
    **{"date": str, "machine": dict, "data": str, "seed": int, "lessons": list, "minutes": (int, float)},
    **{"models": list, "boxes": list},
}
BOX_FIELDS = {"id", "version", "holds", "shown"}
COMMITTED = 0  # the seed of the notebooks as they are committed
APART = 1000  # a lesson that has several seeds shares none with another run


def replications() -> list[dict]:
    """Read the records of all runs, the oldest first. Raises ValueError that names the file, the record and the fields."""
    remedy = f"Mend it, or bring back the last one: git checkout -- data/{RECORDS.name}"
    try:
        runs = json.loads(RECORDS.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{RECORDS}: cannot be read: {error}. {remedy}") from error
    for number, run in enumerate(runs if isinstance(runs, list) else [runs], start=1):
        fields = run if isinstance(run, dict) else {}
        wrong = [name for name, kind in FIELDS.items() if not isinstance(fields.get(name), kind)]
        if wrong or not all(map(_is_box, run["boxes"])):
            raise ValueError(f"{RECORDS}, record {number}: see to {', '.join(wrong) or 'its boxes'}. {remedy}")
    return runs


def _is_box(found: object) -> bool:
    """Tell whether this is what a record keeps of a box."""
    if not isinstance(found, dict) or set(found) != BOX_FIELDS:
        return False
    return isinstance(found["shown"], dict) and found["holds"] in (True, False, None)


def record(reports: Sequence[Report], seed: int = COMMITTED) -> None:
    """Add a record of those of these notebooks that ended well, beside the older ones; none, where none did."""
    done = [report for report in reports if not report.failure]
    if not done:
        return
    run = {
        "date": date.today().isoformat(),
        "machine": this_machine(),
        "data": data_hash(),
        "seed": seed,
        "lessons": [report.name[:2] for report in done],
        "minutes": round(sum(report.minutes for report in done), 1),
        "models": [model.name for model in PACKAGED.values() if model.hub and installed(model)],
        "boxes": [{name: box[name] for name in sorted(BOX_FIELDS)} for report in done for box in report.claims],
    }
    with FileLock(RECORDS.with_name(f".{RECORDS.name}.lock")):  # two runs may end at once, wherever they build
        write_json(RECORDS, [*replications(), run])


@contextmanager
def recorded(out: Path) -> Iterator[None]:
    """Make sure before hours of work that what comes of it can be recorded, and let no other such run write to its folder.

    Boxes that another lesson leaves in the same folder meanwhile would be taken for this one's.
    Raises ValueError for records that cannot be read, OutputError for folders that cannot be written, or are in use.
    """
    replications()
    check_folder(RECORDS.parent, "the records in")
    check_folder(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        alone = FileLock(out / ".lock").acquire(timeout=0)
    except Timeout:
        raise OutputError(f"--out {out}: another run writes there. Wait until it ends, or choose another folder.") from None
    with alone:
        yield


def held(entry: Registration, runs: Sequence[Mapping]) -> tuple[int, int, int]:
    """Count how often a check or a claim held, in how many runs it could be told at all, and in how many it was measured.

    What was measured under another rule than today's does not count. Of runs with the same seed, machine and models, which
    are one run made again, the latest counts.
    """
    latest, wanted = {}, (entry.id, entry.version)
    for run in runs:
        for box in run["boxes"]:
            if (box["id"], box["version"]) == wanted and NOT_MEASURED not in box["shown"]:
                latest[json.dumps([run["seed"], run["machine"], run["models"]])] = box["holds"]
    told = [holds for holds in latest.values() if holds is not None]
    return sum(told), len(told), len(latest)


def seeded(path: Path, seed: int) -> dict[str, str]:
    """Name the knob of a notebook that decides its draws, set for another run. Raises ValueError where it cannot be."""
    there = knobs(nbformat.read(path, as_version=4))
    if "seed" in there:
        return {"seed": str(seed)}
    if "seeds" in there:
        try:
            own = tuple(APART * seed + one for one in ast.literal_eval(there["seeds"]))
        except (ValueError, TypeError):
            raise ValueError(f"{path.stem}: seeds is {there['seeds']}; write numbers, such as (0, 1, 2).") from None
        for one in own:
            check_seed(one)
        return {"seeds": str(own)}
    raise ValueError(f"{path.stem} has no knob seed or seeds: it cannot be repeated with another one. Leave it out.")


def replicate(names: list[str], seeds: Sequence[int], out: Path) -> int:
    """Run lessons once a seed, each seed in a build folder of its own, and keep what each came to; see `run_each`.

    names: as `find` takes them; none: all lessons that have boxes.
    out: holds a folder a seed, so that what one lesson makes for the next, such as a model, is made anew for each.
    """
    lessons = {entry.lesson for entry in registered().values()}
    paths = find(names) if names else [path for path in find([]) if path.name[:2] in lessons]
    for seed in seeds:
        check_seed(seed)
    settings = {seed: {path: seeded(path, seed) for path in paths} for seed in seeds}
    worst = 0
    with recorded(out):
        for seed, knobs_of in settings.items():
            print(f"Seed {seed}:", flush=True)
            worst = max(worst, run_each(knobs_of, out / f"seed-{seed}", False, print, partial(record, seed=seed)))
            if worst >= 128:  # stopped
                break
    print(f"What was finished is kept in data/{RECORDS.name}.")
    return worst
