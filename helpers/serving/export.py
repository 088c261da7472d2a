"""Export: a model of ours as one GGUF file, which llama.cpp, Ollama and LM Studio run.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the writer is the package of llama.cpp's own authors.
"""

import json
from pathlib import Path

import gguf
import numpy as np

from helpers.machine.files import check_file
from helpers.machine.loading import ModelError
from helpers.text.templates import dress

TYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key matrix, [heads * dim, hidden], as GGUF has them.

    Rotary positions turn pairs of numbers. Transformers pairs the first half of a head with its second half, llama.cpp
    pairs neighbours.
    """
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(model, tokenizer, path: str | Path, weights: str = "F16", pre: str = "smollm") -> Path:
    """Write a Llama-like model and its tokenizer as a GGUF file; return its path.

    weights: "F32", "F16", "BF16" or "Q8_0", for the matrices; norms stay float32.
    pre: how the tokenizer cuts text before it merges, by llama.cpp's name for it; "smollm" fits the embedded model.
    Raises ModelError for an architecture or a tokenizer of another kind.
    """
    config, path = model.config, Path(path)
    if config.model_type != "llama":
        raise ModelError(f"{config.model_type}: only Llama-like models are written. llama.cpp's own converter knows others.")
    if weights not in TYPES:
        raise ValueError(f"weights is {weights!r}; it has to be one of {', '.join(TYPES)}.")
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ModelError("This model carries an adapter. Call lora.merge first.")
    check_file(path, "GGUF file")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _write_shape(writer, config)
    _write_tokenizer(writer, tokenizer, config.vocab_size, pre)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # it is the embedding once more
        values = tensor.detach().float().cpu().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleave(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        kind = TYPES[weights] if values.ndim > 1 else TYPES["F32"]
        new_name = names.get_name(name, try_suffixes=(".weight",))
        if new_name is None:
            raise ModelError(f"{name}: a Llama model has no such tensor.")
        writer.add_tensor(new_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_shape(writer: gguf.GGUFWriter, config) -> None:
    """Write the sizes that the arithmetic needs."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer, size: int, pre: str) -> None:
    """Write the vocabulary, the merges, the special tokens and the chat template."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    if made["model"]["type"] != "BPE":
        raise ModelError(f"A tokenizer of type {made['model']['type']} is not written here; only byte-level BPE is.")
    special = {entry["id"] for entry in made["added_tokens"] if entry["special"]}
    tokens = {id: token for token, id in tokenizer.get_vocab().items()}
    kinds = [gguf.TokenType.CONTROL if id in special else gguf.TokenType.NORMAL for id in range(size)]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(id, f"[unused {id}]") for id in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in made["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if end := dress(tokenizer).end:
        writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(end))  # where the chat template ends a turn
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
