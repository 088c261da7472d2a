"""Models: a name becomes a model and its tokenizer, on the best device, ready to train or to answer."""

import json
from pathlib import Path

import torch

from helpers.machine.device import pick_device
from helpers.machine.files import replace_folder
from helpers.machine.loading import ModelError, load_folder, no_bars
from helpers.machine.packaged import PACKAGED, converted, stand_in, without_hub
from helpers.machine.progress import Bar
from helpers.text.templates import end_ids

EMBEDDED = "embedded"
# For tokenizers that come without a template, as those of base models do. A document begins with its first token, where
# the tokenizer has one; no space ends a prompt, as words begin with theirs; and an answer ends like a document.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].title() }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _download(name: str) -> Path:
    """Fetch a model of the hub, or find it in the hub's cache; the error says what stood in the way."""
    from huggingface_hub import constants, errors, snapshot_download

    try:  # weights as safetensors only: other formats can carry code
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"], tqdm_class=Bar))
    except errors.HFValidationError:
        raise ModelError(f"{name!r} is neither a folder here nor a name such as 'owner/model'. {without_hub(name)}") from None
    except errors.GatedRepoError:
        raise ModelError(f"{name}: accept its terms on the hub's page and set HF_TOKEN. {without_hub(name)}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(f"{name}: the hub has no model of this name (private? set HF_TOKEN). {without_hub(name)}") from None
    except Exception as error:  # the hub's client lets many kinds through: sockets, HTTP, timeouts, checksums
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise ModelError(f"{name}: could not be downloaded ({why}). Connect and run this again. {without_hub(name)}") from error


def find_model(name: str | Path) -> Path:
    """Return the folder that a model's name stands for, converted or downloaded if need be; see `load_model`."""
    name = stand_in(name)
    path = Path(name)
    if str(name) in PACKAGED:
        return converted(PACKAGED[str(name)])
    if path.is_dir():
        return path
    if path.is_file():
        a_model = "a model is a folder with config.json, *.safetensors and a tokenizer"
        hint = "GGUF is for answering: take the model it was made of." if path.suffix == ".gguf" else "Name its folder."
        raise ModelError(f"{name}: is a file, and {a_model}. {hint}")
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1:
        raise ModelError(f"{name}: there is no such folder. Check the path, or use load_model() for the embedded model.")
    return _download(str(name))


def load_model(
    name: str | Path = EMBEDDED, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> tuple:
    """Load a causal language model and its tokenizer.

    name: one that packages hold, so that it needs no network: "embedded" (SmolLM2-135M-Instruct), "larger"
        (Qwen2.5-Coder-1.5B-Instruct) or "base" (Gemma 3 270M, pretrained only), see `packaged`; the latter two are optional,
        and the hub's take their place. Or a folder, or a name on the hub. (A folder that is called base: "./base".)
    device: where to put it; the fastest there is when left out.
    dtype: what to hold the weights in. Training needs float32. A model that is only asked may be held in
        `pick_dtype(device)`, which it then computes in: 3 GiB instead of 6 for "larger" where bfloat16 is fast. Elsewhere
        that is float32 still, as computing in bfloat16 would take many times as long.
    Returns (model, tokenizer), the model in evaluation mode. `model.stored_dtype` is the precision that its weights came in,
    and that `save_model` writes again. Raises ModelError, one line with the remedy; see `loading`.
    """
    device = torch.device(device) if device else pick_device()
    name = stand_in(name)
    model, tokenizer = load_folder(find_model(name), str(name), dtype)
    model.config.name_or_path = str(name)  # an adapter's file names its base
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def saved_precision(model) -> torch.dtype:
    """Name the precision that `save_model` writes: what the weights came in, if they were loaded as float32, else theirs."""
    return getattr(model, "stored_dtype", model.dtype) if model.dtype == torch.float32 else model.dtype


def save_model(model, tokenizer, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Save model and tokenizer as a folder that `load_model` and plain transformers load; return the folder.

    Its generation_config.json names every token that ends an answer, see `end_ids`, for programs that know no chat template.
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
        _amend(partial / "config.json", dtype=str(dtype).removeprefix("torch."))
        _amend(partial / "generation_config.json", eos_token_id=end_ids(tokenizer, model.generation_config.eos_token_id))
    return Path(folder)


def _amend(path: Path, **changes: object) -> None:
    """Change fields of a configuration that transformers wrote."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
