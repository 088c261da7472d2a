"""What the tests share: the real embedded model, loaded once, and results that never touch the course's own."""

import copy
import os
import signal

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # whatever needs a network in a test brings its own
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # several at once: each takes its share of the cores
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell: tests of Ctrl-C need it back
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))


@pytest.fixture(params=["", "off"], ids=["usual", "float32"])
def precision(request, monkeypatch):
    """What the course computes in here, and float32, as on a machine without fast bfloat16."""
    monkeypatch.setenv("FINETUNING_BF16", request.param)


@pytest.fixture(scope="session")
def embedded():
    """The embedded model and tokenizer; a test that trains takes `fresh` instead."""
    from helpers.models import load_model

    return load_model(device="cpu")


@pytest.fixture
def fresh(embedded):
    """A copy of the embedded model that a test may train."""
    model, tokenizer = embedded
    return copy.deepcopy(model), tokenizer


@pytest.fixture(scope="session")
def tiny(embedded, tmp_path_factory):
    """A folder with a small random model and the real tokenizer, for tests that need no knowledge."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from helpers.models import save_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    return save_model(model, embedded[1], tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shallow(embedded, tmp_path_factory):
    """A folder with the first layers of the embedded model: it runs what the whole one runs, fast, and knows nothing."""
    from helpers.models import save_model

    model, tokenizer = copy.deepcopy(embedded[0]), embedded[1]
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:6], 6
    model.model.norm.weight.data *= 0.2  # so few layers are sure of nonsense; a loss beyond guessing counts as exploded
    return save_model(model, tokenizer, tmp_path_factory.mktemp("models") / "shallow")
