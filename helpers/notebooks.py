"""Notebooks: run the course top to bottom, report it, and keep committed outputs true to their code."""

import ast
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets import default

from helpers.data import ROOT
from helpers.progress import Bar

NOTEBOOKS = ROOT / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d%\|.*\|.*\[|\d+\w+ \[\d\d:\d\d")  # as tqdm writes it, with or without a total


class KernelManager(AsyncKernelManager):
    """Talks to kernels over files where there are Unix sockets: out of other users' reach, and without any network."""

    @default("transport")
    def _choose_transport(self) -> str:
        return "tcp" if os.name == "nt" else "ipc"

    @default("ip")
    def _choose_address(self) -> str:
        if self.transport == "tcp":
            return "127.0.0.1"
        self.folder = tempfile.TemporaryDirectory(prefix="kernel-")  # it goes when this manager goes
        return str(Path(self.folder.name) / "socket")


@dataclass
class Report:
    """How one notebook went."""

    name: str
    minutes: float = 0.0
    claims: list[dict] = field(default_factory=list)
    failure: str = ""


def find(names: list[str]) -> list[Path]:
    """Turn names such as "01" or paths into notebooks; no name means all of them, in order."""
    every = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    found = []
    for name in names:
        matches = [Path(name)] if Path(name).is_file() else [path for path in every if path.name.startswith(name)]
        if not matches:
            raise ValueError(f"There is no notebook {name!r}. There are: {', '.join(path.stem for path in every)}.")
        found += matches
    return found or every


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Condense the code of a notebook; committed outputs carry it, so that a test sees when the code has moved on."""
    code = "\n\0\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def set_parameters(notebook: nbformat.NotebookNode, values: dict[str, str]) -> None:
    """Set variables of the cell tagged "parameters"; raises ValueError for a name that is not there."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    known = {
        target.id
        for cell in cells
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    lines = []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"This notebook has no parameter {name!r}. It has: {', '.join(sorted(known)) or 'none'}.")
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)  # a bare word is a text
        lines.append(f"{name} = {value}")
    if lines:
        at = notebook.cells.index(cells[-1]) + 1
        notebook.cells.insert(at, nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]}))


def drop_progress(notebook: nbformat.NotebookNode) -> None:
    """Take out of the outputs what tells of a run's progress: widgets, which need their kernel, and bars as text."""
    for cell in notebook.cells:
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                output.text = "".join(line for line in re.split(r"(?<=[\r\n])", output.text) if not BAR.search(line))
                if not output.text.strip():
                    continue
            elif not output.get("data", True) or WIDGET in output.get("data", {}):
                continue
            kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    notebook.metadata.pop("widgets", None)


def execute(path: Path, out: Path, parameters: dict[str, str] | None = None) -> tuple[nbformat.NotebookNode, Report]:
    """Run one notebook from a fresh kernel, and write its executed copy and an HTML page to `out`.

    A notebook that fails is written as far as it came; the report says which cell failed and why.
    """
    from helpers.lesson import claims

    notebook = nbformat.read(path, as_version=4)
    set_parameters(notebook, parameters or {})
    report, began = Report(path.stem), time.time()
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    with Bar(total=total, desc=path.stem, unit="cell") as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            kernel_manager_class=KernelManager,
            resources={"metadata": {"path": str(path.parent)}},
            coalesce_streams=True,
            store_widget_state=False,
            on_cell_executed=lambda cell, **_: bar.update(cell.cell_type == "code"),
        )
        try:
            client.execute(env={**os.environ, "COURSE_BUILD": str(out.resolve())})
        except CellExecutionError as error:
            report.failure = f"cell {bar.n}: {error.ename}: {error.evalue}".split("\n")[0]
        except (DeadKernelError, AssertionError):  # nbclient's cleaning up may stumble over a kernel that was killed
            report.failure = f"cell {bar.n + 1}: the kernel died; most likely memory ran out"
        except RuntimeError as error:
            report.failure = f"the kernel did not start: {error}"
    report.minutes = (time.time() - began) / 60
    report.claims = claims(out / "claims", since=began)
    drop_progress(notebook)
    out.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out / path.name)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    (out / path.with_suffix(".html").name).write_text(html, encoding="utf-8")
    return notebook, report


def commit_outputs(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook back to its place, with metadata that is the same on every machine."""
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "slideshow")}
    notebook.metadata = nbformat.from_dict({**METADATA, "source_hash": source_hash(notebook)})
    nbformat.write(notebook, path)


def run(names: list[str], out: Path, parameters: dict[str, str], update: bool, say: Callable[[str], None] = print) -> bool:
    """Run notebooks one after another, then print a table of minutes, claims and failures. True when all went well."""
    if update and parameters:
        raise ValueError("--update commits the outputs of a full run; leave out -p.")
    reports = []
    for path in find(names):
        notebook, report = execute(path, out, parameters)
        reports.append(report)
        if update and not report.failure:
            commit_outputs(notebook, path)
    width = max(len(report.name) for report in reports)
    say(f"\n{'notebook':<{width}}  minutes  claims held  result")
    for report in reports:
        held = f"{sum(c['holds'] for c in report.claims)} of {len(report.claims)}"
        say(f"{report.name:<{width}}  {report.minutes:7.1f}  {held:>11}  {report.failure or 'done'}")
        for claim in report.claims:
            if not claim["holds"]:
                say(f"{'':<{width}}  not in this run: {claim['id']} {claim['text']}")
    say(f"Executed copies and web pages are in {out}.")
    return not any(report.failure for report in reports)
