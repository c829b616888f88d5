"""Reading what `ns-train` left in its output folder, as data: no object that it names is made."""

from dataclasses import dataclass
import json
from pathlib import Path
import pickle
from typing import Any

from nerfmatch_ros.errors import DataError
import numpy as np
import torch
from torch import Tensor
import yaml

_TAG = 'tag:yaml.org,2002:python/'
# The learning rates that schedulers note are numbers of numpy, under its old and its new name.
_NUMBERS = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32)), *(
    (np._core.multiarray.scalar if hasattr(np, '_core') else np.core.multiarray.scalar,
     f'numpy.{name}.multiarray.scalar') for name in ('core', '_core'))]


class _PlainLoader(yaml.SafeLoader):
    """Gives the plain values below the tags of Python: mappings, lists, the names of classes."""


def _plain(loader: _PlainLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    kind, _, name = suffix.partition(':')
    return name if kind in ('name', 'module') else loader.construct_scalar(node)


_PlainLoader.add_multi_constructor(_TAG, _plain)


def read_tagged_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of tagged Python objects as nested mappings of plain values."""
    try:
        content = yaml.load(file.read_text(encoding='utf-8'), Loader=_PlainLoader)
    except OSError as error:
        raise DataError(f'cannot read {file}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f'{file} is no valid YAML: {error}') from error
    if not isinstance(content, dict):
        raise DataError(f'{file} holds no mapping; give the config.yml of a nerfstudio run')
    return content


@dataclass(frozen=True)
class NerfstudioRun:
    """Configuration, weights and frame of one trained model."""

    config_file: Path
    checkpoint_file: Path
    config: dict[str, Any]  # nested plain values
    step: int
    weights: dict[str, Tensor]  # of the model, names without `_model.`
    transform: np.ndarray  # (4, 4), original data -> oriented and centred, before scaling
    scale: float  # of the scaling that follows

    def option(self, *names: str, default: Any = None) -> Any:
        """Give a nested value of the configuration, or the default where a name is missing."""
        value = self.config
        for name in names:
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    def weight(self, name: str) -> Tensor:
        """Give one tensor of the model; DataError where it is missing."""
        if name not in self.weights:
            raise DataError(f'{self.checkpoint_file} has no {name}; it was written by another '
                            'version of nerfstudio than config.yml says, or is damaged')
        return self.weights[name]

    def path(self, *names: str) -> Path | None:
        """Give a path of the configuration, as it stands there."""
        parts = self.option(*names)
        return Path(*parts) if isinstance(parts, list) and parts else None


def read_run(config_file: Path, checkpoint: Path | None = None) -> NerfstudioRun:
    """Read a run by its config.yml; checkpoint: a .ckpt file, else the last one of the run."""
    config_file = Path(config_file)
    config = read_tagged_yaml(config_file)
    if not isinstance(config.get('pipeline'), dict):
        raise DataError(f"{config_file} has no 'pipeline'; give the config.yml that ns-train "
                        'wrote beside its checkpoints')
    if checkpoint is None:
        models = config_file.parent.joinpath(*config.get('relative_model_dir') or [])
        found = sorted(models.glob('step-*.ckpt'))
        if not found:
            raise DataError(f'{models} holds no step-*.ckpt; name the file with --checkpoint')
        checkpoint = found[-1]
    step, weights = _read_checkpoint(Path(checkpoint))
    transform, scale = _read_transform(config_file.with_name('dataparser_transforms.json'))
    return NerfstudioRun(config_file, Path(checkpoint), config, step, weights, transform, scale)


def _read_checkpoint(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Give the step and the weights of the model in a .ckpt file."""
    if not path.is_file():
        raise DataError(f'{path} does not exist; name a step-*.ckpt file with --checkpoint')
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        named = str(error).partition('GLOBAL ')[2].split(' ')[0]
        raise DataError(f"{path} was refused: it is damaged or asks to run code "
                        f"({named or 'not plain data'}); get it from its source again") from error
    except Exception as error:  # whatever a damaged archive makes the reader stumble over
        raise DataError(f'{path} cannot be read as a PyTorch checkpoint '
                        f'({type(error).__name__}); copy it again from its source') from error
    pipeline = content.get('pipeline') if isinstance(content, dict) else None
    if not isinstance(pipeline, dict):
        raise DataError(f"{path} holds no 'pipeline', so it is no checkpoint of nerfstudio")
    weights = {}
    for name, value in pipeline.items():
        # Trained by several processes the model is wrapped once more.
        name = name.removeprefix('module.')
        if not name.startswith('_model.') or not isinstance(value, Tensor):
            continue
        weights[name.removeprefix('_model.').removeprefix('module.')] = value
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f'{path}: {name} holds NaN or infinity; that training had failed')
    step = content.get('step')
    return step if isinstance(step, int) else 0, weights


def _read_transform(file: Path) -> tuple[np.ndarray, float]:
    """Give transform (4, 4) and scale of dataparser_transforms.json."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        rows = np.array(content['transform'], np.float64)
        scale = float(content['scale'])
    except OSError as error:
        raise DataError(f'cannot read {file}: {error.strerror}; ns-train writes it beside '
                        'config.yml, and without it the frame of the model is unknown') from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is not what ns-train writes: {error!r}') from error
    if rows.shape != (3, 4) or not np.isfinite(rows).all() or not 0 < scale < np.inf:
        raise DataError(f'{file}: transform {rows.tolist()} and scale {scale} are no similarity')
    return np.vstack([rows, [0, 0, 0, 1]]), scale
