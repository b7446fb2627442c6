"""Freed memory is kept where glibc's malloc is at work."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from mm_llama.malloc import keep_freed_memory

def faults_of_a_round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_round()
print(faults_of_a_round(), keep_freed_memory(), min(faults_of_a_round() for _ in range(8)))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="mallopt is glibc's own: elsewhere keep_freed_memory does nothing",
)
def test_what_is_freed_is_used_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    assert kept == "True"
    assert int(before) > 4 * 1000
    assert int(after) < 100
