"""Keeping freed memory changes how fast memory comes, not whether; it can be given back."""

from pathlib import Path
import subprocess
import sys

from nerfmatch_ros.memory import keep_freed_memory, return_freed_memory
import pytest
import torch


def test_memory_is_served_after_the_change():
    keep_freed_memory()
    keep_freed_memory()
    assert torch.ones(1 << 20).sum().item() == 1 << 20


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr('sys.platform', 'darwin')
    monkeypatch.setattr('ctypes.CDLL', None)
    keep_freed_memory()
    return_freed_memory()


def test_a_library_without_the_settings_is_left_alone(monkeypatch):
    monkeypatch.setattr('ctypes.CDLL', lambda name: object())
    keep_freed_memory()
    return_freed_memory()


FREED_BLOCKS = """
from pathlib import Path
from nerfmatch_ros.memory import keep_freed_memory, return_freed_memory
import torch

def resident():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024

keep_freed_memory()
blocks = [torch.ones(1 << 20) for _ in range(50)]
last = torch.ones(1 << 20)  # keeps the heap from ending with the freed blocks
del blocks
before = resident()
return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='no /proc')
def test_freed_blocks_go_back_to_the_system():
    done = subprocess.run([sys.executable, '-c', FREED_BLOCKS], capture_output=True, text=True,
                          check=True)
    assert float(done.stdout) > 100  # of the 200 MB that were freed
