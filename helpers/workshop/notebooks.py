"""Notebooks: run the course top to bottom, report it, and keep committed outputs true to their code."""

import ast
import asyncio
import atexit
import hashlib
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.manager import KernelManager as AnyManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets import default

from helpers.machine.files import check_folder
from helpers.machine.paths import ROOT
from helpers.machine.progress import Bar
from helpers.machine.records import NOT_MEASURED, came_to, claims, tally

NOTEBOOKS = ROOT / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d%\|.*\|.*\[|\d+\w+ \[\d\d:\d\d")  # as tqdm writes it, with or without a total
OPEN = ("broken", "does not hold", "cannot tell", NOT_MEASURED)  # what the table names one by one

SOCKET_BYTES = 103  # the longest name of a Unix socket that every system takes
# Where a cell shows widgets, kernel or client may sleep over a message, as both send past their own event loop:
# https://github.com/ipython/ipykernel/issues/1554, https://github.com/jupyter/nbclient/issues/312. Another message wakes them.
SECONDS_TO_NUDGE = 5.0
SECONDS_TO_STOP = 5.0  # that a cell has to clean up when the run is stopped
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class KernelManager(AsyncKernelManager):
    """Talks to kernels over files where there are Unix sockets: out of other users' reach, and without any network."""

    @default("transport")
    def _choose_transport(self) -> str:
        for place in [] if os.name == "nt" else [tempfile.gettempdir(), "/tmp"]:
            with suppress(OSError):
                self.folder = tempfile.TemporaryDirectory(prefix="kernel-", dir=place)  # it goes when this manager goes
                if len(os.fsencode(self.folder.name)) + len("/socket-1") <= SOCKET_BYTES:
                    return "ipc"
                self.folder.cleanup()
        return "tcp"

    @default("ip")
    def _choose_address(self) -> str:
        return "127.0.0.1" if self.transport == "tcp" else str(Path(self.folder.name) / "socket")

    async def _async_interrupt_kernel(self) -> None:
        """Interrupt nobody while a kernel is shut down: its children would hear it too, and print a trace each."""


@dataclass
class Report:
    """How one notebook went."""

    name: str
    minutes: float = 0.0
    claims: list[dict] = field(default_factory=list)
    failure: str = ""


def find(names: list[str]) -> list[Path]:
    """Turn names such as "01" or paths into notebooks; no name means all of them, in order.

    Raises ValueError for another name, also for one of less than two letters, such as "1", with which only 10 begins.
    """
    every = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    found = []
    for name in names:
        is_path = name.endswith(".ipynb") and Path(name).is_file()
        matches = [Path(name)] if is_path else [path for path in every if len(name) > 1 and path.name.startswith(name)]
        if not matches:
            raise ValueError(f"There is no notebook {name!r}. There are: {', '.join(path.stem for path in every)}.")
        found += matches
    return found or every


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Condense the code of a notebook; committed outputs carry it, so that a test sees when the code has moved on."""
    code = "\n\0\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def _parameter_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells tagged "parameters"."""
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def knobs(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Read the variables of the cell tagged "parameters": name → value, as it stands there."""
    return {
        target.id: ast.unparse(node.value)
        for cell in _parameter_cells(notebook)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def set_parameters(notebook: nbformat.NotebookNode, values: dict[str, str]) -> None:
    """Set variables of the cell tagged "parameters"; raises ValueError for a name that is not there."""
    known, lines = knobs(notebook), []
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"This notebook has no parameter {name!r}. It has: {', '.join(sorted(known)) or 'none'}.")
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = repr(value)  # a bare word is a text
        lines.append(f"{name} = {value}")
    if lines:
        at = notebook.cells.index(_parameter_cells(notebook)[-1]) + 1
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


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note Ctrl-C, SIGTERM and SIGHUP, as long as a `with` block takes, rather than end: yields the numbers that came.

    What was ignored before, as SIGHUP is under nohup, stays ignored. In any thread but the main one nothing is heard.
    """
    heard: list[int] = []
    usual = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                usual[number] = signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield heard
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


async def _perform(client: NotebookClient, manager: AnyManager, env: dict[str, str], stopped: Callable[[], bool]) -> bool:
    """Execute a notebook until it is done, and leave no process of its kernel behind. False when it was stopped before."""
    work = asyncio.ensure_future(client.async_execute(env=env))
    try:
        nudged = time.monotonic()
        while not work.done() and not stopped():
            await asyncio.wait([work], timeout=0.2)
            if client.kc is not None and time.monotonic() > nudged + SECONDS_TO_NUDGE:
                nudged = time.monotonic()
                client.kc.kernel_info()  # wakes whoever has missed a message; its answer is nobody's
        if work.done():
            await work
            return True
        family: list[psutil.Process] = []
        with suppress(psutil.Error):
            if isinstance(manager.provisioner, LocalProvisioner) and manager.has_kernel:
                kernel = psutil.Process(manager.provisioner.pid)
                family = [*kernel.children(recursive=True), kernel]
            if family and client.code_cells_executed:
                client.shutdown_kernel = "immediate"
                if os.name != "nt":
                    family[-1].send_signal(signal.SIGINT)  # the cell may clean up, and end what it has started
                await asyncio.wait([work], timeout=SECONDS_TO_STOP)
        work.cancel()
        with suppress(Exception, asyncio.CancelledError):  # nbclient takes it for an error, or for a kernel that died
            await work
        left = psutil.wait_procs(family, timeout=1 if client.code_cells_executed else 0)[1]
        for process in left:  # a kernel that was about to start, or a server that would outlive its kernel
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
        manager.cleanup_connection_file()
        return False
    finally:
        atexit.unregister(client._cleanup_kernel)  # it has nothing to do, and would complain


def _run_cells(notebook: nbformat.NotebookNode, path: Path, out: Path, stopped: Callable[[], bool]) -> str:
    """Run all cells in a fresh kernel, with a bar; return what went wrong, as the report says it, or nothing."""
    given_up, total = threading.Event(), sum(cell.cell_type == "code" for cell in notebook.cells)
    with Bar(total=total, desc=path.stem, unit="cell") as bar, ThreadPoolExecutor(1) as thread:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            kernel_manager_class=KernelManager,
            resources={"metadata": {"path": str(path.parent)}},
            coalesce_streams=True,
            on_cell_executed=lambda **_: bar.update(1),
        )
        env = {**os.environ, "COURSE_BUILD": str(out.resolve())}
        # In a thread of its own: in the main one, nbclient would hear the signals in our place.
        work = _perform(client, client.create_kernel_manager(), env, lambda: given_up.is_set() or stopped())
        done = thread.submit(asyncio.run, work)
        try:
            while not done.done():
                wait([done], timeout=0.5)  # not longer: on Windows a signal is heard in between only
            if done.result():
                return ""
            return f"stopped in cell {client.code_cells_executed}" if client.code_cells_executed else "stopped"
        except CellExecutionError as error:
            return f"cell {client.code_cells_executed}: {error.ename}: {error.evalue}".split("\n")[0]
        except (DeadKernelError, AssertionError):  # nbclient's cleaning up may stumble over a kernel that was killed
            return f"cell {client.code_cells_executed}: the kernel died; most likely memory ran out"
        except RuntimeError as error:
            return f"the kernel did not start: {error}"
        finally:
            given_up.set()  # an interrupt that the caller does not note ends the kernel too


def execute(
    path: Path, out: Path, parameters: dict[str, str] | None = None, stopped: Callable[[], bool] = lambda: False
) -> tuple[nbformat.NotebookNode, Report]:
    """Run one notebook from a fresh kernel, and write its executed copy and an HTML page to `out`.

    stopped: asked a few times a second; once it says True, the kernel and all it has started end.
    A notebook that fails or is stopped is written as far as it came; the report says which cell it was, and why.
    """
    notebook = nbformat.read(path, as_version=4)
    set_parameters(notebook, parameters or {})
    began = time.time()
    failure = _run_cells(notebook, path, out, stopped)
    report = Report(path.stem, (time.time() - began) / 60, claims(out / "claims", since=began), failure)
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


def table(reports: list[Report], say: Callable[[str], None]) -> None:
    """Say how each notebook went: minutes, what its checks and claims came to, each kind by itself, and how it ended."""
    told = [tally(report.claims) if report.claims else "none" for report in reports]
    first = max(len(report.name) for report in reports)
    second = max(map(len, ("checks and claims", *told)))
    say(f"\n{'notebook':<{first}}  minutes  {'checks and claims':<{second}}  result")
    for report, counts in zip(reports, told, strict=True):
        say(f"{report.name:<{first}}  {report.minutes:7.1f}  {counts:<{second}}  {report.failure or 'done'}")
        for words in OPEN:
            for record in report.claims:
                if came_to(record) == words:
                    say(f"{'':<{first}}  {words}: {record['id']} {record['text']}")
    if len(reports) > 1:
        say(f"In all: {tally(record for report in reports for record in report.claims)}")


def run_notebooks(
    names: list[str],
    out: Path,
    parameters: dict[str, str],
    update: bool,
    say: Callable[[str], None] = print,
    keep: Callable[[list[Report]], None] = lambda reports: None,
) -> int:
    """Run notebooks with the same parameters, one after another; see `run_each`. names: as `find` takes them."""
    if update and parameters:
        raise ValueError("--update commits the outputs of a full run; leave out -p.")
    return run_each(dict.fromkeys(find(names), parameters), out, update, say, keep)


def run_each(
    settings: dict[Path, dict[str, str]],
    out: Path,
    update: bool,
    say: Callable[[str], None],
    keep: Callable[[list[Report]], None],
) -> int:
    """Run notebooks one after another, then print a table of minutes, claims and failures, whatever has happened.

    settings: notebook → its parameters.  update: put the outputs of those that end well into their place.
    keep: is given the reports at the end, also after a failure or a stop.
    Returns 0 when all went well, 1 when one failed, and 128 + N when signal N (Ctrl-C, SIGTERM, SIGHUP) has stopped the run.
    Raises ValueError before anything runs: for an unknown parameter, and for a folder that cannot be written.
    """
    for path, parameters in settings.items():
        set_parameters(nbformat.read(path, as_version=4), parameters)
    check_folder(out, "--out")
    reports = [Report(path.stem, failure="not begun") for path in settings]
    with noted_signals() as heard:
        try:
            for number, (path, parameters) in enumerate(settings.items()):
                reports[number].failure = "stopped"
                notebook, reports[number] = execute(path, out, parameters, stopped=lambda: bool(heard))
                if update and not reports[number].failure:
                    commit_outputs(notebook, path)
                if heard:
                    break
        finally:
            table(reports, say)
            keep(reports)
    say(f"Executed copies and web pages are in {out}.")
    return 128 + heard[0] if heard else int(any(report.failure for report in reports))
