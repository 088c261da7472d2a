"""The server, as Lamini's unmodified client sees it over a real socket, and as those see it who mean no good."""

import asyncio
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

pytest.importorskip("lamini", reason="Lamini's client has no wheel for this Python")

import lamini
import numpy as np
import openai
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from lamini.api.streaming_completion import StreamingCompletionObject
from lamini.api.utils.batch_completions import BatchCompletions
from lamini.error.error import (
    AuthenticationError,
    DownloadingModelError,
    DuplicateResourceError,
    ModelNotFoundError,
    RateLimitError,
    RequestTimeoutError,
    UnavailableResourceError,
    UserError,
)
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from helpers.data import Example, write
from helpers.generation import Decoder, generate
from helpers.machine.files import write_json
from helpers.machine.paths import ROOT
from helpers.models import load_model, open_model
from helpers.serving import engine, guard, routes
from helpers.serving.contract import cast
from helpers.serving.engine import Engine
from helpers.serving.jobs import Jobs, work
from helpers.serving.server import lamini_client, serve

ROWS = [{"input": f"What is number {i}?", "output": f"It is {i * 7}."} for i in range(24)]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """A server in a process of its own, which answers with a small random model called "tiny"."""
    with serve(tiny, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def client(server):
    return lamini.Lamini("tiny", api_key=server.key, api_url=server.url)


@contextmanager
def inside(tiny, folder, key="key", load=None):
    """A server in a thread of this process, so that a test can look into its engine."""
    running = Engine(load or (lambda name: load_model(name, device="cpu")), str(tiny))
    jobs = Jobs(folder)
    app = routes.create_app(running, jobs, {"tiny": str(tiny), "other": "other"}, key, {"127.0.0.1"})
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    running.port = web.servers[0].sockets[0].getsockname()[1]
    running.url, running.app = f"http://127.0.0.1:{running.port}", app
    try:
        yield running
    finally:
        web.should_exit = True
        thread.join()
        running.close()
        running.thread.join()
        jobs.close()


def until(condition, seconds=120):
    """Wait until a condition holds; return what it returned."""
    end = time.monotonic() + seconds
    while not (held := condition()):
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.05)
    return held


def test_the_client_asks_in_every_way(client, server, tiny):
    expected = generate(*load_model(tiny, device="cpu"), ["One?", "Two?", "Three?"], max_new_tokens=6)
    assert client.generate("One?", max_new_tokens=6) == expected[0]
    assert client.generate(["One?", "Two?", "Three?"], max_new_tokens=6) == expected
    assert client.generate("One?", output_type={"answer": "str"}, max_new_tokens=6) == {"answer": expected[0]}
    typed = client.generate(["One?", "Two?"], output_type={"a": "str", "b": "int", "c": "bool"}, max_new_tokens=6)
    assert [list(row) for row in typed] == [["a", "b", "c"]] * 2
    assert client.generate("One?", max_tokens=1000, max_new_tokens=6) == expected[0]
    length = len(load_model(tiny, device="cpu")[1].apply_chat_template([{"role": "user", "content": "One?"}], tokenize=False))
    assert client.generate("One?", max_tokens=length)  # counted with the prompt
    assert client.version()["client"] == lamini.__version__

    streams = lamini.StreamingCompletion(server.key, server.url)
    *_, last = streams.create("One?", "tiny", 6, polling_interval=0.05)
    assert last == {"outputs": [{"output": last["outputs"][0]["output"]}], "finish_reason": ["length"]}
    assert last["outputs"][0]["output"].strip() == expected[0]

    async def stream():
        return [part async for part in await streams.async_create(["One?", "Two?"], "tiny", 6, polling_interval=0.05)]

    assert [part["output"].strip() for part in asyncio.run(stream())[-1]["outputs"]] == expected[:2]

    batches = BatchCompletions(server.key, server.url)
    parts = list(batches.streaming_generate(["One?", "Two?", "Three?"], "tiny", max_new_tokens=6, polling_interval=0.05))
    assert parts == [{"output": {"output": text}, "finish_reason": "length"} for text in expected]
    submitted = batches.submit("One?", "tiny", output_type={"answer": "str"}, max_new_tokens=6)
    result = until(lambda: batches.check_result(submitted["id"]))
    assert result == {"outputs": [{"answer": expected[0]}], "finish_reason": ["length"]}

    vectors = lamini.Embedding("tiny", server.key, server.url).generate(["One?", "Two?", "One?"])
    assert vectors[0].shape == (1, 48) and np.linalg.norm(vectors[0]) == pytest.approx(1)
    assert (vectors[0] == vectors[2]).all() and (vectors[0] != vectors[1]).any()
    assert (lamini.Embedding(None, server.key, server.url).generate("One?") == vectors[0]).all()

    assert {"tiny", "embedded"} <= {model.model_name for model in client.list_models()}
    assert client.download_model("tiny").status == "available"


def start(tiny, folder):
    """Start a server as the command line does; return its process and a client."""
    command = [sys.executable, "-m", "helpers", "serve", "--model", str(tiny), "--port", "0", "--data-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    url = process.stdout.readline().split()[3].rstrip(";")
    return process, lamini.Lamini("tiny", api_key="any", api_url=url)


def test_the_life_of_a_job(tiny, tmp_path, monkeypatch):
    """It is cancelled, resumed, its server is killed and started again; then it completes, is evaluated, and answers."""
    process, client = start(tiny, tmp_path / "server")
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{row['input']},{row['output']}\n" for row in ROWS), encoding="utf-8")
    dataset = client.upload_file(str(path), "question", "answer")
    settings = {"max_steps": 240, "r_value": 2, "batch_size": 1}
    job = client.train(dataset, finetune_args=settings, custom_model_name="my own")
    assert job["status"] == "CREATED" and job["dataset_id"] == dataset and job["finetune_args"] == settings
    name, show = job["job_id"], lambda: client.check_job_status(job["job_id"])
    other = client.train(dataset)["job_id"]
    with pytest.raises(DuplicateResourceError, match="There is a model 'my own' already"):
        client.train(dataset, custom_model_name="my own")
    with pytest.raises(DownloadingModelError):
        client.generate("One?", model_name="my own")
    with pytest.raises(UserError, match="once it is COMPLETED"):
        client.evaluate(name)
    running = until(lambda: (status := show())["step"] and status)
    assert running["status"] == "TRAINING MODEL" and running["steps"] == 240
    assert running["loss"] > 0 and running["seconds_left"] > 0 and running["model_name"] is None
    assert [cancelled["status"] for cancelled in client.cancel_all_jobs()] == ["CANCELLED"] * 2
    assert client.cancel_all_jobs() == []
    assert client.resume_job(name)["status"] == "QUEUED"  # at once, while the worker is still at its checkpoint
    until(lambda: show()["status"] == "TRAINING MODEL" and show()["step"] > running["step"] + 20)
    process.kill()
    process.communicate()

    process, client = start(tiny, tmp_path / "server")
    assert [entry["job_id"] for entry in client.get_jobs()] == [name, other]
    assert client.check_job_status(other)["status"] == "CANCELLED"
    taken = subprocess.run(process.args, capture_output=True, text=True, cwd=ROOT)
    assert taken.returncode == 1 and "another server is using this folder" in taken.stderr
    done = until(lambda: (status := show())["status"] in ("COMPLETED", "FAILED") and status)
    assert done["status"] == "COMPLETED" and done["model_name"] == "my own" and done["resume_count"] == 1, done
    steps = [entry["step"] for entry in json.loads(done["history"])]
    assert steps[-1] == 240 and steps == sorted(steps)  # it went on; it did not start again
    compared = client.evaluate(name)["eval_results"]
    assert {entry["input"] for entry in compared} < {row["input"] for row in ROWS}
    assert [output["model_name"] for output in compared[0]["outputs"]] == ["my own", "tiny"]
    assert client.generate(ROWS[0]["input"], model_name="my own", max_new_tokens=8).startswith("It is")
    assert not client.generate(ROWS[0]["input"], max_new_tokens=8).startswith("It is")
    assert client.cancel_job(name)["status"] == client.resume_job(name)["status"] == "COMPLETED"

    monkeypatch.setattr("lamini.api.lamini.time.sleep", lambda seconds, sleep=time.sleep: sleep(0.2))
    bad = client.train_and_wait(ROWS, finetune_args={"max_steps": 500, "r_value": 0, "learning_rate": 10})
    assert bad["status"] == "FAILED" and "the run has exploded. Lower the learning rate (10)" in bad["reason"]
    last = client.train(ROWS, finetune_args={"max_steps": 5000, "r_value": 2})["job_id"]
    until(lambda: client.check_job_status(last)["step"])
    process.send_signal(signal.SIGINT)  # Ctrl-C
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.strip() == "Stopped."
    folder = tmp_path / "server" / "jobs" / last
    assert json.loads((folder / "job.json").read_text())["status"] == "QUEUED"
    assert list((folder / "checkpoints").glob("step-*.pt"))


def test_a_finetuned_model_is_finetuned_again(tiny, tmp_path):
    """An adapter on an adapter, then the whole model: each loads with what those before it have learnt."""
    write(tmp_path / "data" / "rows.jsonl", [Example(row["input"], row["output"]) for row in ROWS])
    base, weights = str(tiny), []
    for number, rank in enumerate((2, 2, 0)):
        folder = tmp_path / "jobs" / str(number)
        folder.mkdir(parents=True)
        settings = {"r_value": rank, "num_train_epochs": 1, "max_finetuning_examples": 4}
        job = {"job_id": str(number), "custom_model_name": None, "base_model_name": "b", "base_path": base}
        write_json(folder / "job.json", {**job, "dataset_id": "rows", "finetune_args": settings})
        reports = []
        work(folder, lambda reports=reports, **changes: reports.append(changes))
        assert [report["status"] for report in reports if "status" in report][-1] == "COMPLETED"
        assert not (folder / "checkpoints").exists() and len(json.loads((folder / "evaluation.json").read_text())) == 4
        base = str(folder / "model")
        weights.append(open_model(base)[0].model.layers[0].mlp.up_proj.weight)
    original = load_model(tiny, device="cpu")[0].model.layers[0].mlp.up_proj.weight
    changed = [(weight - original).norm().item() for weight in weights]
    assert 0 < changed[0] < changed[1] < changed[2]


def test_the_server_of_a_notebook_ends_with_its_process(tiny, tmp_path):
    code = (
        "import sys, time\nfrom helpers.serving.server import serve\n"
        "with serve(sys.argv[1], sys.argv[2]) as server:\n    print(server.url, flush=True)\n    time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tiny, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    url = process.stdout.readline().strip()
    assert requests.get(url).status_code == 401
    process.kill()

    def gone():
        try:
            return not requests.get(url)
        except requests.ConnectionError:
            return True

    until(gone, 30)


def test_errors_come_in_the_clients_own_classes(client, server):
    with pytest.raises(AuthenticationError, match="This key is wrong"):
        lamini.Lamini("tiny", api_key="wrong", api_url=server.url).generate("One?")
    with pytest.raises(ModelNotFoundError, match="There is no model 'meta-llama/Llama"):
        client.generate("One?", model_name="meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(ModelNotFoundError):
        client.download_model("owner/model")
    for wrong, said in [
        ({"prompt": ""}, None),  # an empty question is a question
        ({"prompt": []}, "at least 1 item"),
        ({"prompt": 5}, "valid string"),
        ({"prompt": "word " * 600}, "this model reads from 1 to 511"),
        ({"prompt": "One?", "max_new_tokens": 10**30}, "max_new_tokens"),
        ({"prompt": "One?", "max_new_tokens": 0}, "greater than or equal to 1"),
        ({"prompt": "One?", "max_tokens": 2}, "max_tokens counts the prompt"),
        ({"prompt": "One?", "output_type": {"a": "list"}}, "output_type.a"),
    ]:
        if said:
            with pytest.raises(UserError, match=said):
                client.generate(**wrong)
        else:
            client.generate(**wrong, max_new_tokens=2)
    rows = [*ROWS[:2], {"input": "no output"}]
    with pytest.raises(UserError, match=r"Row 3, field 'output': expected text"):
        client.upload_data(rows)
    with pytest.raises(UserError, match=r"finetune_args\.learning_rat: This changes nothing here, so leave it out"):
        client.train(ROWS, finetune_args={"learning_rat": 1e-4})
    with pytest.raises(UserError, match=r"finetune_args\.max_steps: Input should be less than or equal to 100000"):
        client.train(ROWS, finetune_args={"max_steps": 10**9})
    with pytest.raises(UserError, match="train_type"):
        client.train(ROWS, train_type="memory_rag")
    for name in ("../../etc/passwd", "a/b", "..", "", "x" * 65, "null\x00byte", "line\n"):
        with pytest.raises(UserError, match="custom_model_name"):
            client.train(ROWS, custom_model_name=name)
        with pytest.raises(UserError, match="There is no data set"):
            client.train(f"{name}no")
    for name in ("..%2F..%2Fjobs", "..", "%00", "deadbeef0000"):
        reply = requests.get(f"{server.url}/v1/train/jobs/{name}", headers={"Authorization": f"Bearer {server.key}"})
        assert reply.status_code in (400, 404, 405) and set(reply.json()) == {"detail", "error"}
    with pytest.raises(ModelNotFoundError):
        client.generate("One?", model_name="../tiny")


def test_strangers_are_refused(server):
    ours, key = server.url.removeprefix("http://"), {"Authorization": f"Bearer {server.key}"}
    assert requests.get(server.url + "/openapi.json").status_code == 401  # even that
    for headers, status in [
        ({**key}, 200),
        ({**key, "Host": f"localhost:{ours.split(':')[1]}"}, 200),
        ({**key, "Host": "evil.example"}, 400),
        ({**key, "Host": "[bad"}, 400),
        ({**key, "Origin": "https://evil.example"}, 400),
        ({**key, "Origin": server.url}, 200),
        ({"Authorization": server.key}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
    ]:
        reply = requests.get(server.url + "/v1/models", headers=headers)
        assert reply.status_code == status, headers
        assert "access-control-allow-origin" not in reply.headers
    reply = requests.post(server.url + "/v1/completions", data='{"prompt": "x"}', headers={**key, "Content-Type": "text/plain"})
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "needs a key"),
        (["--host", ""], "needs a key"),
        (["--port", "{taken}"], "Choose another --port"),
        (["--port", "99999"], "Choose another --port"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(arguments, said, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [argument.format(taken=taken.getsockname()[1]) for argument in arguments]
        command = [sys.executable, "-m", "helpers", "serve", "--data-dir", str(tmp_path), *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "FINETUNING_API_KEY"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_openais_client_chats(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=server.key)
    assert {"tiny", "embedded"} <= {model.id for model in client.models.list()}
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "One?"}]}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0.7)
    pieces = list(client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=12, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces).strip() == whole.choices[0].message.content
    assert len(pieces) > 5 and pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12 and whole.usage.prompt_tokens > 5
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.chat.completions.create(model="gpt-9", messages=messages)
    with pytest.raises(openai.BadRequestError, match="this model reads from 1 to 511"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 600}], stream=True)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong").models.list()


def test_two_clients_at_once_get_what_each_gets_alone(tiny, client):
    questions = [f"What is {i} and {i + 1}?" for i in range(12)]
    expected = generate(*load_model(tiny, device="cpu"), questions, max_new_tokens=40)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda question: client.generate(question, max_new_tokens=40), questions))
    assert answers == expected


def busy(running):
    return sum(len(loaded.decoder.running) for loaded in running.models.values()) + len(running.waiting)


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "model": "tiny", "max_tokens": 500, "stream": True}


@pytest.mark.parametrize(
    ("path", "sent", "silent"),
    [
        ("/v1/completions", {"prompt": ["Hi"] * 40, "max_new_tokens": 500}, False),
        ("/v1/chat/completions", CHAT, False),
        ("/v1/chat/completions", CHAT, True),  # nothing but spaces and marks so far: there is no text to send
    ],
    ids=["whole", "stream", "stream without text"],
)
def test_a_vanishing_client_leaves_nothing_behind(tiny, tmp_path, monkeypatch, path, sent, silent):
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: (time.sleep(0.02), step(self)))  # an answer would take 10 seconds
    if silent:
        monkeypatch.setattr(Decoder, "text", lambda self, answer: "")
    with inside(tiny, tmp_path) as running:
        gone = http.client.HTTPConnection("127.0.0.1", running.port)
        gone.request("POST", path, json.dumps(sent), {"Authorization": "Bearer key", "Content-Type": "application/json"})
        began = until(lambda: [answer for loaded in running.models.values() for answer in loaded.decoder.running])
        gone.sock.close()
        until(lambda: not busy(running))
        assert any(len(answer.tokens) < 450 for answer in began)


def test_a_long_list_lets_later_requests_pass(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ROWS", 2)
    with inside(tiny, tmp_path) as running:
        batches = BatchCompletions("key", running.url)
        name = batches.submit(["Hi"] * 12, "tiny", max_new_tokens=60)["id"]
        until(lambda: busy(running))
        lamini.Lamini("tiny", api_key="key", api_url=running.url).generate("One?", max_new_tokens=4)
        result = batches.check_result(name)
        assert not result or result["finish_reason"].count(None) > 4
        until(lambda: batches.check_result(name).get("finish_reason", [None])[-1])


def test_models_take_turns_when_not_all_can_be_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "MODELS", 1)
    with inside(tiny, tmp_path, load=lambda name: load_model(tiny, device="cpu")) as running, ThreadPoolExecutor(6) as pool:
        client = lamini.Lamini("tiny", api_key="key", api_url=running.url)
        answers = list(pool.map(lambda name: client.generate("One?", name, max_new_tokens=8), ["tiny", "other"] * 3))
        assert len(set(answers)) == 1 and len(running.models) == 1


def test_a_poller_that_stops_is_forgotten(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(routes, "STREAM_SECONDS", 0.3)
    with inside(tiny, tmp_path) as running:
        streams = lamini.StreamingCompletion("key", running.url)
        name = streams.submit("Hi", "tiny", 490)["id"]
        until(lambda: busy(running))
        until(lambda: not busy(running))
        result = requests.get(f"{running.url}/v3/streaming_completions/{name}/result", headers={"Authorization": "Bearer key"})
        assert result.json()["finish_reason"] == ["timeout"]
        time.sleep(0.4)
        streams.submit("Hi", "tiny", 4)
        lost = StreamingCompletionObject(streams.streaming_completions_url, "key", name, polling_interval=0)
        with pytest.raises(UserError, match="not fetched in time"):
            list(lost)


def test_a_slow_client_holds_nobody_up(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 1.0)
    with inside(tiny, tmp_path) as running:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer key\r\nContent-Length: 1000\r\n\r\n{"
        slow = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(60)]
        for connection in slow:
            connection.sendall(head)
        lamini.Lamini("tiny", api_key="key", api_url=running.url).generate("One?", max_new_tokens=2)
        slow[0].settimeout(10)
        assert slow[0].recv(1000).startswith(b"HTTP/1.1 524")
        for connection in slow:
            connection.close()


def test_what_is_too_much_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "REQUEST_BYTES", 100_000)
    monkeypatch.setattr(engine, "QUEUE", 4)
    monkeypatch.setattr(routes, "POLLED", 2)
    monkeypatch.setattr(routes, "WAITING_JOBS", 0)
    with inside(tiny, tmp_path) as running:
        client = lamini.Lamini("tiny", api_key="key", api_url=running.url)
        with pytest.raises(UserError, match="longer than 0 MiB"):  # its length is declared
            client.generate("word " * 30_000)

        def parts():
            for _ in range(30):
                yield b" " * 5_000

        headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
        reply = requests.post(running.url + "/v1/completions", data=parts(), headers=headers)  # its length is not
        assert reply.status_code == 400 and "longer than" in reply.json()["detail"]
        with pytest.raises(RateLimitError, match="More than 4 prompts"):
            client.generate(["One?"] * 5)
        with pytest.raises(RateLimitError, match="jobs wait"):
            client.train(ROWS)
        batches = BatchCompletions("key", running.url)
        batches.submit("One?", "tiny", max_new_tokens=2), batches.submit("One?", "tiny", max_new_tokens=2)
        with pytest.raises(RateLimitError, match="2 requests wait to be fetched"):
            batches.submit("One?", "tiny")
        client.generate("One?", max_new_tokens=2)


def test_a_model_that_cannot_be_loaded_or_is_slow_harms_only_those_who_ask_it(tiny, tmp_path, monkeypatch):
    released = threading.Event()

    def load(name):
        if name != str(tiny):
            released.wait()
            raise ValueError("/secret/path: broken")
        return load_model(name, device="cpu")

    with inside(tiny, tmp_path, load=load) as running, ThreadPoolExecutor(1) as pool:
        client = lamini.Lamini("tiny", api_key="key", api_url=running.url)
        waiting = pool.submit(client.generate, "One?", "other")
        try:
            client.generate("One?", max_new_tokens=2)
            assert not waiting.done()
        finally:
            released.set()
        with pytest.raises(UnavailableResourceError, match="cannot be loaded") as error:
            waiting.result()
        assert "secret" not in str(error.value)
        monkeypatch.setattr(running.models[str(tiny)].decoder, "step", None)  # stands for whatever breaks within
        with pytest.raises(UnavailableResourceError, match="failed"):
            client.generate("One?")
        client.generate("One?", max_new_tokens=2)  # it has been loaded again
        monkeypatch.setattr(routes, "Question", lambda *args, **more: engine.Question(*args, **{**more, "seconds": 0.05}))
        with pytest.raises(RequestTimeoutError, match="took too long"):
            client.generate("One?", max_new_tokens=500)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("It costs €1,900.50, or 3 rates.", "float", 1900.5),
        ("It has 4 legs.", "int", 4),
        ("About 3.5 kg", "int", None),
        ("minus -7 degrees", "int", -7),
        ("Nobody knows.", "float", None),
        ("9" * 400, "int", None),
        ("Yes, it is not false.", "bool", True),
        ("No.", "bool", False),
        ("Nobody knows.", "bool", None),
    ],
)
def test_types_are_found_in_answers_or_they_are_null(text, kind, value):
    assert cast(text, kind) == value


def test_fuzzed_from_its_own_document_it_never_breaks(tiny, tmp_path, monkeypatch):
    """Whatever comes in: no error of the server's own, and every answer is as the document says."""
    monkeypatch.setattr(engine, "NEW_TOKENS", 3)
    key = {"Authorization": "Bearer key"}
    checks = [response_schema_conformance, status_code_conformance, content_type_conformance]
    with inside(tiny, tmp_path) as running:
        document = schemathesis.openapi.from_url(running.url + "/openapi.json", headers=key)
        operations = [result.ok() for result in document.get_all_operations()]
        assert len(operations) == 21
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
            def ask(case):
                reply = case.call(headers=key)
                assert reply.status_code != 500
                case.validate_response(reply, checks=checks)

            ask()


def test_a_lesson_gets_the_client_with_a_server_of_its_own(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LAMINI_API_KEY", raising=False)
    with lamini_client(tiny, tmp_path) as llm:
        assert llm.model_name == "tiny" and isinstance(llm.generate("Hi", max_new_tokens=2), str)
    assert "on this machine, about tiny" in capsys.readouterr().out


def test_a_lesson_takes_the_hosted_service_when_there_is_a_key(monkeypatch, capsys):
    monkeypatch.setenv("LAMINI_API_KEY", "secret")
    monkeypatch.setattr(lamini, "api_key", "secret")
    with lamini_client() as llm:
        assert llm.model_name.startswith("meta-llama/") and llm.api_key == "secret" and "127.0.0.1" not in llm.api_url
    assert "hosted service" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["client", "model"])
def test_a_lesson_goes_on_without_client_or_server(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LAMINI_API_KEY", raising=False)
    if missing == "client":
        monkeypatch.setitem(sys.modules, "lamini", None)
    with lamini_client("./nowhere", tmp_path) as llm:
        assert llm is None
    assert "Lamini's client is left out: " in capsys.readouterr().out


def test_a_lesson_goes_on_where_no_address_can_be_reached(tiny, tmp_path, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.delenv("LAMINI_API_KEY", raising=False)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with lamini_client(tiny, tmp_path) as llm:
        assert llm is None
    assert "lets nobody talk to it: Network is unreachable" in capsys.readouterr().out
