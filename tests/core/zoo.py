"""Small random models of many architectures, from transformers' own configuration classes."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 96
ROUND = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
SIZE = {**ROUND, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE = {**SIZE, "max_position_embeddings": 512}
LLAMA = {**SIZE, "num_key_value_heads": 2}
HEAD = {**LLAMA, "head_dim": 8}
OLD = {**ROUND, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
CALM = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # without dropout, for numbers to be compared
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
LINEAR = {**LINEAR, "layer_types": ["linear_attention", "full_attention"]}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

# name: (transformers' model type, its configuration beside the sizes). The names are those of README's table.
ZOO: dict[str, tuple[str, dict]] = {
    "Llama": ("llama", LLAMA),
    "Qwen2": ("qwen2", LLAMA),
    "Qwen3": ("qwen3", HEAD),
    "Qwen3-MoE": ("qwen3_moe", {**HEAD, **EXPERTS}),
    "Gemma2": ("gemma2", {**HEAD, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "Gemma3": ("gemma3_text", {**HEAD, "sliding_window": 8, "num_hidden_layers": 6, "query_pre_attn_scalar": 8}),
    "Mistral": ("mistral", {**LLAMA, "sliding_window": 8}),
    "Mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4}),
    "Phi-3": ("phi3", LLAMA),
    "GPT-NeoX": ("gpt_neox", SIZE),
    "GPT-2": ("gpt2", {**OLD, **CALM}),
    "OPT": ("opt", {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "Falcon": ("falcon", {**SIZE, "alibi": False, "new_decoder_architecture": False, "multi_query": True}),
    "Falcon with ALiBi": ("falcon", {**SIZE, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "Bloom": ("bloom", {**ROUND, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "MPT": ("mpt", {**ROUND, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "OLMo2": ("olmo2", LLAMA),
    "OLMo3": ("olmo3", {**LLAMA, "sliding_window": 8, "num_hidden_layers": 4}),
    "SmolLM3": ("smollm3", {**LLAMA, "no_rope_layers": [1, 0]}),
    "Granite": ("granite", {**LLAMA, "logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "StableLM": ("stablelm", LLAMA),
    "StarCoder2": ("starcoder2", {**LLAMA, "sliding_window": 8}),
    "Cohere2": ("cohere2", {**HEAD, "sliding_window": 8, "num_hidden_layers": 4}),
    "GLM-4": ("glm4", HEAD),
    "GPT-OSS": ("gpt_oss", {**HEAD, "sliding_window": 8, "num_local_experts": 4}),
    "Llama4": ("llama4_text", {**HEAD, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            **{**SIZE, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8},
            **{"qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2},
            **{"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
        },
    ),
    "Mamba": ("mamba", {**ROUND, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "Mamba2": ("mamba2", {**ROUND, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "RWKV": ("rwkv", {**ROUND, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
    "Jamba": ("jamba", {**LLAMA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4, "mamba_d_state": 8}),
    "Bamba": ("bamba", {**LLAMA, **MAMBA2, "attn_layer_indices": [1]}),
    "Falcon-H1": ("falcon_h1", {**HEAD, **MAMBA2, "mamba_d_ssm": 64}),
    "Qwen3-Next": (
        "qwen3_next",
        {
            **HEAD,
            **EXPERTS,
            **LINEAR,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "LFM2": ("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]}),
    "Recurrent Gemma": ("recurrent_gemma", {**LLAMA, "lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3}),
}


def make(name: str, **changes):
    """Make the model of this name in evaluation mode; the same weights each time."""
    kind, settings = ZOO[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**settings, **changes}))
    with torch.no_grad():
        for weight in model.parameters():  # some begin as zeros, which would hide what they do
            if not weight.any():
                weight.normal_(std=0.3)
    return model.eval()
