"""Numbers that the published NeRFMatch code computed, for tests that compare with them.

The fixtures lie beside the checkout, not in it; tests that need them are skipped without them.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import tempfile

import numpy as np
import pytest
import torch

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'parity'

needs_fixtures = pytest.mark.skipif(
    not (FOLDER / 'make_checkpoints.py').is_file(),
    reason='the numbers of the published code (../shared/parity) are not here')


class Fixture:
    """Arrays of one .npz file as tensors."""

    def __init__(self, name: str):
        self._arrays = np.load(FOLDER / f'{name}.npz')

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._arrays)

    def __getitem__(self, key: str) -> torch.Tensor:
        """Give one array."""
        return torch.from_numpy(self._arrays[key])


@functools.cache
def official_weights(kind: str) -> dict[str, torch.Tensor]:
    """Draw one of the random checkpoints, write it as the release does, and read it safely."""
    spec = importlib.util.spec_from_file_location(
        'make_checkpoints', FOLDER / 'make_checkpoints.py')
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    template = json.loads((FOLDER / 'checkpoint_templates.json').read_text())[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f'{kind}.ckpt'
        torch.save({'state_dict': {t[0]: maker.tensor(*t) for t in template['tensors']},
                    'hyper_parameters': maker.decode(template['hyper_parameters'])}, path)
        with torch.serialization.safe_globals([argparse.Namespace, pathlib.PosixPath]):
            return torch.load(path, weights_only=True)['state_dict']


def part(weights: dict, prefix: str, renamed: dict[str, str]) -> dict:
    """Choose the weights under a prefix and rename the beginnings of their keys."""
    chosen = {}
    for key, value in weights.items():
        if key.startswith(prefix):
            key = key[len(prefix):]
            for official, ours in renamed.items():
                if key.startswith(official):
                    key = ours + key[len(official):]
                    break
            chosen[key] = value
    return chosen


def official_options(kind: str) -> dict:
    """Give the hyper-parameters of one of the random checkpoints as nested plain values."""
    def plain(value):
        if isinstance(value, dict):
            value = value.get('__namespace__', value.get('__path__', value))
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    templates = json.loads((FOLDER / 'checkpoint_templates.json').read_text())
    return plain(templates[kind]['hyper_parameters'])
