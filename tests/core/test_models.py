import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from helpers.machine.device import pick_dtype
from helpers.machine.files import OutputError
from helpers.machine.loading import ModelError
from helpers.models import frozen_in, load_model, save_model


def environment(**more):
    return {**os.environ, **{name: str(value) for name, value in more.items()}}


def test_importing_helpers_is_instant_and_loads_no_framework():
    code = "import sys, time; t = time.perf_counter(); import helpers; print(time.perf_counter() - t, 'torch' in sys.modules)"
    seconds, torch_loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(seconds) < 0.2 and torch_loaded == "False"


def test_the_embedded_model_is_whole(embedded):
    model, tokenizer = embedded
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training and tokenizer.pad_token is not None
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_device_and_precision_can_be_chosen(tiny, monkeypatch):
    monkeypatch.delenv("FINETUNING_BF16", raising=False)
    assert load_model(tiny, device="cpu")[0].device.type == "cpu"
    assert {weight.dtype for weight in load_model(tiny, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    assert pick_dtype(torch.device("mps")) == torch.float32
    capable = torch.cpu.get_capabilities()
    fast = any(capable.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert pick_dtype(torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelError, match="there is no such folder"):
        load_model(name)


def break_config(folder):
    (folder / "config.json").unlink()


def break_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lose_weights(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_config, "no config.json"),
        (break_weights, "cannot be read as a model"),
        (lose_weights, "1 weights are missing, such as model.layers.1.mlp.up_proj.weight"),
        (lose_tokenizer, "no tokenizer"),
    ],
)
def test_half_a_model_is_refused_in_one_line(tiny, tmp_path, damage, said):
    folder = tmp_path / "half"
    shutil.copytree(tiny, folder)
    damage(folder)
    with pytest.raises(ModelError, match=said) as error:
        load_model(folder)
    assert "\n" not in str(error.value) and "again" in str(error.value)


def test_save_replaces_a_model_and_nothing_else(tiny, tmp_path):
    model, tokenizer = load_model(tiny, device="cpu")
    folder = save_model(model, tokenizer, tmp_path / "deep" / "mine")
    with torch.no_grad():
        model.model.norm.weight += 1
    save_model(model, tokenizer, folder)
    again, _ = load_model(folder, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    (tmp_path / "thesis.txt").write_text("my only copy")
    with pytest.raises(OutputError, match="holds something that is not a model"):
        save_model(model, tokenizer, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_interrupted_save_leaves_the_older_model(tiny, tmp_path, monkeypatch):
    model, tokenizer = load_model(tiny, device="cpu")
    folder = save_model(model, tokenizer, tmp_path / "mine")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, tokenizer, folder)
    monkeypatch.undo()
    load_model(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


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


def test_frozen_weights_are_held_in_another_precision_and_come_back(fresh):
    model, _ = fresh
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    with frozen_in(model, torch.bfloat16) as whole:
        with whole():
            assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
        kinds = {name: weight.dtype for name, weight in model.named_parameters()}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert kinds["model.layers.29.mlp.up_proj.weight"] == torch.float32  # it learns
    assert kinds["model.embed_tokens.weight"] == torch.float32  # it is looked up
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
