from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.nerfacto_grid import (
    encode_in_torch,
    grid_levels,
    LAYOUTS,
    NerfactoGrid,
    NerfactoGridConfig,
)
import numpy as np
import pytest
import torch


def grid(layout, generator, **sizes):
    """Make a grid with features that differ from entry to entry."""
    sizes = {'levels': 5, 'coarsest': 4, 'finest': 37, 'log2_entries': 9, **sizes}
    made = NerfactoGrid(NerfactoGridConfig(layout=layout, **sizes)).requires_grad_(False)
    made.table.copy_(torch.randn(made.table.shape, generator=generator))
    return made


@pytest.mark.parametrize('features', [1, 2, 4])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_compiled_loops_and_torch_give_the_same(layout, features, generator):
    made = grid(layout, generator, features=features)
    points = torch.rand(500, 3, generator=generator)
    points[:2] = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    weights = torch.randn(500, made.channels, generator=generator)
    results = []
    for encode in (made, lambda p: encode_in_torch(p, made.table, made.levels)):
        moved = points.clone().requires_grad_()
        encoded = encode(moved)
        (encoded * weights).sum().backward()
        results.append((encoded.detach(), moved.grad))
    assert results[0][0].shape == (500, 5 * features)
    torch.testing.assert_close(*[encoded for encoded, _ in results], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(*[slope for _, slope in results], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_table_can_be_trained(layout, generator):
    made = grid(layout, generator).requires_grad_(True)
    made(torch.rand(8, 3, generator=generator)).sum().backward()
    touched = made.table.grad.abs().sum(-1) > 0
    assert 0 < touched.sum() <= 8 * 8 * 5


@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_point_reads_outside_of_the_table(layout, generator):
    made = grid(layout, generator)
    points = torch.tensor([[float('nan')] * 3, [-2.0, 5, 1e9], [float('inf'), 0, 0]])
    assert made(points).shape == (3, 10)


def test_torch_hashes_every_level_and_tcnn_only_those_too_fine_to_store():
    sizes = {'levels': 4, 'coarsest': 4, 'finest': 32, 'log2_entries': 10}
    torchs = grid_levels(NerfactoGridConfig(layout='torch', **sizes))
    np.testing.assert_array_equal(torchs.scale, [4, 8, 16, 32])
    np.testing.assert_array_equal(torchs.start, np.arange(5) * 1024)
    assert not torchs.side.any() and torchs.shift == 0
    tcnns = grid_levels(NerfactoGridConfig(layout='tcnn', **sizes))
    np.testing.assert_allclose(tcnns.scale, [3, 7, 15, 31])
    np.testing.assert_array_equal(tcnns.side, [4, 8, 0, 0])
    np.testing.assert_array_equal(tcnns.start, [0, 64, 64 + 512, 1600, 2624])
    assert tcnns.shift == 0.5


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match='levels of a hash grid is 0'):
        NerfactoGridConfig(levels=0)
    with pytest.raises(ConfigError, match="layout of a hash grid is 'ngp'"):
        NerfactoGridConfig(layout='ngp')
