"""Jobs: finetunes that wait their turn, run in a process of their own, and outlive whatever ends the server."""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data import Example, read, split, write
from helpers.machine.files import write_json
from helpers.text.messages import DataError

if TYPE_CHECKING:
    from helpers.training import Config, History

KEPT = 500  # data sets, and jobs, that a server keeps; more are refused
TIME_LIMIT = 6 * 3600.0  # seconds of one job; it fails if it takes longer
ASKED = 8  # questions that base and tuned model are compared on
HELD_OUT_FROM = 20  # rows from which on these questions are kept out of the training
CHECKPOINT_EVERY = 20  # steps
WAITING = "QUEUED"
FINISHED = ("COMPLETED", "FAILED", "CANCELLED")
DEFAULTS = {"learning_rate": 9e-4, "max_steps": 100, "gradient_accumulation_steps": 2, "r_value": 64, "batch_size": 8}


def without_paths(text: str) -> str:
    """Shorten paths in a message to the names of files: where they lie is nobody's business."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s'\":,;]+[\\/])*", "", text)


class Jobs:
    """The data sets and jobs in a folder, and the thread that runs one job after another.

    A job is a dict, a file `jobs/ID/job.json`, and one entry of `self.all`. Only this class writes the file.
    """

    def __init__(self, folder: Path):
        """Take up what the folder holds; jobs that were at work when a server died are queued again."""
        self.folder, self.lock, self.news = folder, threading.RLock(), threading.Event()
        self.closed = False
        self.worker: subprocess.Popen[str] | None = None
        self.current: dict | None = None
        for name in ("jobs", "data"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.data = {path.stem for path in (folder / "data").glob("*.jsonl")}
        self.all = {path.parent.name: json.loads(path.read_text("utf-8")) for path in folder.glob("jobs/*/job.json")}
        for job in self.all.values():
            if job["status"] not in FINISHED:
                job["status"] = WAITING
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def add_data(self, examples: Sequence[Example]) -> str:
        """Keep a data set; return its id."""
        name = secrets.token_hex(6)
        write(self.folder / "data" / f"{name}.jsonl", examples)
        self.data.add(name)
        return name

    def add(self, base: str, base_path: str, dataset: str, settings: dict, name: str | None) -> dict:
        """Queue a job and return it. base: the model's name; base_path: what `open_model` finds it by."""
        job_id = secrets.token_hex(6)
        job: dict[str, Any] = {
            "job_id": job_id,
            "status": "CREATED",
            "start_time": datetime.now(UTC).isoformat(),
            "model_name": None,
            "custom_model_name": name,
            "base_model_name": base,
            "base_path": base_path,
            "dataset_id": dataset,
            "finetune_args": settings,
            "history": [],
            "seconds_left": None,
            "reason": None,
            "resume_count": 0,
            "queued": time.time(),
        }
        (self.folder / "jobs" / job_id).mkdir()
        with self.lock:
            self._set(job, status=WAITING)
            self.all[job_id] = job
        self.news.set()
        return {**job, "status": "CREATED"}

    def cancel(self, job_id: str) -> dict:
        """Stop a job, after a checkpoint if it is at work; one that has finished stays as it is."""
        with self.lock:
            job = self.all[job_id]
            if job["status"] not in FINISHED:
                self._stop(job)
                self._set(job, status="CANCELLED", seconds_left=None)
            return dict(job)

    def resume(self, job_id: str) -> dict:
        """Queue a cancelled or failed job again; it goes on from its checkpoint."""
        with self.lock:
            job = self.all[job_id]
            if job["status"] in ("CANCELLED", "FAILED"):
                self._set(job, status=WAITING, reason=None, queued=time.time(), resume_count=job["resume_count"] + 1)
                self.news.set()
            return dict(job)

    def in_order(self) -> list[dict]:
        """List all jobs, the oldest first."""
        with self.lock:
            return sorted(self.all.values(), key=lambda job: job["start_time"])

    def find(self, name: str) -> dict | None:
        """Find the job that a model's name stands for: its own, or the one that it was given."""
        return next((job for job in self.in_order() if name in (job["job_id"], job["custom_model_name"])), None)

    def model_folder(self, job: dict) -> Path:
        """Name the folder of the model that a job makes."""
        return self.folder / "jobs" / job["job_id"] / "model"

    def evaluation(self, job: dict) -> list[dict]:
        """Read what base and tuned model answered."""
        return json.loads((self.folder / "jobs" / job["job_id"] / "evaluation.json").read_text("utf-8"))

    def close(self) -> None:
        """Stop, and wait until the job at work has made its checkpoint; the next server goes on with it."""
        with self.lock:
            self.closed = True
            if self.current:
                self._stop(self.current)
            self.news.set()
        self.thread.join()

    def _set(self, job: dict, **changes: object) -> None:
        job.update(changes)
        write_json(self.folder / "jobs" / job["job_id"] / "job.json", job)

    def _stop(self, job: dict) -> None:
        """Ask the worker of a job to stop: it watches its standard input."""
        if self.current is job and self.worker and self.worker.stdin:
            self.worker.stdin.close()
            self.worker = None

    def _run(self) -> None:
        while not self.closed:
            with self.lock:
                waiting = sorted((job for job in self.all.values() if job["status"] == WAITING), key=lambda job: job["queued"])
            if waiting:
                try:
                    self._work(waiting[0])
                except Exception as error:  # a full disk, for one: the next job may fit
                    traceback.print_exc()
                    waiting[0].update(status="FAILED", reason=without_paths(str(error)))
                    self._end_worker()
            else:
                self.news.wait()
                self.news.clear()

    def _work(self, job: dict) -> None:
        """Run one job in a process of its own and note what it reports, until it ends or is told to."""
        folder = self.folder / "jobs" / job["job_id"]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            with self.lock:
                if self.closed or job["status"] != WAITING:
                    return
                self._set(job, status="LOADING DATA")
                worker = self.worker = subprocess.Popen(
                    [sys.executable, "-m", "helpers.serving.jobs", str(folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the server, which then asks the worker to stop
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
                )
                self.current = job
            for line in worker.stdout or ():
                with self.lock:
                    if self.worker:  # it has not been told to stop
                        self._note(job, json.loads(line))
        code = worker.wait()
        with self.lock:
            if self.worker and job["status"] not in FINISHED:
                why = "most likely memory ran out" if code < 0 else "its log on the server says why"
                reason = f"The worker died with code {code}: {why}. Resume the job to go on from its checkpoint."
                self._set(job, status="FAILED", seconds_left=None, reason=reason)
            elif job["status"] not in (*FINISHED, WAITING):  # the server closes
                self._set(job, status=WAITING)
            self._end_worker()

    def _note(self, job: dict, changes: dict) -> None:
        """Take a worker's report into the job: a step into its history, the rest as it is."""
        if step := changes.pop("step", None):
            before = [entry for entry in job["history"] if entry["step"] < step["step"]]
            changes["history"] = [*before, step]  # a worker that was killed has repeated some
        self._set(job, **changes)

    def _end_worker(self) -> None:
        """Forget the worker, which has ended, or has to."""
        if self.worker:
            self.worker.kill()
            if self.worker.stdin:
                self.worker.stdin.close()
        self.worker = self.current = None


def work(folder: Path, report: Callable[..., None]) -> None:
    """Train as `job.json` in a folder says, compare base and tuned model, save the model; `report` what happens.

    When the folder holds checkpoints of an earlier try, it goes on from there.
    """
    from helpers import lora  # here, as the server needs none of this, and it takes seconds
    from helpers.generation import generate
    from helpers.models import open_model
    from helpers.recipe import finetune

    job = json.loads((folder / "job.json").read_text("utf-8"))
    tuned, settings = job["custom_model_name"] or job["job_id"], {**DEFAULTS, **job["finetune_args"]}
    if (folder / "model").is_dir():  # the server died when all but this report was done
        return report(status="COMPLETED", model_name=tuned, seconds_left=None)
    examples, asked = rows_of(folder.parent.parent / "data" / f"{job['dataset_id']}.jsonl", settings)
    questions = [example.asked for example in asked]
    before: list[str] = []

    def open_learner() -> tuple:
        model, tokenizer = open_model(job["base_path"])
        before.extend(generate(model, tokenizer, questions))
        if rank := settings["r_value"]:
            lora.add(model, rank)
        report(status="TRAINING MODEL")
        return model, tokenizer

    def compare_answers(model, tokenizer) -> None:
        report(status="EVALUATING MODEL")
        after = generate(model, tokenizer, questions)
        write_json(folder / "evaluation.json", side_by_side(asked, {tuned: after, job["base_model_name"]: before}))
        report(status="SAVING MODEL")

    finetune(
        examples,
        open_learner,
        folder / "model",
        config_of(job["finetune_args"]),
        folder / "checkpoints",
        on_step=step_reporter(report),
        before_saving=compare_answers,
    )
    report(status="COMPLETED", model_name=tuned, seconds_left=None)


def rows_of(path: Path, settings: dict) -> tuple[list[Example], list[Example]]:
    """Read a job's data set: rows to train on, and a few to ask base and tuned model, kept out where there are enough."""
    examples = read(path)[: settings.get("max_finetuning_examples")]
    held_out: list[Example] = []
    if len(examples) >= HELD_OUT_FROM:
        with suppress(DataError):  # rows that all ask the same
            examples, held_out = split(examples, min(0.1, ASKED / len(examples)))
    return examples, (held_out or examples)[:ASKED]


def side_by_side(asked: Sequence[Example], answers: Mapping[str, Sequence[str]]) -> list[dict]:
    """Write what models answered as Lamini's clients read it. answers: a model's name → its answers, in order."""
    return [
        {
            "input": example.question,
            "outputs": [{"model_name": name, "output": texts[number]} for name, texts in answers.items()],
        }
        for number, example in enumerate(asked)
    ]


def config_of(given: dict) -> "Config":
    """Turn a job's settings into those of the loop; where it names no epochs, its steps decide."""
    from helpers.training import Config

    settings = {**DEFAULTS, **given}
    return Config(
        epochs=given.get("num_train_epochs", 10**6),
        max_steps=given.get("max_steps") if "num_train_epochs" in given else settings["max_steps"],
        learning_rate=settings["learning_rate"],
        batch_size=settings["batch_size"] * settings["gradient_accumulation_steps"],
        checkpoint_every=CHECKPOINT_EVERY,
    )


def step_reporter(report: Callable[..., None]) -> "Callable[[History], None]":
    """Make an `on_step` that reports a step now and then, and the time left; it raises TimeoutError after SECONDS."""
    told = 0.0

    def on_step(history: "History") -> None:
        nonlocal told
        done, last = len(history.steps), history.steps[-1]
        earlier = history.steps[history.resumed_at - 1]["seconds"] if history.resumed_at else 0.0
        spent = last["seconds"] - earlier  # by this process
        if spent > TIME_LIMIT:
            raise TimeoutError(f"The job took longer than {TIME_LIMIT / 3600:g} hours. Ask for fewer steps.")
        if spent - told > max(1, spent / 100) or done == history.planned_steps:
            told, left = spent, (history.planned_steps - done) * spent / (done - history.resumed_at)
            step = {"step": done, "steps": history.planned_steps, "loss": last["loss"], "learning_rate": last["learning_rate"]}
            report(step=step, seconds_left=round(left, 1))

    return on_step


def be_worker() -> None:
    """Be the worker: python -m helpers.serving.jobs FOLDER. Reports are lines of JSON; it stops when its input closes."""
    from filelock import FileLock  # here, as the server, which imports this module, needs neither

    from helpers.machine.process import stop_when_stdin_closes

    folder, reports = Path(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # whatever else is printed goes to the log
    stop_when_stdin_closes()
    if hasattr(os, "nice"):
        os.nice(10)  # answers come first

    def report(**changes: object) -> None:
        with suppress(OSError):  # the server is dead, and this process will stop after a checkpoint
            print(json.dumps(changes), file=reports, flush=True)

    try:
        with FileLock(folder.parent / "worker.lock"):  # the worker of a server that was killed may still be at its last step
            work(folder, report)
    except (ValueError, OSError, RuntimeError, FloatingPointError, MemoryError) as error:
        traceback.print_exc()
        report(status="FAILED", seconds_left=None, reason=without_paths(str(error)))


if __name__ == "__main__":
    be_worker()
