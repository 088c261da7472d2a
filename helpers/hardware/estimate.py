"""Estimate: what a finetune will take in memory and arithmetic, before it is run.

Every term of `memory` is a line with its reason; a test and lesson 9 hold the sum against measured peaks.
"""

from dataclasses import dataclass

import torch

from helpers.machine.adapted import choose_layers, linear_sizes

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
    """A transformer as Llama made them: gated layers, norms without bias. Sizes in numbers, not bytes.

    Of a model that differs, as with experts or fused matrices, weights and adapters are right all the same, as `of` counts
    them; what layers keep for the way back is then Llama's.
    """

    layers: int
    hidden: int  # width of what runs through the layers
    inner: int  # width inside the feed-forward part
    heads: int
    kv_heads: int  # heads of keys and values, which several query heads may share
    head: int  # width of a head
    vocabulary: int
    tied: bool = False  # whether embedding and output matrix are one
    counted: int | None = None  # weights in all, as counted on the model itself
    adapted: int | None = None  # inputs and outputs of all layers that an adapter fits, likewise

    @classmethod
    def of(cls, config) -> "Shape":
        """Read it from a transformers config, and from the model without weights. ValueError for layers of another kind."""
        if not all(getattr(config, name, None) for name in ("intermediate_size", "num_hidden_layers", "num_attention_heads")):
            raise ValueError(f"{config.model_type}: is not like Llama. This calculator knows gated layers only.")
        from transformers import AutoModelForCausalLM

        heads, head = config.num_attention_heads, getattr(config, "head_dim", None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head=head or config.hidden_size // heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            counted=sum(weight.numel() for weight in model.parameters()),
            adapted=sum(sum(linear_sizes(layer)) for layer in choose_layers(model, None).values()),
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
        """Weights in the matrices of one layer: four of attention, three of the gated feed-forward part; or as counted."""
        if self.counted:
            return (self.counted - self.hidden - self.table) // self.layers - 2 * self.hidden
        return 2 * self.hidden * self.head * (self.heads + self.kv_heads) + 3 * self.hidden * self.inner

    @property
    def table(self) -> int:
        """Weights of the embedding, and of the output matrix where that is another."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """All weights: matrices, two norms a layer and one at the end, and the vocabulary's; or as counted."""
        return self.counted or self.layers * (self.linear + 2 * self.hidden) + self.hidden + self.table

    def adapter(self, rank: int) -> int:
        """Count the weights of LoRA adapters on every matrix of every layer, as `lora.add` does: rank times (in + out)."""
        if self.adapted:
            return rank * self.adapted
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
    norm, adapters = wide * h, 0  # its input, in float32
    if plan.method.startswith("lora"):
        adapters = 7 * narrow * plan.rank  # what comes between their two matrices
    else:
        norm += (narrow if half else wide) * h  # what its own weight, which learns, is multiplied with
    copies = 5 if plan.precision == "mixed" else 2  # inputs of q, k, v, gate, up: autocast makes a copy for each
    inputs = copies * narrow * h
    attention = narrow * (q + 2 * kv) + narrow * q  # queries, keys, values; what comes out
    pairs = 0 if plan.gpu else shape.heads * plan.longest * (6 if plan.precision == "mixed" else narrow)
    feed_forward = 4 * narrow * inner  # gate, its activation, up, their product
    return 2 * norm + inputs + adapters + attention + pairs + feed_forward


def learning(shape: Shape, plan: Plan) -> int:
    """Count the weights that learn."""
    if plan.method.startswith("lora"):
        return shape.adapter(plan.rank)
    return shape.weights if plan.method == "full" else min(plan.upper_layers, shape.layers) * (shape.linear + 2 * shape.hidden)


def weight_bytes(shape: Shape, plan: Plan) -> float:
    """Count the bytes of all weights, adapters and second copies among them."""
    held, _, master = PRECISIONS[plan.precision]
    adapters = shape.adapter(plan.rank) if plan.method.startswith("lora") else 0
    matrices, table = shape.layers * shape.linear, shape.vocabulary * shape.hidden
    if plan.method == "lora4":  # matrices in 4 bits, unpacked one by one; the rest in 16
        size, multiplied = matrices * NF4 + (shape.weights - matrices) * 2 + adapters * (held + master), table
    else:
        size, multiplied = (shape.weights + adapters) * held + learning(shape, plan) * master, matrices + table
    return size + 2 * multiplied if plan.precision == "mixed" else size  # a copy in 16 bits, to multiply with


def memory(shape: Shape, plan: Plan) -> dict[str, float]:
    """Estimate the peak memory of a finetune on each device, in GiB, term by term.

    On a GPU it is what PyTorch allocates; CUDA itself takes some hundred megabytes besides. On a CPU it is what the process
    grows by from before the model is loaded.
    """
    held, gradient, master = PRECISIONS[plan.precision]
    layers = min(plan.upper_layers, shape.layers) if plan.method == "upper" else shape.layers  # through which gradients flow
    learns = learning(shape, plan)
    gradients: float = learns * gradient
    numbers, width = OPTIMISERS[plan.optimiser]
    optimiser = learns * numbers * (width or master or held)
    activations = layers * layer_activations(shape, plan) * plan.tokens
    if plan.checkpointing:  # the input of every layer, and one layer at a time in full
        inputs = layers * shape.hidden * (2 if plan.precision in ("bfloat16", "masters") else 4) * plan.tokens
        activations = activations / layers + inputs
    logits = logit_bytes(shape, plan)
    if plan.pieces == 1:  # when the last gradients come, activations and logits are gone
        gradients = max(0, gradients - activations - logits)
    gathered = 2 * 2 * shape.linear if plan.gpus > 1 else 0  # two layers at a time are put together, in bfloat16
    holes = 0 if plan.gpu else HOLES[plan.method] * (gradients + activations + logits)
    terms = {
        "weights": weight_bytes(shape, plan) / plan.gpus + gathered,
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
