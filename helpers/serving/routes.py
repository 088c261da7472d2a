"""Routes: a request comes in, goes to the engine or to the jobs, and its answer goes out."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.routing import Route

from helpers.serving import contract
from helpers.serving.engine import Engine, Question, Refusal
from helpers.serving.guard import Guard, refuse
from helpers.serving.jobs import FINISHED, KEPT, WAITING, Jobs

WAITING_JOBS = 32  # more are refused
POLLED = 256  # requests whose answers wait to be fetched; more are refused
STREAM_SECONDS, BATCH_SECONDS = 60.0, 3600.0  # after which nobody seems to fetch any more
STATUS_CODES = {
    400: "wrong in itself",
    401: "wrong key",
    429: "too much waits already",
    497: "name taken",
    503: "unavailable",
    513: "not there yet",
    524: "took too long",
    594: "no such model",
}


@dataclass
class Polled:
    """Questions whose answers are fetched later; forgotten when nobody does so for `patience` seconds."""

    questions: list[Question]
    keys: contract.Types | None
    patience: float
    until: float = 0.0

    def rows(self) -> list[list[Question]]:
        """Group the questions by prompt: one each, or one for each key."""
        each = len(self.keys or [""])
        return [self.questions[start : start + each] for start in range(0, len(self.questions), each)]

    def stay(self) -> None:
        """Be kept for a while longer."""
        self.until = time.monotonic() + self.patience
        for question in self.questions:
            question.deadline = max(question.deadline, self.until)


class Waiter:
    """Waits, in an async route, for the engine's thread to answer."""

    def __init__(self, request: Request):
        """Wait on behalf of this request."""
        self.request, self.news, self.loop = request, asyncio.Event(), asyncio.get_running_loop()

    def wake(self) -> None:
        """Tell that there is news, from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self.news.set)

    async def wait(self) -> None:
        """Wait for news. Raises Refusal when the client has gone, which then nobody reads."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.news.wait()
        self.news.clear()
        if await self.request.is_disconnected():
            raise Refusal(400, "The client has gone.")

    async def beginning(self, question: Question) -> None:
        """Wait until there is some text, or an end. Raises Refusal when the client has gone; its question then goes, too."""
        try:
            while not (question.text or question.finish):
                await self.wait()
        except BaseException:  # a server that stops cancels this
            cancel([question])
            raise

    async def all(self, questions: Sequence[Question]) -> None:
        """Wait until all is answered. Raises Refusal; whatever happens, no question stays behind."""
        try:
            while not all(question.finish for question in questions):
                await self.wait()
        finally:
            cancel(questions)
        for question in questions:
            if question.error or question.finish == "timeout":
                raise question.error or Refusal(524, "The answer took too long. Ask for less, or try again later.")


def cancel(questions: Sequence[Question]) -> None:
    """Take questions back; those that are answered stay so."""
    for question in questions:
        if not question.finish:
            question.end("cancelled")


async def events(question: Question, waiter: Waiter, about: dict) -> AsyncIterator[str]:
    """Send an answer as it is written, in OpenAI's server-sent events."""

    def event(delta: dict, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**about, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    shown, finish = "", None
    try:
        yield event({"role": "assistant", "content": ""})
        while not finish:
            finish, text = question.finish, question.text  # in this order: the text is complete once there is a finish
            if text != shown:
                yield event({"content": text[len(shown) :]})
                shown = text
            if not finish:
                await waiter.wait()
        if question.error:
            yield f"data: {json.dumps({'error': {'message': question.error.detail}})}\n\n"
        else:
            yield event({}, finish if finish == "stop" else "length")
        yield "data: [DONE]\n\n"
    finally:
        cancel([question])


def add_error_handlers(app: FastAPI) -> None:
    """Let every error be one line of {"detail": ...}, without paths and traces."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return refuse(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = min(error.errors(), key=lambda one: one["type"].endswith("_type"))  # of several forms, the one that was meant
        parts = [str(part) for part in first["loc"] if part != "body" and not re.search(r"\W|^str$", str(part))]
        if first["type"] == "extra_forbidden":
            first["msg"] = f"This changes nothing here, so leave it out. There are {', '.join(contract.Settings.model_fields)}"
        said = f"{'.'.join(parts)[:200] or 'The request'}: {first['msg']}."  # it may quote what cannot be written
        return refuse(Refusal(400, said.encode("ascii", "replace").decode()))  # after a 422 the client wants to be updated

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        return refuse(Refusal(error.status_code, f"{error.detail}."))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, OSError):
            return refuse(Refusal(503, "The server cannot write its data: its disk may be full. Tell its owner."))
        return refuse(Refusal(500, "The server has made a mistake, and its log says which. Tell its owner."))


def create_app(engine: Engine, jobs: Jobs, bases: dict[str, str], key: str | None, hosts: set[str] | None) -> FastAPI:
    """Make the web application.

    bases: what `open_model` finds each base model by, the default one first.  key, hosts: see `Guard`.
    """
    app = FastAPI(
        title="Lamini's contract on this machine",
        version=version("finetuning-course"),
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        responses={code: {"model": contract.Detail, "description": text} for code, text in STATUS_CODES.items()},
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for the document; the guard checks
    )
    app.add_middleware(Guard, key=key, hosts=hosts)
    add_error_handlers(app)
    polled: dict[str, Polled] = {}

    def names() -> list[str]:
        return [*bases, *(job["model_name"] for job in jobs.in_order() if job["status"] == "COMPLETED")]

    def find(name: str | None) -> tuple[str, str]:
        """Resolve the name of a model into (name, where it is)."""
        name = name or next(iter(bases))
        if name in bases:
            return name, bases[name]
        job = jobs.find(name)
        if not job:
            raise Refusal(594, f"There is no model {name!r} on this server. It has: {', '.join(names())}.")
        if job["status"] != "COMPLETED":
            raise Refusal(513, f"Downloading {name!r} has to wait: its job is {job['status']}.")
        return job["model_name"], str(jobs.model_folder(job))

    def find_job(job_id: str) -> dict:
        if job_id not in jobs.all:
            raise Refusal(400, f"There is no job {job_id[:40]!r}. get_jobs() lists yours.")
        return jobs.all[job_id]

    def ask(sent: contract.Completion, **options: Any) -> list[Question]:
        """Queue the questions of a request."""
        _, path = find(sent.model_name)
        questions = [Question(path, prompt, sent.max_new_tokens, sent.max_tokens, **options) for prompt in sent.prompts]
        engine.ask(questions)
        return questions

    def keep(sent: contract.Completion, patience: float, **options: Any) -> dict[str, str]:
        """Queue the questions of a request whose answers will be fetched later."""
        for name, kept in list(polled.items()):
            if time.monotonic() > kept.until:
                cancel(polled.pop(name).questions)
        if len(polled) >= POLLED:
            raise Refusal(429, f"{POLLED} requests wait to be fetched. Fetch yours, or try again in a minute.")
        name = secrets.token_hex(8)
        polled[name] = Polled(ask(sent, seconds=patience, **options), sent.output_type, patience)
        polled[name].stay()
        return {"id": name}

    def fetch(name: str) -> Polled:
        if name not in polled:
            raise Refusal(400, f"There is no request {name[:40]!r}. It was never made, or not fetched in time.")
        polled[name].stay()
        for question in polled[name].questions:
            if question.error:
                raise question.error
        return polled[name]

    @app.get("/v1/version")
    def get_version(request: Request) -> dict[str, Any]:
        paths = [route.path for route in app.routes if isinstance(route, Route)]
        api = [{"name": path.rsplit("/", 1)[-1], "path": path} for path in paths]
        return {"server": app.version, "client": request.headers.get("Lamini-Version", "")[:40], "api": api}

    @app.post("/v1/completions")
    async def complete(sent: contract.Completion, request: Request) -> contract.Output | list[contract.Output]:
        waiter = Waiter(request)
        questions = ask(sent, wake=waiter.wake)
        await waiter.all(questions)
        rows = Polled(questions, sent.output_type, patience=0).rows()
        outputs = [contract.output([question.text for question in row], sent.output_type) for row in rows]
        return outputs if isinstance(sent.prompt, list) else outputs[0]

    # polled by lamini.StreamingCompletion: create, and get_completion
    @app.post("/v3/streaming_completions")
    async def start_stream(sent: contract.Completion) -> dict[str, str]:
        return keep(sent.model_copy(update={"output_type": None}), STREAM_SECONDS, streaming=True)

    @app.get("/v3/streaming_completions/{name}/result")
    async def fetch_stream(name: str) -> dict[str, list[Any]]:
        questions = fetch(name).questions
        if not any(question.text or question.finish for question in questions):
            return {}
        return {"outputs": [{"output": q.text} for q in questions], "finish_reason": [q.finish for q in questions]}

    # polled by lamini.api.utils.batch_completions.BatchCompletions: submit, and check_result
    @app.post("/v1/batch_completions")
    async def start_batch(sent: contract.Completion) -> dict[str, str]:
        return keep(sent, BATCH_SECONDS)

    @app.get("/v1/batch_completions/{name}/result")
    async def fetch_batch(name: str) -> dict[str, list[Any]]:
        """Show what is answered. The client takes answers in order, so one behind an open one counts as open."""
        kept, outputs, reasons = fetch(name), [], []
        for row in kept.rows():
            ended = all(question.finish for question in row) and None not in reasons
            outputs.append(contract.output([question.text for question in row], kept.keys) if ended else None)
            reasons.append(row[-1].finish if ended else None)
        return {"outputs": outputs, "finish_reason": reasons} if any(reasons) else {}

    @app.post("/v1/embedding")
    async def embed(sent: contract.Completion, request: Request) -> dict[str, list[Any]]:
        waiter = Waiter(request)
        questions = ask(sent.model_copy(update={"output_type": None}), wake=waiter.wake, embed=True)
        await waiter.all(questions)
        vectors = [question.vector for question in questions]
        return {"embedding": vectors if isinstance(sent.prompt, list) else vectors[0]}

    @app.get("/v1/get-upload-base-path")
    def get_upload_base_path() -> dict[str, str]:
        return {"upload_base_path": "local"}

    @app.post("/v1/local-data")
    def upload(sent: contract.Upload) -> dict[str, str]:
        if len(jobs.data) >= KEPT:
            raise Refusal(429, f"This server keeps {KEPT} data sets, and has them. Use one of yours again.")
        name = jobs.add_data(sent.examples())
        return {"dataset_id": name, "dataset_location": f"local:{name}"}

    @app.post("/v1/existing-data")
    def existing(sent: contract.Dataset) -> dict[str, str]:
        if sent.dataset_id not in jobs.data:
            raise Refusal(400, f"There is no data set {sent.dataset_id[:40]!r}. upload_data() makes one.")
        return {"dataset_id": sent.dataset_id, "dataset_location": f"local:{sent.dataset_id}"}

    @app.post("/v1/train")
    def train(sent: contract.Train) -> contract.Job:
        name, path = find(sent.model_name)
        existing(contract.Dataset(dataset_id=sent.dataset_id))
        settings = sent.finetune_args.model_dump(exclude_none=True) if sent.finetune_args else {}
        with jobs.lock:
            waiting = sum(job["status"] == WAITING for job in jobs.in_order())
            if waiting >= WAITING_JOBS or len(jobs.all) >= KEPT:
                raise Refusal(429, f"{waiting} jobs wait, of the {len(jobs.all)} that are kept here. Wait, or cancel some.")
            if (custom := sent.custom_model_name) and (custom in bases or jobs.find(custom)):
                raise Refusal(497, f"There is a model {custom!r} already. Choose another custom_model_name.")
            return contract.Job.of(jobs.add(name, path, sent.dataset_id, settings, custom))

    @app.get("/v1/train/jobs")
    def list_jobs() -> list[contract.Job]:
        return [contract.Job.of(job) for job in jobs.in_order()]

    @app.post("/v1/train/jobs/cancel")
    def cancel_jobs() -> list[contract.Job]:
        return [contract.Job.of(jobs.cancel(job["job_id"])) for job in jobs.in_order() if job["status"] not in FINISHED]

    @app.get("/v1/train/jobs/{job_id}")
    def show_job(job_id: str) -> contract.Job:
        return contract.Job.of(find_job(job_id))

    @app.post("/v1/train/jobs/{job_id}/cancel")
    def cancel_job(job_id: str) -> contract.Job:
        return contract.Job.of(jobs.cancel(find_job(job_id)["job_id"]))

    @app.post("/v1/train/jobs/{job_id}/resume")
    def resume_job(job_id: str) -> contract.Job:
        return contract.Job.of(jobs.resume(find_job(job_id)["job_id"]))

    @app.get("/v1/train/jobs/{job_id}/eval")
    def evaluate(job_id: str) -> dict[str, Any]:
        job = find_job(job_id)
        if job["status"] != "COMPLETED":
            raise Refusal(400, f"The job is {job['status']}; once it is COMPLETED there is an evaluation.")
        return {"job_id": job_id, "eval_results": jobs.evaluation(job)}

    @app.get("/v1alpha/downloaded_models/")
    def downloaded() -> list[contract.Model]:
        return [contract.Model(model_name=name) for name in names()]

    @app.post("/v1alpha/downloaded_models/")
    def download(sent: contract.Download) -> contract.Model:
        return contract.Model(model_name=find(sent.hf_model_name)[0])

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in names()]
        return {"object": "list", "data": data}

    @app.post("/v1/chat/completions", responses={404: {"model": contract.Detail}, 200: {"content": {"text/event-stream": {}}}})
    async def chat(sent: contract.Chat, request: Request) -> Any:
        try:
            name, path = find(sent.model)
        except Refusal as refusal:  # 594 would make OpenAI's client try again and again
            raise Refusal(404, refusal.detail) from None
        waiter, limit = Waiter(request), sent.max_completion_tokens or sent.max_tokens
        messages = [message.plain() for message in sent.messages]
        question = Question(path, messages, limit, streaming=bool(sent.stream), wake=waiter.wake)
        engine.ask([question])
        about = {"id": f"chatcmpl-{secrets.token_hex(8)}", "created": int(time.time()), "model": name}
        if sent.stream:
            await waiter.beginning(question)
            if question.error:
                raise question.error
            return StreamingResponse(events(question, waiter, about), media_type="text/event-stream")
        await waiter.all([question])
        read, written = question.prompt_length, question.answer_length
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        message = {"role": "assistant", "content": question.text.strip()}
        choice = {"index": 0, "message": message, "finish_reason": question.finish}
        return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}

    return app
