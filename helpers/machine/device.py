"""Device: where to compute, and in what precision; and what this machine is."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch


def pick_device() -> torch.device:
    """Choose the fastest device there is: an NVIDIA GPU, an Apple GPU, or the CPU."""
    if torch.cuda.is_available():  # accelerate gives each process of a machine a GPU of its own
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Choose what to compute in: bfloat16 where the device is fast at it, else float16 where it is fast at that, or float32.

    All of the course asks here. Without instructions for it a product in bfloat16 can take 450 times as long as in float32.
    NVIDIA GPUs have them from compute capability 8 on; those of 7 (V100, T4) multiply float16 some eight times as fast as
    float32, and older ones no faster. Apple's GPUs stay at float32: of PyTorch's users who tried, none found 16 bits faster
    there, and the first two kinds emulate bfloat16 (https://github.com/huggingface/transformers/pull/40458).
    The environment variable FINETUNING_BF16 switches bfloat16 off ("off" or "0"), to try how such a machine computes;
    unset, the device decides. Raises ValueError for any other value.
    """
    switch = os.environ.get("FINETUNING_BF16", "")
    if switch not in ("", "off", "0"):
        raise ValueError(f"FINETUNING_BF16 is {switch!r}; it has to be off or 0. Unset it to let the device decide.")
    if device.type == "cuda":
        generation, _ = torch.cuda.get_device_capability(device)
        if generation < 7:
            return torch.float32
        return torch.bfloat16 if generation >= 8 and not switch else torch.float16
    capable = torch.cpu.get_capabilities() if device.type == "cpu" and not switch else {}
    fast = any(capable.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def cpu_name() -> str:
    """Name the processor, as far as the system knows it."""
    with suppress(OSError):  # Linux; some processors have no such line
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return found[1].strip()
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def this_machine() -> dict[str, str | int | None]:
    """Describe what computes here, without any name of the machine or its user.

    cpu: its name.  cores: how many the system sees.  memory_gib: all of it.  gpu: its name, None without one.
    computes_in: what `pick_dtype` chooses.  torch: its version.
    """
    device = pick_device()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "Apple GPU" if device.type == "mps" else None
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": gpu,
        "computes_in": str(pick_dtype(device)).removeprefix("torch."),
        "torch": torch.__version__,
    }
