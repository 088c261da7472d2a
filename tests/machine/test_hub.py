"""A model's name becomes a folder: by its path, or from the hub, a small one on loopback here."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.machine.hub import find_model
from helpers.machine.loading import ModelError


def environment(**more):
    return {**os.environ, **{name: str(value) for name, value in more.items()}}


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelError, match="there is no such folder"):
        find_model(name)


class Hub(BaseHTTPRequestHandler):
    """A small hub on loopback: it serves one folder as team/good, breaks team/broken and vanishes in team/vanishing."""

    folder = None

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.describe("/".join(parts[2:4]), tree="tree" in parts)
        if len(parts) < 5:
            return self.fail("EntryNotFound")
        owner, name, _, _, *rest = parts
        path = self.folder / "/".join(rest)
        if f"{owner}/{name}" not in ("team/good", "team/broken", "team/vanishing") or not path.is_file():
            return self.fail("EntryNotFound")
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{abs(hash(data)):x}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and rest[-1].endswith(".safetensors") and name != "good":
            data = data[: len(data) // 3]
        if body:
            self.wfile.write(data)
            if name == "vanishing" and rest[-1].endswith(".safetensors"):
                threading.Thread(target=self.server.shutdown).start()
            if name != "good":
                self.wfile.flush()
                self.connection.close()

    def describe(self, repo, tree):
        if repo not in ("team/good", "team/broken", "team/vanishing"):
            return self.fail("RepoNotFound")
        files = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
        about = {"id": repo, "modelId": repo, "sha": "c" * 40, "siblings": files, "tags": []}
        listing = [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40} for path in self.folder.iterdir()
        ]
        text = json.dumps(listing if tree else about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def fail(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tiny):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.folder = tiny
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load_from(hub, name, home, **more):
    """Load a model of the hub in a process of its own: the hub's client reads its settings when it is imported.

    It tries again and again, and waits longer each time; here it does not wait.
    """
    code = (
        "import sys, time\ntime.sleep = lambda seconds: None\n"
        "from helpers.machine.loading import ModelError\nfrom helpers.models import load_model\n"
        "try:\n    model, _ = load_model(sys.argv[1], device='cpu')\n    print('LOADED', model.num_parameters())\n"
        "except ModelError as error:\n    print('ERROR', error)"
    )
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "2", **more}
    env = environment(HF_ENDPOINT=hub, HF_HOME=home, **settings)
    run = subprocess.run([sys.executable, "-c", code, name], env=env, capture_output=True, text=True, timeout=240)
    lines = [line for line in run.stdout.splitlines() if line.startswith(("LOADED", "ERROR"))]
    assert len(lines) == 1, run.stdout + run.stderr
    return lines[0]


def test_a_model_of_the_hub_loads_and_loads_again_offline(hub, tmp_path):
    first = load_from(hub, "team/good", tmp_path)
    assert first.startswith("LOADED")
    assert load_from("http://127.0.0.1:9", "team/good", tmp_path) == first  # nobody listens there: the cache serves
    assert load_from(hub, "team/good", tmp_path, HF_HUB_OFFLINE="1") == first


def test_an_unknown_name_on_the_hub(hub, tmp_path):
    assert "team/none: the hub has no model of this name" in load_from(hub, "team/none", tmp_path)


def test_no_network_and_not_in_the_cache(tmp_path):
    said = load_from("http://127.0.0.1:9", "team/good", tmp_path)
    assert "team/good: could not be downloaded" in said and "load_model() needs no network" in said
    said = load_from("http://127.0.0.1:9", "team/good", tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in said


@pytest.mark.parametrize("name", ["team/broken", "team/vanishing"])
def test_a_download_that_breaks_off_loads_nothing(hub, tmp_path, name):
    said = load_from(hub, name, tmp_path)
    assert said.startswith(f"ERROR {name}: could not be downloaded")
    assert load_from(hub if name == "team/broken" else "http://127.0.0.1:9", name, tmp_path).startswith("ERROR")
