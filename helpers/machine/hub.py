"""Hub: the folder that a model's name stands for: converted from packages, given by its path, or downloaded."""

from pathlib import Path

from helpers.machine.files import check_disk
from helpers.machine.loading import ModelError
from helpers.machine.packaged import PACKAGED, converted, stand_in, without_hub
from helpers.machine.progress import Bar


def download(name: str) -> Path:
    """Fetch a model of the hub, or find it in the hub's cache; ModelError says what stood in the way."""
    from huggingface_hub import constants, errors, snapshot_download  # here, as most names need no hub, and it takes a while

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
    """Return the folder that a model's name stands for, converted or downloaded if need be; see `models.load_model`.

    Raises ModelError, one line with the remedy, where there is none.
    """
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
    return download(str(name))


def check_copy_fits(name: str | Path, output: Path) -> None:
    """Raise OutputError when a finetune of this model, which is as large as it, does not fit on the disk of `output`."""
    size = sum(path.stat().st_size for path in find_model(name).glob("*.safetensors"))
    check_disk(output, size, "the finetuned model")
