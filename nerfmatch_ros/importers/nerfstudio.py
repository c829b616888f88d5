"""Making a radiance field of a model that nerfstudio trained; nerfstudio itself is not needed.

nerfstudio moves and scales the poses of its data before it trains, and evaluates models from the
camera on: its near plane counts in training only. Both become the scene frame of the field.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
import json
import logging
from pathlib import Path
from typing import Any

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.field_file import FieldFile
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.importers.nerfacto_weights import nerfacto_state
from nerfmatch_ros.importers.nerfstudio_mip_weights import nerfstudio_mip_state
from nerfmatch_ros.importers.nerfstudio_run import NerfstudioRun, read_run
from nerfmatch_ros.radiance_field.nerfacto_field import HashNetworkConfig, NerfactoFieldConfig
from nerfmatch_ros.radiance_field.nerfacto_grid import NerfactoGridConfig
from nerfmatch_ros.radiance_field.nerfstudio_mip_field import NerfstudioMipConfig
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.scene_map import FieldConfig
import numpy as np
import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
NEAR = 1e-6  # scene units; rays begin in the camera
_ROTATION_TOLERANCE = 1e-3  # of the single precision in which nerfstudio keeps its transforms
# nerfstudio takes this for applied_transform where older data beside a COLMAP model lack it.
_COLMAP_TRANSFORM = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
_BACKGROUNDS = {'last_sample': 'last', 'white': 'white', 'black': 'black', 'random': 'black'}


def import_field(
    config_file: Path, output: Path, checkpoint: Path | None = None, data: Path | None = None,
) -> dict[str, Any]:
    """Turn a run of nerfstudio into a field in the folder `output`; returns plain values of it.

    config_file: the run's config.yml; checkpoint: else its last one; data: folder of the
    transforms.json it was trained on, else where config.yml says.
    """
    imported = read_field(read_run(config_file, checkpoint), data)
    imported.save(output)
    return imported.source


def read_field(run: NerfstudioRun, data: Path | None = None) -> FieldFile:
    """Make the field of a run; DataError for one that cannot be taken over faithfully."""
    target = str(run.option('pipeline', 'model', '_target', default='none'))
    name = target.rpartition('.')[2]
    if name not in _MODELS:
        raise DataError(f"{run.config_file}: the model is {target}; only {', '.join(_MODELS)} can "
                        'be imported. Train one of these with ns-train')
    kind, make = _MODELS[name]
    try:
        made = make(run)
        field = made.config.make(made.images)
        field.load_state_dict(made.state)
    except ConfigError as error:
        raise DataError(f'{run.config_file}: {error}') from error
    except RuntimeError as error:
        raise DataError(f'{run.checkpoint_file} does not fit to {run.config_file}: '
                        f'{error}') from error
    field.eval().requires_grad_(False)
    scene_from_map = scene_from_data(run, data)
    source = {
        'program': 'nerfstudio', 'model': kind, 'step': run.step, 'images': made.images,
        'parameters': sum(p.numel() for p in field.parameters()),
        'scene_units_per_metre': scene_from_map.scale, **_moved_poses(run, scene_from_map.scale)}
    return FieldFile(made.config, field, SceneFrame(scene_from_map, NEAR, made.far), made.images,
                     source)


@dataclass(frozen=True)
class _Made:
    config: FieldConfig
    state: dict[str, Tensor]
    images: int
    far: float  # scene units


def _option(run: NerfstudioRun, name: str, default: Any) -> Any:
    """Give an option of the model; the default is what versions without it did."""
    value = run.option('pipeline', 'model', name, default=default)
    if isinstance(default, tuple):
        wrong = not isinstance(value, list)
    elif isinstance(default, float):
        wrong = isinstance(value, bool) or not isinstance(value, (int, float))
    else:
        wrong = not isinstance(value, type(default))
    if wrong:
        raise DataError(f'{run.config_file}: option {name} of the model is {value!r}, not of the '
                        'kind that nerfstudio writes')
    return tuple(value) if isinstance(default, tuple) else type(default)(value)


def _nerfacto(run: NerfstudioRun) -> _Made:
    option = partial(_option, run)
    layout = option('implementation', 'tcnn')
    if layout == 'tcnn' and 'field.mlp_base.model.0.hash_table' in run.weights:
        layout = 'torch'  # nerfstudio falls back to it where tiny-cuda-nn is not installed
    looks = option('num_proposal_iterations', 2)
    sizes = option('proposal_net_args_list', ())
    if option('use_same_proposal_network', False):
        sizes = sizes[:1]
    else:
        sizes = [sizes[min(look, len(sizes) - 1)] for look in range(looks)] if sizes else []
    channels = option('appearance_embed_dim', 32) * option('use_appearance_embedding', True)
    config = NerfactoFieldConfig(
        trunk=HashNetworkConfig(
            NerfactoGridConfig(
                option('num_levels', 16), option('base_res', 16), option('max_res', 2048),
                option('log2_hashmap_size', 19), option('features_per_level', 2), layout),
            option('hidden_dim', 64)),
        proposals=tuple(_proposal(run, size, layout) for size in sizes),
        proposal_samples=option('num_proposal_samples_per_ray', (256, 96))[:looks],
        samples=option('num_nerf_samples_per_ray', 48),
        spacing=option('proposal_initial_sampler', 'piecewise'),
        colour_width=option('hidden_dim_color', 64),
        appearance_channels=channels,
        mean_appearance=option('use_average_appearance_embedding', True),
        contracted=not option('disable_scene_contraction', False),
        box=tuple(run.weight('field.aabb').flatten().tolist()),
        density_scale=option('average_init_density', 1.0),
        background=_background(run, 'last_sample'))
    state = nerfacto_state(run, config)
    images = len(state['appearance.weight']) if channels else 1
    return _Made(FieldConfig('nerfacto', nerfacto=config), state, images,
                 option('far_plane', 1000.0))


def _proposal(run: NerfstudioRun, size: Any, layout: str) -> HashNetworkConfig:
    """Size of a proposal network; what nerfstudio's arguments leave out has its defaults."""
    if not isinstance(size, dict):
        raise DataError(f'{run.config_file}: proposal_net_args_list holds {size!r}, not the '
                        'options of a network')
    grid = NerfactoGridConfig(
        size.get('num_levels', 8), size.get('base_res', 16), size.get('max_res', 1024),
        size.get('log2_hashmap_size', 18), size.get('features_per_level', 2), layout)
    layers = 1 if size.get('use_linear', False) else size.get('num_layers', 2)
    return HashNetworkConfig(grid, size.get('hidden_dim', 64), layers)


def _mip(run: NerfstudioRun) -> _Made:
    background = _background(run, 'white')
    collider = run.option('pipeline', 'model', 'collider_params')
    far = collider.get('far_plane') if isinstance(collider, dict) else None
    if not isinstance(far, (int, float)) or not far > 0:
        raise DataError(f'{run.config_file}: collider_params of the model is {collider!r}; its '
                        'far_plane must be a positive number')
    config = NerfstudioMipConfig(
        coarse_samples=_option(run, 'num_coarse_samples', 64),
        fine_samples=_option(run, 'num_importance_samples', 128), background=background)
    return _Made(FieldConfig('nerfstudio_mip', nerfstudio_mip=config),
                 nerfstudio_mip_state(run, config), 1, float(far))


def _background(run: NerfstudioRun, default: str) -> str:
    """Give what lies behind the field in evaluation, in our words."""
    background = _option(run, 'background_color', default)
    if background not in _BACKGROUNDS:
        raise DataError(f'{run.config_file}: background_color is {background!r}; '
                        f"only {', '.join(_BACKGROUNDS)} can be imported")
    return _BACKGROUNDS[background]


_MODELS: dict[str, tuple[str, Callable[[NerfstudioRun], _Made]]] = {
    'NerfactoModel': ('nerfacto', _nerfacto), 'DepthNerfactoModel': ('nerfacto', _nerfacto),
    'MipNerfModel': ('mip-nerf', _mip),
}


def scene_from_data(run: NerfstudioRun, data: Path | None = None) -> Similarity:
    """Give the similarity from the frame of the data's poses to that of the model.

    The frame of the poses is that of transforms.json as it lies on disk, or of the COLMAP model.
    nerfstudio's file counts from the frame that the data had before ns-process-data applied its
    own transform. Its other readers of data do not all note what they do to the poses.
    """
    transform, scale = run.transform, run.scale
    parser = str(run.option('pipeline', 'datamanager', 'dataparser', '_target', default='none'))
    if parser.rpartition('.')[2] not in ('Nerfstudio', 'ColmapDataParser'):
        raise DataError(f'{run.config_file}: the data were read by {parser}, whose frame is not '
                        'known; train with nerfstudio-data or colmap')
    if parser.rpartition('.')[2] == 'Nerfstudio':
        applied, applied_scale = _applied_transform(run, data)
        transform, scale = transform @ np.linalg.inv(applied), scale / applied_scale
    left, sizes, right = np.linalg.svd(transform[:3, :3])
    rotation = left @ right
    if np.abs(sizes - 1).max() > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise DataError(f'{run.config_file.parent}/dataparser_transforms.json: the transform '
                        f'{transform[:3].round(5).tolist()} is no rigid motion')
    return Similarity(scale, rotation, scale * transform[:3, 3])


def _applied_transform(run: NerfstudioRun, data: Path | None) -> tuple[np.ndarray, float]:
    """Read applied_transform as (4, 4) and applied_scale of the transforms.json trained on."""
    file = _transforms_file(run, data)
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        rows = content.get('applied_transform')
        if rows is None and (file.parent / 'colmap' / 'sparse' / '0').exists():
            rows = _COLMAP_TRANSFORM
        rows = np.eye(4)[:3] if rows is None else np.array(rows, np.float64)
        applied = np.vstack([rows.reshape(3, 4), [0, 0, 0, 1]])
        scale = float(content.get('applied_scale', 1.0))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f'{file} cannot be read as transforms.json: {error!r}') from error
    if abs(np.linalg.det(applied)) < 1e-9 or not scale > 0:
        raise DataError(f'{file}: applied_transform {rows.tolist()} and applied_scale {scale} '
                        'cannot be undone')
    return applied, scale


def _transforms_file(run: NerfstudioRun, data: Path | None) -> Path:
    """Find the transforms.json that the run was trained on."""
    stated = data
    places = [Path()]
    if stated is None:
        manager = ('pipeline', 'datamanager')
        stated = run.path(*manager, 'data') or run.path(*manager, 'dataparser', 'data') \
            or run.path('data')
        places += run.config_file.resolve().parents
    for place in places if stated is not None else ():
        file = place / stated
        file = file if file.suffix == '.json' else file / 'transforms.json'
        if file.is_file():
            return file
    raise DataError(
        f'the transforms.json that the model was trained on is not at {stated}; name its folder '
        'with --data, because its applied_transform is part of the frame')


def _moved_poses(run: NerfstudioRun, scale: float) -> dict[str, float]:
    """Tell how far nerfstudio's camera optimizer moved the poses it trained with (medians)."""
    moved = run.weights.get('camera_optimizer.pose_adjustment')
    if moved is None or moved.shape[-1] != 6 or not len(moved):
        return {}
    metres = (torch.linalg.norm(moved[:, :3], dim=1).median() / scale).item()
    degrees = torch.rad2deg(torch.linalg.norm(moved[:, 3:], dim=1).median()).item()
    if metres + degrees == 0:
        return {}
    LOG.info('in training the poses were moved by %.3g m and %.3g degrees (medians); the field is '
             'seen from the poses of the data', metres, degrees)
    return {'poses_moved_m': metres, 'poses_moved_deg': degrees}
