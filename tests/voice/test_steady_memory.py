"""A voice holds as much after ten minutes as after one: what is compiled for each length is not kept without end."""

from __future__ import annotations

import os
import subprocess
import sys

# Megabytes by which a process grows while one convolution is run on two hundred lengths, each a program of its own.
GROWN = """
import torch
from mm_llama.bench.measure import resident_bytes
from mm_llama.voice.speak import keep_few_compiled
torch.set_num_threads(1)
keep_few_compiled()
convolution = torch.nn.Conv1d(192, 192, 5)
def run(lengths):
    for length in lengths:
        convolution(torch.zeros(1, 192, length))
with torch.inference_mode():
    run(range(10, 110))
    began = resident_bytes()
    run(range(110, 310))
print((resident_bytes() - began) / 2**20)
"""


def grown(**set_by_user: str) -> float:
    environment = {**os.environ, **set_by_user}
    result = subprocess.run(
        [sys.executable, "-c", GROWN], capture_output=True, text=True, check=True, env=environment
    )
    return float(result.stdout)


def test_few_programs_are_kept_unless_the_user_says_otherwise() -> None:
    few, many = grown(), grown(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
    assert many > 15 and few < many / 2, (few, many)
