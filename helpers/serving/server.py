"""Server: Lamini's wire contract, and OpenAI's chat, on this machine. Start it from a notebook or the command line.

    with serve() as server:
        lamini.api_url, lamini.api_key = server.url, server.key
        print(lamini.Lamini("embedded").generate("What is the capital of France?"))

Its rooms: engine answers, jobs finetune, contract says what requests hold, guard looks at them first, routes take them.
"""

import ipaddress
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import lamini

CONNECTIONS = 1024  # at the same time; more are turned away


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open a port; 0 takes a free one. Raises ValueError, in one line."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Cannot listen on {host}, port {port}: {reason}. Choose another --port; 0: a free one.") from None


def serve_forever(model: str, host: str, port: int, key: str | None, folder: Path) -> None:
    """Serve until Ctrl-C. `folder` keeps data sets, jobs and the models they make.

    Raises ValueError, ModelError or OSError, in one line, when it cannot start.
    """
    if not key and not is_loopback(host):
        raise ValueError(f"--host {host} lets other machines in, and so needs a key. Add --api-key, or leave out --host.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "server.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder}: another server is using this folder. Stop it, or choose another --data-dir.") from None
    with listen(host, port) as listener:
        import uvicorn  # from here on it takes a few seconds, so what stands in the way has been told before

        from helpers.models import open_model
        from helpers.serving.engine import Engine
        from helpers.serving.guard import LOOPBACK
        from helpers.serving.jobs import Jobs
        from helpers.serving.routes import create_app

        class Web(uvicorn.Server):
            def handle_exit(self, sig, frame) -> None:
                engine.close()  # first, so that whoever waits for an answer is told
                super().handle_exit(sig, frame)

        path = Path(model).resolve()
        name, place = (path.name, str(path)) if path.is_dir() else (model, model)
        bases = {name: place} if name == "embedded" else {name: place, "embedded": "embedded"}
        hosts = {host, *LOOPBACK} if is_loopback(host) else None
        engine = Engine(open_model, first=place)
        jobs = Jobs(folder)
        try:
            app = create_app(engine, jobs, bases, key, hosts)
            config = uvicorn.Config(
                app,
                log_level="warning",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=5,
                server_header=False,
                proxy_headers=False,
                ws="none",
            )
            address = f"[{host}]" if ":" in host else host
            print(f"Serving {name} on http://{address}:{listener.getsockname()[1]}; Ctrl-C stops it.", flush=True)
            Web(config).run(sockets=[listener])
        finally:
            engine.close()
            jobs.close()


@dataclass(frozen=True)
class Server:
    """Where a server is, its key, and the name of its model."""

    url: str
    key: str
    model: str


@contextmanager
def serve(model: str | Path = "embedded", folder: str | Path | None = None) -> Iterator[Server]:
    """Run a server of one's own as long as a `with` block takes: on a free port, with a key that nobody else knows.

    model: "embedded", a folder, or a name on the hub.  folder: for data sets and jobs; build/server when left out.
    It ends with the block, and also when this process dies. Raises RuntimeError when it does not start.
    """
    from helpers.machine.paths import build_folder

    folder, key = Path(folder or build_folder() / "server").resolve(), secrets.token_urlsafe(24)
    folder.mkdir(parents=True, exist_ok=True)
    model = Path(model).resolve() if Path(model).is_dir() else model
    command = [sys.executable, "-m", "helpers", "serve", "--until-stdin-closes", "--port", "0"]
    usual = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    with (
        (folder / "server.log").open("w+", encoding="utf-8") as log,
        subprocess.Popen(
            [*command, "--model", str(model), "--data-dir", str(folder)],
            env={**os.environ, "FINETUNING_API_KEY": key},  # others could read it on a command line
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # the stop button of a notebook is not for the server
        ) as child,
    ):
        assert child.stdin and child.stdout  # as asked for above
        writing, reading, said = child.stdin, child.stdout, ""
        try:
            while not said.startswith("Serving "):  # before that, the embedded model may have to be converted
                said = reading.readline()
                if not said:
                    log.seek(0)
                    raise RuntimeError(
                        f"The server did not start: {(log.read().strip() or 'it said nothing').splitlines()[-1]}"
                    )
            os.environ.update({name: ",".join(filter(None, (value, "127.0.0.1"))) for name, value in usual.items()})
            name, url = re.findall(r"Serving (.*) on (http\S+);", said)[0]
            try:
                socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
            except OSError as error:  # a sandbox without any network interface
                raise RuntimeError(f"The server runs, but this machine lets nobody talk to it: {error.strerror}.") from None
            yield Server(url, key, name)
        finally:
            for name, value in usual.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            writing.close()
            with suppress(subprocess.TimeoutExpired):
                child.wait(30)
            child.kill()


@contextmanager
def lamini_client(
    model: str | Path = "embedded",
    folder: str | Path | None = None,
    hosted_model: str = "meta-llama/Llama-3.1-8B-Instruct",
) -> Iterator["lamini.Lamini | None"]:
    """Make Lamini's own client ready: for the hosted service if LAMINI_API_KEY is set, else for a server of one's own.

    model, folder: see `serve`.  hosted_model: what to ask the hosted service for. Gives None, and says why, where there is no
    client, or no server can be started.
    """
    try:
        import lamini
    except ImportError as error:
        print(
            f"Lamini's client is left out: {error}. It needs numpy 1, which has no package for Python 3.13 and later. "
            "The rest of the lesson does without it; with Python 3.11 or 3.12, `make install` brings it."
        )
        yield None
        return
    if os.environ.get("LAMINI_API_KEY"):
        print(f"Lamini's client talks to the hosted service, about {hosted_model}.")
        yield lamini.Lamini(hosted_model)
        return
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve(model, folder))
        except RuntimeError as error:
            print(f"Lamini's client is left out: {error}")
            yield None
            return
        print(f"Lamini's client talks to {server.url}, on this machine, about {server.model}.")
        yield lamini.Lamini(server.model, api_key=server.key, api_url=server.url)
