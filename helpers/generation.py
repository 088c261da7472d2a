"""Generation: many greedy answers at once, or one as it is written."""

from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm
from transformers import DynamicCache

from helpers.tokenization import prompt_ids


def _stop_tokens(model, tokenizer) -> set[int]:
    """List the tokens that end an answer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return {token for token in (*configured, tokenizer.eos_token_id) if token is not None}


def _check_room(model, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    """Refuse a prompt that leaves no room for an answer in the model's context window."""
    window = getattr(model.config, "max_position_embeddings", None)
    longest = max(len(prompt) for prompt in prompts)
    if window and longest + max_new_tokens > window:
        raise ValueError(
            f"A prompt of {longest} tokens and an answer of {max_new_tokens} do not fit into the model's window of "
            f"{window} tokens. Shorten the prompt or ask for fewer new tokens."
        )


@torch.inference_mode()
def _decode_batch(model, tokenizer, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Decode B prompts together, greedily. Rows that have ended leave the batch, so that late ones go faster."""
    stop = torch.tensor(sorted(_stop_tokens(model, tokenizer)), device=model.device)
    width = max(len(prompt) for prompt in prompts)
    # padded on the left, so that every row's last token stands at the right edge, where the next one is predicted
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        tokens = logits[:, -1].argmax(dim=-1)  # [rows still running]
        alive = ~torch.isin(tokens, stop)
        for prompt, token, goes_on in zip(running, tokens.tolist(), alive.tolist(), strict=True):
            if goes_on:
                answers[prompt].append(token)
        if not alive.any():
            break
        if not alive.all():
            rows = alive.nonzero().squeeze(1)
            running = [running[row] for row in rows.tolist()]
            tokens, mask, positions = tokens[rows], mask[rows], positions[rows]
            cache.batch_select_indices(rows)
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return answers


def generate(
    model,
    tokenizer,
    questions: Sequence[str | Sequence[dict]],
    max_new_tokens: int = 48,
    batch_size: int = 32,
    progress: str | None = None,
) -> list[str]:
    """Answer all questions with the likeliest token each time, many at once.

    questions: texts, or conversations as lists of role/content messages.
    progress: what to call the progress bar; none is shown when left out.
    Returns the answers in the order of the questions. In float32 they equal those of one question at a time.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    if not prompts:
        return []
    _check_room(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of like length pad each other little
    answers = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=progress, unit="question", disable=not progress, mininterval=1.0) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            decoded = _decode_batch(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens)
            for i, tokens in zip(chosen, decoded, strict=True):
                answers[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            bar.update(len(chosen))
    return answers


@torch.inference_mode()
def stream(model, tokenizer, question: str | Sequence[dict], max_new_tokens: int = 256) -> Iterator[str]:
    """Answer one question piece by piece, as the tokens come; the pieces add up to the answer."""
    prompt = prompt_ids(tokenizer, question)
    _check_room(model, [prompt], max_new_tokens)
    stop, cache = _stop_tokens(model, tokenizer), DynamicCache(config=model.config)
    ids, tokens, shown = torch.tensor([prompt], device=model.device), [], ""
    for _ in range(max_new_tokens):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[0, -1].argmax().item()
        if token in stop:
            break
        tokens.append(token)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            yield text[len(shown) :]
            shown = text
        ids = torch.tensor([[token]], device=model.device)
