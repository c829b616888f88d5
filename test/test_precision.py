"""The precision of networks: by name, or what the device is fast in."""

from nerfmatch_ros import precision
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.precision import check_precision, inference_dtype
import pytest
import torch

CPU = torch.device('cpu')


@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'float16'])
def test_a_name_is_what_it_says(name):
    check_precision(name)
    assert inference_dtype(name, CPU) == getattr(torch, name)


@pytest.mark.parametrize('fast, expected', [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_halves_the_precision_where_that_is_faster(fast, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: fast, raising=False)
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: False, raising=False)
    assert inference_dtype('auto', CPU) == expected


def test_a_torch_that_does_not_tell_computes_in_single_precision(monkeypatch):
    monkeypatch.setattr(precision.torch, 'cpu', object())
    assert inference_dtype('auto', CPU) == torch.float32


def test_another_name_is_refused():
    with pytest.raises(ConfigError, match="precision 'half' is unknown; use auto, float32"):
        inference_dtype('half', CPU)
