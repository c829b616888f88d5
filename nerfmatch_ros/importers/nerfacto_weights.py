"""The weights of nerfstudio's nerfacto under the names of `NerfactoField`.

nerfstudio has two programs for its networks. Its torch code keeps a matrix and a bias a layer;
tiny-cuda-nn keeps all matrices of a network in one row of numbers, padded, without biases.
"""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.importers.nerfstudio_run import NerfstudioRun
from nerfmatch_ros.radiance_field.nerfacto_field import HashNetworkConfig, NerfactoFieldConfig
from nerfmatch_ros.radiance_field.nerfacto_grid import grid_levels, NerfactoGridConfig
import torch
from torch import Tensor


def nerfacto_state(run: NerfstudioRun, config: NerfactoFieldConfig) -> dict[str, Tensor]:
    """Give the state of `NerfactoField(config)`; DataError for what is missing or does not fit."""
    read = _TcnnReader(run) if config.layout == 'tcnn' else _TorchReader(run)
    state = read.network('trunk', 'field.mlp_base', config.trunk, 1 + config.geometry_channels)
    for index, size in enumerate(config.proposals):
        state |= read.proposal(f'proposals.{index}', f'proposal_networks.{index}', size)
    inputs = 16 + config.geometry_channels + config.appearance_channels
    state |= read.layers('colour_head', 'field.mlp_head',
                         [inputs, *[config.colour_width] * (config.colour_layers - 1), 3])
    if config.appearance_channels:
        state['appearance.weight'] = run.weight('field.embedding_appearance.embedding.weight')
    return {name: value.float() for name, value in state.items()}


def _channels(config: HashNetworkConfig, outputs: int) -> list[int]:
    """Channels between the layers of a network on a grid."""
    inputs = config.grid.levels * config.grid.features
    return [inputs, *[config.width] * (config.layers - 1), outputs]


class _TorchReader:
    """Reads networks of nerfstudio's torch code."""

    def __init__(self, run: NerfstudioRun):
        self.run = run

    def network(
        self, ours: str, theirs: str, config: HashNetworkConfig, outputs: int,
    ) -> dict[str, Tensor]:
        """Read grid and layers of the trunk."""
        return {f'{ours}.grid.table': self.run.weight(f'{theirs}.model.0.hash_table'),
                **self.layers(f'{ours}.layers', f'{theirs}.model.1', _channels(config, outputs))}

    def proposal(self, ours: str, theirs: str, config: HashNetworkConfig) -> dict[str, Tensor]:
        """Read grid and layers of a proposal network."""
        table = {f'{ours}.grid.table': self.run.weight(f'{theirs}.encoding.hash_table')}
        if config.layers == 1:
            return table | _linear(self.run, ours, theirs)
        return table | self.layers(f'{ours}.layers', f'{theirs}.mlp_base.1', _channels(config, 1))

    def layers(self, ours: str, theirs: str, channels: list[int]) -> dict[str, Tensor]:
        """Read the matrices and biases of some layers."""
        return {f'{ours}.{index}.{kind}': self.run.weight(f'{theirs}.layers.{index}.{kind}')
                for index in range(len(channels) - 1) for kind in ('weight', 'bias')}


class _TcnnReader:
    """Reads networks of tiny-cuda-nn, which computes in half precision."""

    def __init__(self, run: NerfstudioRun):
        self.run = run

    def network(
        self, ours: str, theirs: str, config: HashNetworkConfig, outputs: int,
    ) -> dict[str, Tensor]:
        """Read the trunk: the matrices of its layers, and behind them the table of its grid."""
        numbers = self._numbers(f'{theirs}.model.params')
        entries = int(grid_levels(config.grid).start[-1]) * config.grid.features
        if entries >= len(numbers):
            raise self._misfit(f'{theirs}.model.params', len(numbers), f'more than {entries}')
        # The grid pads its output by zeros, so what stands in those columns does not matter.
        layers = self._layers(f'{ours}.layers', f'{theirs}.model.params', numbers[:-entries],
                              _channels(config, outputs), padding=0.0)
        return layers | {f'{ours}.grid.table': _table(numbers[-entries:], config.grid)}

    def proposal(self, ours: str, theirs: str, config: HashNetworkConfig) -> dict[str, Tensor]:
        """Read grid and layers of a proposal network."""
        name = f'{theirs}.encoding.tcnn_encoding.params'
        numbers = self._numbers(name)
        expected = int(grid_levels(config.grid).start[-1]) * config.grid.features
        if len(numbers) != expected:
            raise self._misfit(name, len(numbers), str(expected))
        table = {f'{ours}.grid.table': _table(numbers, config.grid)}
        if config.layers == 1:
            return table | _linear(self.run, ours, theirs)
        return table | self.layers(f'{ours}.layers', f'{theirs}.mlp_base.1', _channels(config, 1))

    def layers(self, ours: str, theirs: str, channels: list[int]) -> dict[str, Tensor]:
        """Read a network without a grid; tiny-cuda-nn pads its input by ones."""
        name = f'{theirs}.tcnn_encoding.params'
        return self._layers(ours, name, self._numbers(name), channels, padding=1.0)

    def _numbers(self, name: str) -> Tensor:
        return self.run.weight(name).flatten().half().float()

    def _layers(
        self, ours: str, name: str, numbers: Tensor, channels: list[int], padding: float,
    ) -> dict[str, Tensor]:
        """Cut the row of numbers into matrices (out, in); constant inputs become the bias."""
        for multiple in (16, 8):  # as its versions pad, some of them certain networks only
            padded = [-(-channels[0] // multiple) * multiple, *channels[1:-1],
                      -(-channels[-1] // multiple) * multiple]
            sizes = [out * into for into, out in zip(padded, padded[1:])]
            if sum(sizes) == len(numbers):
                break
        else:
            raise self._misfit(name, len(numbers), f'those of layers of {channels} channels')
        state = {}
        for index, part in enumerate(numbers.split(sizes)):
            into, out = channels[index:index + 2]
            matrix = part.view(padded[index + 1], padded[index])[:out]
            state[f'{ours}.{index}.weight'] = matrix[:, :into]
            state[f'{ours}.{index}.bias'] = padding * matrix[:, into:].sum(dim=1) \
                if index == 0 else torch.zeros(out)
        return state

    def _misfit(self, name: str, found: int, expected: str) -> DataError:
        return DataError(
            f'{self.run.checkpoint_file}: {name} has {found} numbers, not {expected}; '
            f'{self.run.config_file} describes another model')


def _table(numbers: Tensor, config: NerfactoGridConfig) -> Tensor:
    return numbers.view(-1, config.features)


def _linear(run: NerfstudioRun, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f'{ours}.layers.0.{kind}': run.weight(f'{theirs}.linear.{kind}')
            for kind in ('weight', 'bias')}
