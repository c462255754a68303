"""Freed memory is used again."""

import subprocess
import sys

_PROGRAM = """
import resource, sys
from dataplane import heap

def faults_of_ten_times_50_mib():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [bytearray(b"x") * (10 << 20) for _ in range(5)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_ten_times_50_mib()
left_alone = faults_of_ten_times_50_mib()
assert heap.keep_freed()
faults_of_ten_times_50_mib()
print(left_alone, faults_of_ten_times_50_mib())
"""


def test_buffers_that_come_and_go_cost_no_page_faults() -> None:
    """In a process of its own: it is the whole process whose heap is told."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    left_alone, kept = map(int, done.stdout.split())
    assert kept < 1000 < left_alone
