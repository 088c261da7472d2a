import time

import pytest
import torch

from helpers.machine.memory import PeakMemory, explain_lack_of_memory


def test_peak_memory_is_what_the_block_took():
    """Also where a block lies in another one, as a run of the loop does in a lesson; what was there before is not counted."""
    with PeakMemory(torch.device("cpu")) as outer:
        large = torch.ones(2**27)  # 0.5 GiB, held to the end: what is freed may be kept by the process
        time.sleep(0.1)
        with PeakMemory(torch.device("cpu")) as inner:
            small = torch.ones(2**26)
            time.sleep(0.1)
        assert small[0] == large[0] == 1
    assert outer.gib == pytest.approx(0.75, abs=0.1) and inner.gib == pytest.approx(0.25, abs=0.1)


def test_only_a_lack_of_memory_is_explained():
    with pytest.raises(MemoryError, match="not enough memory for 64 tokens at once"), explain_lack_of_memory(64):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="something else"), explain_lack_of_memory(64):
        raise RuntimeError("something else")
