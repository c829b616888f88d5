"""Models that tiny-cuda-nn trained are read as its own code computes them.

The fixture of grids and harmonics is written by tools/make_tcnn_fixture.py; what the padded
matrices of its networks mean is repeated here number by number, as its documentation says.
"""

from pathlib import Path

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.importers.nerfacto_weights import nerfacto_state
from nerfmatch_ros.importers.nerfstudio_run import NerfstudioRun
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.nerfacto_field import (
    direction_encoding,
    HashNetworkConfig,
    NerfactoField,
    NerfactoFieldConfig,
)
from nerfmatch_ros.radiance_field.nerfacto_grid import (
    grid_levels,
    NerfactoGrid,
    NerfactoGridConfig,
)
import numpy as np
import pytest
import torch


@pytest.fixture(scope='module')
def computed():
    with np.load(Path(__file__).with_name('data') / 'tcnn.npz') as stored:
        return {name: stored[name] for name in stored.files}


def sizes_in(computed):
    for name in computed:
        if name.startswith('sizes'):
            yield name.removeprefix('sizes'), NerfactoGridConfig(*computed[name].tolist(), 'tcnn')


def test_levels_lie_where_tiny_cuda_nn_puts_them(computed):
    count = 0
    for index, config in sizes_in(computed):
        np.testing.assert_array_equal(grid_levels(config).start, computed[f'starts{index}'])
        count += 1
    assert count > 5


def test_grids_give_what_the_kernel_gives(computed):
    count = 0
    for index, config in sizes_in(computed):
        if f'points{index}' not in computed:
            continue
        grid = NerfactoGrid(config).requires_grad_(False)
        size = grid.table.numel()
        table = np.random.RandomState(size).standard_normal(size).astype(np.float32)
        grid.table.copy_(torch.from_numpy(table).view(grid.table.shape))
        encoded = grid(torch.from_numpy(computed[f'points{index}']))
        np.testing.assert_allclose(encoded, computed[f'encoded{index}'], atol=2e-3)
        close = np.isclose(encoded, computed[f'encoded{index}'], atol=1e-4)
        assert close.mean() > 0.98  # the finest levels feel the last digit of a coordinate
        count += 1
    assert count > 2


def test_directions_are_encoded_as_tiny_cuda_nn_does(computed):
    encoded = direction_encoding(torch.from_numpy(computed['directions']), 'tcnn')
    np.testing.assert_allclose(encoded, computed['harmonics'], atol=1e-6)


CONFIG = NerfactoFieldConfig(
    trunk=HashNetworkConfig(NerfactoGridConfig(3, 4, 16, 6, 2, 'tcnn'), 32),
    proposals=(HashNetworkConfig(NerfactoGridConfig(2, 4, 8, 6, 2, 'tcnn'), 16),
               HashNetworkConfig(NerfactoGridConfig(2, 4, 8, 6, 2, 'tcnn'), 64, layers=1)),
    proposal_samples=(8, 8), samples=8, colour_width=64, appearance_channels=5)


def padded(channels, multiple):
    return -(-channels // multiple) * multiple


def matrices(generator, channels, multiple):
    """Draw the matrices of a network whose input and output tiny-cuda-nn pads."""
    channels = [padded(channels[0], multiple), *channels[1:-1], padded(channels[-1], multiple)]
    return [torch.randn(out, into, generator=generator).half().float() / 4
            for into, out in zip(channels, channels[1:])]


@pytest.fixture(params=[16, 8])
def networks(request, generator):
    """Draw every network of the model as matrices and tables."""
    entries = [int(grid_levels(size.grid).start[-1]) * 2
               for size in (CONFIG.trunk, *CONFIG.proposals)]
    tables = [torch.randn(count, generator=generator).half().float() for count in entries]
    return {
        'trunk': matrices(generator, [6, 32, 16], request.param), 'tables': tables,
        'proposal': matrices(generator, [4, 16, 1], request.param),
        'head': matrices(generator, [16 + 15 + 5, 64, 64, 3], request.param),
        'linear': torch.randn(1, 4, generator=generator),
        'appearance': torch.randn(4, 5, generator=generator)}


def run_of(networks):
    """Give a run whose checkpoint holds these networks in rows of numbers."""
    def row(layers, *more):
        return torch.cat([part.flatten() for part in (*layers, *more)])

    tables = networks['tables']
    weights = {
        'field.mlp_base.model.params': row(networks['trunk'], tables[0]),
        'field.mlp_head.tcnn_encoding.params': row(networks['head']),
        'field.embedding_appearance.embedding.weight': networks['appearance'],
        'proposal_networks.0.encoding.tcnn_encoding.params': tables[1],
        'proposal_networks.0.mlp_base.1.tcnn_encoding.params': row(networks['proposal']),
        'proposal_networks.1.encoding.tcnn_encoding.params': tables[2],
        'proposal_networks.1.linear.weight': networks['linear'],
        'proposal_networks.1.linear.bias': torch.tensor([0.25])}
    return NerfstudioRun(Path('config.yml'), Path('step.ckpt'), {}, 0, weights, np.eye(4), 1.0)


def evaluated(layers, values, padding):
    """Evaluate padded matrices on values (N, C), which are filled up with `padding`."""
    values = torch.nn.functional.pad(
        values, (0, layers[0].shape[1] - values.shape[1]), value=padding)
    for layer in layers[:-1]:
        values = torch.relu(values @ layer.T)
    return values @ layers[-1].T


def test_networks_of_tiny_cuda_nn_are_read_matrix_by_matrix(networks, generator):
    field = NerfactoField(CONFIG, images=4)
    field.load_state_dict(nerfacto_state(run_of(networks), CONFIG))
    field.eval().requires_grad_(False)
    unit = torch.rand(50, 3, generator=generator)
    # The grid fills up with zeros, inputs of networks without a grid are filled up with ones.
    trunk = evaluated(networks['trunk'], field.trunk.grid(unit), padding=0.0)[:, :16]
    torch.testing.assert_close(field.trunk(unit), trunk, atol=1e-4, rtol=1e-4)
    proposal = evaluated(networks['proposal'], field.proposals[0].grid(unit), padding=1.0)[:, :1]
    torch.testing.assert_close(field.proposals[0](unit), proposal, atol=1e-4, rtol=1e-4)
    linear = field.proposals[1].grid(unit) @ networks['linear'].T + 0.25
    torch.testing.assert_close(field.proposals[1](unit), linear, atol=1e-4, rtol=1e-4)
    assert torch.equal(field.trunk.grid.table.flatten(), networks['tables'][0])
    origins = 0.9 - 1.8 * unit
    directions = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=generator), dim=1)
    ones = torch.ones(50)
    rays = Rays(origins, directions, 0 * ones, ones, 0 * ones)
    edges = torch.tensor([[0.0, 1e-6]]).expand(50, -1)
    inner = evaluated(networks['trunk'], field.trunk.grid((origins + 2) / 4), padding=0.0)[:, 1:16]
    values = torch.cat([direction_encoding(directions, 'tcnn'), inner,
                        networks['appearance'].mean(dim=0).expand(50, -1)], dim=-1)
    colour = torch.sigmoid(evaluated(networks['head'], values, padding=1.0)[:, :3])
    torch.testing.assert_close(field.evaluate(rays, edges).colour[:, 0], colour,
                               atol=1e-4, rtol=1e-3)


def test_numbers_of_another_model_are_refused(networks):
    run = run_of(networks)
    for name in run.weights:
        if not name.endswith('params'):
            continue
        damaged = {**run.weights, name: run.weights[name][:-8]}
        with pytest.raises(DataError, match=f'{name} has .* describes another model'):
            nerfacto_state(NerfstudioRun(
                run.config_file, run.checkpoint_file, {}, 0, damaged, np.eye(4), 1.0), CONFIG)
    del run.weights['field.mlp_head.tcnn_encoding.params']
    with pytest.raises(DataError, match='has no field.mlp_head.tcnn_encoding.params'):
        nerfacto_state(run, CONFIG)
