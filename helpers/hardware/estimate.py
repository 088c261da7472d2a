"""Estimate: what a finetune will take in memory and arithmetic, before it is run.

Every term of `memory` is a line with its reason; a test and lesson 9 hold the sum against measured peaks.
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from helpers.machine.process import PeakMemory
from helpers.models import pick_device, pick_dtype

GIB = 2**30
# Bytes a weight: as it is held, its gradient, and a second copy that is held all the time. Pure bfloat16 loses small updates.
PRECISIONS = {
    "mixed": (4, 4, 0),  # this course's loop: float32 weights, products in bfloat16 or float16
    "masters": (2, 2, 4),  # bfloat16 weights and gradients, float32 masters: ZeRO's 16 bytes with AdamW, arXiv:1910.02054
    "bfloat16": (2, 2, 0),
    "float32": (4, 4, 0),
}
OPTIMISERS = {  # numbers kept a weight; and their bytes, or None: as wide as the weight that they update
    "adamw": (2, None),  # two running means
    "adamw8bit": (2, 1),  # the same in a byte each: arXiv:2110.02861
    "sgd": (0, None),  # plain, without momentum
}
METHODS = ("full", "upper", "lora", "lora4")
NF4 = 0.5 + 0.127 / 8  # bytes a weight: 4 bits, and 0.127 bits of constants for each: QLoRA, arXiv:2305.14314
# Holes: what a process on a CPU holds beyond the tensors in use, as a share of those that come and go. The only constants
# that were chosen by measuring, each on 16 rows of 64 tokens; lesson 9 tests them on other settings.
# Known to be too low: adapters with checkpointing on a CPU took 29 to 45% more than the sum, all of it holes;
# a full finetune in float32 (512 tokens in rows of 64) 12%, where the table's gradient stands more than once.
HOLES = {"full": 0.36, "upper": 0.36, "lora": 0.66, "lora4": 0.66}


@dataclass(frozen=True)
class Shape:
    """A transformer as Llama made them: gated layers, norms without bias. Sizes in numbers, not bytes."""

    layers: int
    hidden: int  # width of what runs through the layers
    inner: int  # width inside the feed-forward part
    heads: int
    kv_heads: int  # heads of keys and values, which several query heads may share
    head: int  # width of a head
    vocabulary: int
    tied: bool = False  # whether embedding and output matrix are one

    @classmethod
    def of(cls, config) -> "Shape":
        """Read it from a transformers config. Raises ValueError for layers of another kind."""
        if not all(getattr(config, name, None) for name in ("intermediate_size", "num_hidden_layers", "num_attention_heads")):
            raise ValueError(f"{config.model_type}: is not like Llama. This calculator knows gated layers only.")
        heads, head = config.num_attention_heads, getattr(config, "head_dim", None)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head=head or config.hidden_size // heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
        )

    @classmethod
    def of_size(cls, weights: float) -> "Shape":
        """Draw up a usual shape with about so many weights: heads of 128, one a layer, as in Llama 7B, 13B and 65B."""
        layers = max(1, round((weights / (12 * 128**2)) ** (1 / 3)))
        hidden = 128 * layers
        inner = max(1, round((weights - 64000 * hidden - 4 * layers * hidden**2) / (3 * layers * hidden)))
        return cls(layers, hidden, inner, layers, layers, 128, 32000)

    @property
    def linear(self) -> int:
        """Weights in the matrices of one layer: four of attention, three of the gated feed-forward part."""
        return 2 * self.hidden * self.head * (self.heads + self.kv_heads) + 3 * self.hidden * self.inner

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the output matrix where that is another."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All weights: matrices, two norms a layer and one at the end, and the vocabulary's."""
        return self.layers * (self.linear + 2 * self.hidden) + self.hidden + self.table

    def adapter(self, rank: int) -> int:
        """Count the weights of LoRA adapters on every matrix of every layer: rank times (in + out)."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        return self.layers * rank * (2 * (self.hidden + q) + 2 * (self.hidden + kv) + 3 * (self.hidden + self.inner))


@dataclass(frozen=True)
class Plan:
    """How a model is finetuned, on each device."""

    tokens: int = 1024  # tokens computed at once: rows of a micro-batch times their length
    longest: int = 128  # tokens of the longest row; matters where attention is written out in full
    supervised: float = 0.4  # share of the tokens of which a loss is taken
    pieces: int = 2  # micro-batches a step; with one, gradients come as activations go
    method: str = "full"
    upper_layers: int = 14  # how many learn, with "upper"
    rank: int = 16  # of the adapters, with "lora" and "lora4"
    precision: str = "mixed"
    optimiser: str = "adamw"
    checkpointing: bool = False  # gradient checkpointing: keep a layer's input only, compute the rest again
    gpus: int = 1  # devices that share weights, gradients and optimiser (FSDP, ZeRO-3)
    gpu: bool = False  # attention is fused there: the table of all pairs of tokens is never written down; and no holes

    def __post_init__(self):
        """Refuse what there is not."""
        for name, known in (("method", METHODS), ("precision", PRECISIONS), ("optimiser", OPTIMISERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it has to be one of {', '.join(known)}.")


def layer_activations(shape: Shape, plan: Plan) -> float:
    """Count the bytes that one layer keeps of one token for the way back: what its operations need again.

    Counted operation by operation from transformers' Llama; a test compares it with the tensors that PyTorch keeps.
    """
    h, inner, q, kv = shape.hidden, shape.inner, shape.heads * shape.head, shape.kv_heads * shape.head
    wide, narrow = (4, 4) if plan.precision == "float32" else (4, 2)
    half = plan.precision in ("bfloat16", "masters")  # what runs through the layers is narrow, too
    learns = plan.method in ("full", "upper")
    norm = wide * h  # its input, in float32
    norm += (narrow if half else wide) * h * learns  # what its own weight is multiplied with
    copies = 5 if plan.precision == "mixed" else 2  # inputs of q, k, v, gate, up: autocast makes a copy for each
    adapts = plan.method.startswith("lora")
    inputs = copies * narrow * h * (learns or adapts)
    adapters = 7 * narrow * plan.rank * adapts  # what comes between their two matrices
    attention = narrow * (q + 2 * kv) + narrow * q  # queries, keys, values; what comes out
    pairs = 0 if plan.gpu else shape.heads * plan.longest * (6 if plan.precision == "mixed" else narrow)
    feed_forward = 4 * narrow * inner  # gate, its activation, up, their product
    return 2 * norm + inputs + adapters + attention + pairs + feed_forward


def memory(shape: Shape, plan: Plan) -> dict[str, float]:
    """Estimate the peak memory of a finetune on each device, in GiB, term by term.

    On a GPU it is what PyTorch allocates; CUDA itself takes some hundred megabytes besides. On a CPU it is what the process
    grows by from before the model is loaded.
    """
    held, gradient, master = PRECISIONS[plan.precision]
    adapters = shape.adapter(plan.rank) if plan.method.startswith("lora") else 0
    matrices = shape.layers * shape.linear
    layers = min(plan.upper_layers, shape.layers) if plan.method == "upper" else shape.layers  # through which gradients flow
    learns = adapters or (shape.weights if plan.method == "full" else layers * (shape.linear + 2 * shape.hidden))
    weights = (shape.weights + adapters) * held + learns * master
    if plan.method == "lora4":  # matrices in 4 bits, the rest in 16
        weights = matrices * NF4 + (shape.weights - matrices) * 2 + adapters * (held + master)
    if plan.precision == "mixed":  # a copy of each matrix in 16 bits, to multiply with; 4-bit ones are unpacked one by one
        weights += 2 * (matrices * (plan.method != "lora4") + shape.vocabulary * shape.hidden)
    gradients = learns * gradient
    numbers, width = OPTIMISERS[plan.optimiser]
    optimiser = learns * numbers * (width or master or held)
    activations = layers * layer_activations(shape, plan) * plan.tokens
    if plan.checkpointing:  # the input of every layer, and one layer at a time in full
        inputs = layers * shape.hidden * (2 if plan.precision in ("bfloat16", "masters") else 4) * plan.tokens
        activations = activations / layers + inputs
    logits = logit_bytes(shape, plan)
    if plan.pieces == 1:  # when the last gradients come, activations and logits are gone
        gradients = max(0, gradients - activations - logits)
    gathered = 2 * 2 * shape.linear * (plan.gpus > 1)  # two layers at a time are put together, in bfloat16
    holes = 0 if plan.gpu else HOLES[plan.method] * (gradients + activations + logits)
    terms = {
        "weights": weights / plan.gpus + gathered,
        "gradients": gradients / plan.gpus,
        "optimiser": optimiser / plan.gpus,
        "activations": activations,
        "logits": logits,
        "overhead": holes,
    }
    return {name: size / GIB for name, size in terms.items()}


def logit_bytes(shape: Shape, plan: Plan) -> float:
    """Count the bytes at the vocabulary when the way back begins: 12 a token and entry, or the output matrix's gradient.

    12: log-probabilities, their gradient and that of the logits, all in float32. The matrix's gradient is as wide as the
    matrix is held.
    """
    entries = plan.tokens * plan.supervised * shape.vocabulary
    table = shape.vocabulary * shape.hidden
    if plan.method != "full":
        return 12 * entries
    return max(12 * entries, 2 * entries + PRECISIONS[plan.precision][1] * table)


def inference_memory(shape: Shape, tokens: int, rows: int = 1, bytes_a_weight: float = 2) -> dict[str, float]:
    """Estimate the memory of answering, in GiB: weights, and the keys and values of every token so far (KV cache)."""
    cache = 2 * 2 * shape.layers * shape.kv_heads * shape.head * tokens * rows  # keys and values, in bfloat16
    return {"weights": shape.weights * bytes_a_weight / GIB, "KV cache": cache / GIB}


def layers_of(model) -> torch.nn.ModuleList:
    """Find the stack of transformer layers."""
    return max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)


def training_flops(model, tokens: int, supervised: int) -> float:
    """Estimate the arithmetic of training as the model's weights are set to learn now.

    Two operations a weight and token forward, two for the gradient that flows back through it, two for its own
    gradient: 6 in all, fewer where weights are frozen. The matrix between hidden state and vocabulary works only where
    a token is supervised. The products inside attention are left out: short rows make them small.
    """
    head = model.get_output_embeddings().weight
    layers = list(layers_of(model))
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    lowest = 0 if model.get_input_embeddings().weight.requires_grad else (learns.index(True) if any(learns) else len(layers))
    size = sum(p.numel() for layer in layers for p in layer.parameters())
    flows = sum(p.numel() for layer in layers[lowest:] for p in layer.parameters())
    learnt = sum(p.numel() for layer in layers for p in layer.parameters() if p.requires_grad)
    passes = 3 if head.requires_grad else 2
    return 2.0 * ((size + flows + learnt) * tokens + passes * head.numel() * supervised)


def matmul_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int, inner: int, seconds: float = 1.0) -> float:
    """Measure how many operations a second this device does in products of a model's own size: [tokens, hidden] with
    [hidden, inner], and back. The median of repetitions, because others may use the machine.
    """
    wide, narrow = (
        torch.randn(hidden, inner, dtype=dtype, device=device),
        torch.randn(inner, hidden, dtype=dtype, device=device),
    )
    x, times = torch.randn(tokens, hidden, dtype=dtype, device=device), []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        clock = time.perf_counter()
        (x @ wide) @ narrow
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - clock)
    return 4.0 * tokens * hidden * inner / sorted(times)[len(times) // 2]


def usual_precision(device: torch.device) -> str:
    """Name the precision that the course's loop takes on a device: "mixed" where 16 bits are fast, else "float32"."""
    return "float32" if pick_dtype(device) == torch.float32 else "mixed"


def measure(name: str | Path, plan: Plan, steps: int = 2) -> dict[str, float]:
    """Finetune a model by this plan, in a process of its own, on rows without meaning, and see what it takes.

    Returns "gib": by how much its memory rose above that of the loaded model; "seconds" and "flops" of its last step.
    Two steps are needed to see the whole peak: the optimiser's means come with the first. Raises ValueError for what the
    course's loop does not do, and for bfloat16 where it is not fast.
    """
    if plan.optimiser != "adamw" or plan.precision == "masters" or plan.method == "lora4" or plan.gpus > 1:
        raise ValueError("The course's loop has AdamW, no masters, no 4-bit matrices; measure on one device.")
    usual = usual_precision(pick_device())
    if plan.precision not in ("float32", usual) and pick_dtype(pick_device()) != torch.bfloat16:
        raise ValueError(f"{plan.precision} computes in bfloat16, which is not fast here. Measure precision={usual!r}.")
    command = [sys.executable, "-m", "helpers.hardware.estimate", str(name), json.dumps(asdict(plan)), str(steps)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The finetune to be measured failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _finetune(name: str, plan: Plan, steps: int) -> dict[str, float]:
    """Do what `measure` promises, in this process."""
    from helpers import lora
    from helpers.models import load_model
    from helpers.tokenization import IGNORED, Row
    from helpers.training import Config, train

    model, _ = load_model(name)
    model = model.to(torch.bfloat16) if plan.precision == "bfloat16" else model
    for weight in model.parameters():
        weight.sum()  # what stands in a file counts as memory only once it was read
    rng, prompt = random.Random(0), round(plan.longest * (1 - plan.supervised))
    count = plan.tokens // plan.longest * plan.pieces
    ids = [[rng.randrange(model.config.vocab_size) for _ in range(plan.longest)] for _ in range(count * steps)]
    config = Config(
        epochs=1,
        batch_size=count,
        learning_rate=1e-5,
        micro_batch_tokens=plan.tokens,
        upper_layers=plan.upper_layers if plan.method == "upper" else None,
        gradient_checkpointing=plan.checkpointing,
        dtype=pick_dtype(model.device) if plan.precision == "mixed" else torch.float32,
    )
    rows = [Row(row, [IGNORED] * prompt + row[prompt:]) for row in ids]
    with PeakMemory(model.device) as memory:
        if plan.method == "lora":
            lora.add(model, plan.rank)
        history = train(model, rows, config)
    seconds = [0.0, *(step["seconds"] for step in history.steps)]
    last = {"seconds": seconds[-1] - seconds[-2], "flops": history.flops / len(history.steps)}
    return {"gib": memory.gib, **last}


if __name__ == "__main__":
    print(json.dumps(_finetune(sys.argv[1], Plan(**json.loads(sys.argv[2])), int(sys.argv[3]))))
