"""Keeping freed memory changes how fast memory comes, not whether."""

from nerfmatch_ros.memory import keep_freed_memory
import torch


def test_memory_is_served_after_the_change():
    keep_freed_memory()
    keep_freed_memory()
    assert torch.ones(1 << 20).sum().item() == 1 << 20


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr('sys.platform', 'darwin')
    monkeypatch.setattr('ctypes.CDLL', None)
    keep_freed_memory()


def test_a_library_without_the_settings_is_left_alone(monkeypatch):
    monkeypatch.setattr('ctypes.CDLL', lambda name: object())
    keep_freed_memory()
