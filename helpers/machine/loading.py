"""Loading: what a model's folder has to hold so that it can be finetuned here. Each refusal is one line with its remedy.

A check looks at one thing and returns what is wrong and what to do, or "". Those of the files and of config.json come first,
so that most is said before any weight is read. transformers is imported where it is needed: it takes seconds, and others
want but the error's class from here.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from helpers.machine.files import replace_folder
from helpers.text.templates import end_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OTHER = "Choose a model that writes text word by word, such as the embedded one."
ORIGINAL = "Take the model that it was made of, in 32 or 16 bits."
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
POINTER = b"version https://git-lfs"  # how a file of Git LFS begins that was not fetched
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")  # one of these is needed
BYTES = ("ByT5Tokenizer", "PerceiverTokenizer", "CanineTokenizer")  # their tokens are bytes or characters
STORED = {"F32": torch.float32, "F64": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BOTH_WAYS = ("xlnet", "xlm", "bert-generation")  # read a text from both sides, besides those that fill in masks
# For tokenizers that come without a template, as those of base models do. A document begins with its first token, where
# the tokenizer has one; no space ends a prompt, as words begin with theirs; and an answer ends like a document.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].title() }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


class ModelError(RuntimeError):
    """A model that cannot be loaded. The message is one line and names the remedy."""


def convert_command(name: str, steps: str = "") -> str:
    """Write the command that loads a model with transformers and saves it as safetensors, in a folder of its own.

    steps: Python to run between, for the model m and its tokenizer t.
    """
    new = f"{name.rstrip('/')}-mended" if Path(name).is_dir() else f"build/models/{name.rpartition('/')[2]}"
    make = "; ".join(f"{x} = {kind}.from_pretrained('{name}')" for x, kind in (("m", "M"), ("t", "T")))
    keep = "; ".join(f"{x}.save_pretrained('{new}')" for x in "mt")
    code = f"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; {make}; {steps}{keep}"
    return f'python -c "{code}" and then --model {new}'


@dataclass(frozen=True)
class ModelFiles:
    """A folder that may hold a model. `name` is what the user called it."""

    folder: Path
    name: str

    def has(self, *patterns: str) -> bool:
        """Tell whether there is a file of one of these names."""
        return any(any(self.folder.glob(pattern)) for pattern in patterns)

    @cached_property
    def raw(self) -> dict:
        """Read config.json as it stands; {} where it is no JSON object."""
        try:
            found = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def config(self) -> "PretrainedConfig":
        """Read config.json as transformers does, with what it leaves out."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def model_class(self) -> type | None:
        """Find the class that transformers makes of it."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(self.config), None)
        return found[0] if isinstance(found, tuple) else found

    @cached_property
    def text_alone(self) -> bool:
        """Tell whether transformers takes the text part alone out of a model that reads pictures, too."""
        part = getattr(self.config, "sub_configs", {}).get("text_config")
        return part is not None and getattr(self.model_class, "config_class", None) is part

    @cached_property
    def kinds(self) -> Counter:
        """Count the numbers of the weights' files by kind, from their headers alone."""
        found: Counter = Counter()
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    part = file.get_slice(key)
                    found[part.get_dtype()] += prod(part.get_shape())
        return found

    @property
    def precision(self) -> torch.dtype:
        """Name the kind of numbers that most of the weights came in."""
        return STORED.get(self.kinds.most_common(1)[0][0], torch.float32)


# What is in the folder


def not_two_things(files: ModelFiles) -> str:
    """Models and adapters have a folder each."""
    if not files.has("adapter_config.json"):
        return ""
    if files.has("config.json"):
        return "holds a model and an adapter. Move the files that begin with adapter_ to a folder of their own."
    merge = f"python -m helpers merge --model {files.name} --output {files.name.rstrip('/')}-merged"
    return f"is an adapter, and a model is wanted here. Merge it into its base: {merge}"


def one_model(files: ModelFiles) -> str:
    """The folder itself has the config, not one of those in it, and it is a config of transformers."""
    if files.has("model_index.json"):
        return f"makes pictures, not text. {OTHER}"
    if files.has("config.json"):
        return ""
    inside = sorted({path.parent for depth in ("*", "*/*") for path in files.folder.glob(f"{depth}/config.json")})
    if inside:
        return f"is not a model, and {len(inside)} of the folders in it may be. Name one, such as {inside[-1]}"
    if files.has("*.gguf"):
        return f"holds a GGUF file, which is for answering. {ORIGINAL}"
    return "no config.json in it. Download or save the model again."


def fetched(files: ModelFiles) -> str:
    """No file is a pointer that Git LFS left in its place."""
    for path in sorted(files.folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".model", ".bin") and path.is_file():
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    return f"{path.name} is only Git LFS's pointer to that file. Fetch it: git -C {files.folder} lfs pull"
    return ""


def weights_there(files: ModelFiles) -> str:
    """Weights are there as safetensors, all shards of them."""
    if files.has(WHOLE):
        return ""
    if files.has(INDEX):
        named = set(json.loads((files.folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (files.folder / name).is_file())
        return f"{len(missing)} of {len(named)} files of weights are missing: {missing[0]}. Fetch it." if missing else ""
    if files.has("*.safetensors"):
        return f"has *.safetensors, but neither {WHOLE} nor {INDEX}. Download or save the model again."
    if files.has("pytorch_model*.bin"):
        return f"has its weights as *.bin only, which can carry code. Convert them: {convert_command(files.name)}"
    if files.has("*.gguf"):
        return f"has its weights as GGUF, which is for answering. {ORIGINAL}"
    return (
        "no *.safetensors in it. Download or save the model again; "
        f"if its weights are pytorch_model.bin: {convert_command(files.name)}"
    )


def tokenizer_there(files: ModelFiles) -> str:
    """There is a tokenizer, or the name of one that reads bytes and needs no file."""
    if files.has(*TOKENIZERS):
        return ""
    path = files.folder / "tokenizer_config.json"
    if path.is_file() and any(f'"{name}"' in path.read_text(encoding="utf-8") for name in BYTES):
        return ""
    return "no tokenizer (tokenizer.json) in it. Download or save it again, beside the model."


# What config.json says


def readable(files: ModelFiles) -> str:
    """It is an object that names the kind of model, one that this transformers knows."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = files.raw.get("model_type")
    if not isinstance(kind, str):
        return "its config.json is damaged, or names no model_type. Download or save the model again."
    if kind in CONFIG_MAPPING:
        return ""
    if files.raw.get("auto_map"):
        return f"{kind} comes with code of its own, and none but transformers' own is run here. {OTHER}"
    return f"transformers {__version__} does not know {kind}. Install a newer one if it does, or choose another model."


def not_quantised(files: ModelFiles) -> str:
    """Weights are numbers that can move a little, not rounded to a few values."""
    said = next((v for k in ("quantization_config", "compression_config", "quantization") if (v := files.raw.get(k))), None)
    integers = files.kinds and files.kinds.most_common(1)[0][0] not in STORED
    if said is None and not integers:
        return ""
    how = said.get("quant_method") if isinstance(said, dict) else None
    return f"is quantised ({how or ', '.join(sorted(files.kinds))}): weights so rounded do not learn. {ORIGINAL}"


def writes_text(files: ModelFiles) -> str:
    """It writes on from a text, one token after another, each seeing only those before it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config, kind = files.config, files.raw["model_type"]
    parts = getattr(config, "sub_configs", {})
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind} is an encoder with a decoder, and only decoders are trained here. {OTHER}"
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in BOTH_WAYS
    if masked and not (getattr(config, "is_decoder", False) or getattr(config, "causal", False)):
        return f"{kind} is an encoder: it reads a text from both sides and writes none. {OTHER}"
    if any(word in part for part in parts for word in ("vision", "audio", "text_config")) and not files.text_alone:
        return f"{kind} works with pictures or sound, and only text is trained here. {OTHER}"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"{kind} is not a model that writes text. {OTHER}"
    return ""


def has_a_head(files: ModelFiles) -> str:
    """It was saved with a head for the next token, not one that classifies."""
    names = [str(name) for name in files.raw.get("architectures") or []]
    odd = [name for name in names if re.search(r"For(?!CausalLM|ConditionalGeneration)|(Double|Value)Head", name)]
    if odd:
        return f"{odd[0]} has another head than the one that writes text. Take the model that it was made of."
    known = files.model_class is not None and files.model_class.__name__ in names
    own = "AutoModelForCausalLM" in (files.raw.get("auto_map") or {}) and not known
    return f"it comes with code of its own, and none but transformers' own is run here. {OTHER}" if own else ""


# What was loaded


def whole(model, tokenizer, info: dict, files: ModelFiles) -> str:
    """Every weight is there, in its shape, and is a number."""
    if missing := sorted(info["missing_keys"]):
        return f"{len(missing)} weights are missing, such as {missing[0]}. Download or save it again."
    if odd := sorted(info["mismatched_keys"]):
        name, there, wanted = odd[0]
        return (
            f"{len(odd)} weights have other shapes than config.json says, such as {name}: {list(there)} and not "
            f"{list(wanted)}. Download or save it again."
        )
    totals = {name: weight.detach().sum() for name, weight in model.named_parameters()}
    if odd := [name for name, total in totals.items() if not total.isfinite()]:
        return f"{odd[0]} holds what is not a number. Take an earlier checkpoint, or download it again."
    return ""


def ends(model, tokenizer, info: dict, files: ModelFiles) -> str:
    """The tokenizer has a token that ends an answer."""
    if tokenizer.eos_token is not None:
        return ""
    path, end = files.folder / "tokenizer_config.json", files.raw.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    token = tokenizer.convert_ids_to_tokens(end) if isinstance(end, int) else None
    return f'its tokenizer has no end token. Write "eos_token": {json.dumps(token or "the one it ends with")} into {path}'


def fits(model, tokenizer, info: dict, files: ModelFiles) -> str:
    """The embedding has a row for every token of the vocabulary, and for each added one that is in use."""
    rows = model.get_input_embeddings().weight.shape[0]
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    template = str(tokenizer.chat_template or "")
    beyond = [token for token, id in tokenizer.get_vocab().items() if id >= rows]
    used = [t for t in beyond if t not in added or t in template or t in (tokenizer.eos_token, tokenizer.bos_token)]
    if not used:
        return ""  # as Gemma's for pictures, which its text models have no row for
    size = max(tokenizer.get_vocab().values()) + 1
    return (
        f"its tokenizer has {size} tokens, and its embedding only {rows} rows. Take the tokenizer it was trained with, or, if "
        f"you added tokens, make room for them: {convert_command(files.name, f'm.resize_token_embeddings({size}); ')}"
    )


def unreadable(error: Exception, files: ModelFiles) -> str:
    """Say what to do when transformers cannot read the folder."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if "trust_remote_code" in reason:
        return f"its tokenizer comes with code of its own, and none but transformers' own is run here. {OTHER}"
    if re.search("sentencepiece|tiktoken", reason) and not files.has("tokenizer.json"):
        return "its tokenizer is in a format that two packages read. Run: pip install sentencepiece tiktoken, and try again."
    return f"cannot be read as a model ({reason[:160]}). Download or save it again."


FILE_CHECKS = (not_two_things, one_model, fetched, weights_there, tokenizer_there)
CONFIG_CHECKS = (readable, not_quantised, writes_text, has_a_head)
LOADED_CHECKS = (whole, ends, fits)


def refuse_model(files: ModelFiles, checks, *found) -> None:
    """Raise ModelError with what the first of these checks says."""
    for check in checks:
        if said := check(*found, files):
            raise ModelError(f"{files.name}: {said}")


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' own progress bars, which last less than a second here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Hide transformers' warnings where `refuse_model` says in one line what matters of them."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_folder(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> tuple:
    """Load model and tokenizer from a folder, the weights as `dtype`, or raise ModelError; `name` is what the user called it.

    The model remembers, as `stored_dtype`, the precision that its weights came in.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files, options = ModelFiles(folder, name), {"local_files_only": True, "trust_remote_code": False}
    with no_bars(), no_warnings():
        try:
            refuse_model(files, (*FILE_CHECKS, *CONFIG_CHECKS))
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            model, info = loaded
        except ModelError:
            raise
        except Exception as error:  # whatever is wrong with a file comes as an error of another kind
            raise ModelError(f"{name}: {unreadable(error, files)}") from error
    refuse_model(files, LOADED_CHECKS, model, tokenizer, info)
    extra = sorted(info["unexpected_keys"])
    if files.text_alone:
        print(f"{name}: only the part that reads text is loaded and saved; pictures are not read.", file=sys.stderr)
    elif extra:
        print(f"{name}: left out {len(extra)} weights that its model does not have, such as {extra[0]}.", file=sys.stderr)
    model.stored_dtype = files.precision
    complete_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0])
    return model, tokenizer


def complete_tokenizer(tokenizer, rows: int) -> None:
    """Give a tokenizer what it came without: a chat template, and a token for padding among the embedding's `rows`."""
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token


def saved_precision(model) -> torch.dtype:
    """Name the precision that `save_model` writes: what the weights came in, if they were loaded as float32, else theirs."""
    return getattr(model, "stored_dtype", model.dtype) if model.dtype == torch.float32 else model.dtype


def save_folder(model, tokenizer, folder: str | Path, dtype: torch.dtype) -> Path:
    """Write model and tokenizer as a folder, the weights as `dtype`, in place of an older model; return the folder."""
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ModelError("This model carries an adapter. Call lora.merge first, or lora.save for the adapter alone.")
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
