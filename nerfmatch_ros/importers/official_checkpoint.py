"""Reading a checkpoint of the published NeRFMatch as data: no code that it names is run."""

import argparse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
import pickle
from typing import Any

from nerfmatch_ros.errors import DataError
import torch
from torch import Tensor

# What the release's files hold beside tensors and plain values. Paths become pure ones, which
# touch no disk; their class is named differently by old and new Pythons and other systems.
_HARMLESS = [argparse.Namespace, *(
    (PurePosixPath, f'{module}.{name}') for module in ('pathlib', 'pathlib._local')
    for name in ('PosixPath', 'WindowsPath', 'Path', 'PurePath', 'PurePosixPath'))]


@dataclass(frozen=True)
class OfficialCheckpoint:
    """Weights and hyper-parameters of one .ckpt file."""

    path: Path
    weights: dict[str, Tensor]  # names as in the file
    hyper_parameters: dict[str, Any]  # nested plain values

    def option(self, *names: str, default: Any = None) -> Any:
        """Give a nested hyper-parameter, or the default where any of its names is missing."""
        value = self.hyper_parameters
        for name in names:
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    def require(self, *names: str, among: tuple) -> Any:
        """Give a hyper-parameter, `among[0]` if it is missing; DataError for values not known."""
        value = self.option(*names, default=among[0])
        if value not in among:
            raise DataError(
                f"{self.path}: hyper-parameter {'.'.join(names)} is {value!r}; only "
                f"{' or '.join(map(repr, among))} can be imported")
        return value


def read_official_checkpoint(path: Path) -> OfficialCheckpoint:
    """Read a .ckpt file; DataError for one that is damaged, of another kind, or not plain data."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f'{path} does not exist; give a .ckpt file of the published NeRFMatch')
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        named = str(error).partition('GLOBAL ')[2].split(' ')[0]
        if named:
            raise DataError(
                f'{path} was refused: it asks to run code ({named}), which a checkpoint of '
                'weights does not need; get it from its authors again') from error
        raise DataError(f'{path} is no PyTorch checkpoint or is damaged; '
                        'copy it again from its source') from error
    except Exception as error:  # whatever a damaged archive makes the reader stumble over
        raise DataError(f'{path} cannot be read as a PyTorch checkpoint '
                        f'({type(error).__name__}); copy it again from its source') from error
    weights = content.get('state_dict') if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights \
            or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f'{path} holds no state_dict of tensors, so it is no checkpoint of the '
                        'published NeRFMatch')
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f'{path}: {name} holds NaN or infinity; that training had failed')
    try:
        options = _plain(content.get('hyper_parameters', {}))
    except RecursionError as error:
        raise DataError(f'{path}: its hyper-parameters hold themselves; copy it again from its '
                        'source') from error
    return OfficialCheckpoint(path, dict(weights), options)


def _plain(value: Any) -> Any:
    """Turn namespaces into dictionaries and paths into text."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePosixPath) else value
