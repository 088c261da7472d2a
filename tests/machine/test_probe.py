"""What is known of a model only when it is tried, and how far it reads."""

import math
from types import SimpleNamespace

import pytest
import torch

from helpers.machine.probe import check_room, context_window, first_line, reach, trouble


def model_with(**settings):
    """As much of a model as is asked how far it reads."""
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config)


def test_windows_and_stretched_positions_are_known():
    assert reach(model_with()) == math.inf and context_window(model_with()) is None
    assert reach(model_with(sliding_window=6, attention_chunk_size=None)) == 6
    assert reach(model_with(sliding_window=6, attention_chunk_size=4)) == 4
    sizes = {"max_position_embeddings": 64}
    long = {"rope_type": "longrope", "original_max_position_embeddings": 10}
    assert context_window(model_with(**sizes)) == 64
    assert context_window(model_with(**sizes, rope_parameters=long)) == 10
    assert context_window(model_with(**sizes, rope_parameters={"full_attention": long, "sliding_attention": {}})) == 10
    assert context_window(model_with(**sizes, rope_parameters={**long, "rope_type": "yarn"})) == 64


def test_a_prompt_has_to_leave_room_for_its_answer():
    check_room(model_with(), 10**6, 10**6)
    check_room(model_with(max_position_embeddings=64), 60, 4)
    with pytest.raises(ValueError, match=r"A prompt of 60 tokens and an answer of 5 do not fit .* window of 64 tokens"):
        check_room(model_with(max_position_embeddings=64), 60, 5)


def test_trouble_is_a_line_and_none_is_no_line():
    truth = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert trouble(lambda: truth + 1e-3, truth) == "" and trouble(lambda: truth * float("nan"), truth)
    assert trouble(lambda: truth + 0.1, truth) == "its layers do not keep rows apart"
    assert trouble(lambda: truth[:, :3], truth)  # of another shape

    def fails():
        raise AssertionError

    assert trouble(fails, truth) == "AssertionError"
    assert first_line(ValueError("\n\n")) == "ValueError" and first_line(ValueError("\none\ntwo")) == "one"
    assert len(first_line(ValueError("x" * 999))) == 160
