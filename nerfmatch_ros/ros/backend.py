"""The localizer that a node computes with: loaded, checked, warm, set up by parameters."""

from dataclasses import replace
import gc
from pathlib import Path
import time
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, MapError
from nerfmatch_ros.stage_clock import StageClock
import numpy as np

_SMALL = 48  # pixels, width of the picture that is rendered to be warm

# parameter -> option of the localizer; 0 leaves what the map says
_OVERRIDES = {
    'retrieval_top_k': 'top_k', 'min_inliers': 'min_inliers',
    'min_inlier_ratio': 'min_inlier_ratio', 'max_reproj_error': 'first_error',
}


def load_localizer(
    map_folder: Path, *, device: str, threads: int | None, sha256: str = '', warm: bool = True,
    memory_fraction: float = 1.0, precision: str = 'map', localizer: str = 'map',
    clock: StageClock | None = None,
) -> Any:
    """
    Give the localizer of a map, ready for the first image.

    sha256: what the map must have, '' for any; memory_fraction: share of the GPU to be used;
    precision: of the networks, 'map' for the map's own; localizer: its name, 'map' for the map's
    own; clock: of a measurement, times the stages 'import', 'load' and 'warm up'.
    """
    clock = clock or StageClock()
    with clock.stage('import'):
        # Late: a wrong parameter is reported before this takes its seconds.
        from nerfmatch_ros.localization import make_localizer
        import torch
    if device.startswith('cuda'):
        torch.cuda.set_per_process_memory_fraction(memory_fraction, torch.device(device))
    with clock.stage('load'):
        made = make_localizer.load_localizer(
            map_folder, localizer, device=device, threads=threads)
    if sha256 and made.map_sha256 != sha256:
        raise MapError(f'{map_folder} has sha256 {made.map_sha256}, map_sha256 demands '
                       f'{sha256}; give the folder of that map, or leave map_sha256 empty')
    if precision != 'map':
        made.set_precision(precision)
    if warm:
        with clock.stage('warm up'):
            warm_up(made)
    return made


def warm_up(localizer: Any) -> float:
    """Localize a picture of noise, so that the first real one is not slow; give the seconds."""
    scene_map = localizer.scene_map
    camera = scene_map.cameras[0]
    noise = np.random.default_rng(0).integers(
        0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
    start = time.perf_counter()
    pose = scene_map.reference_poses[0]
    # From a prior; noise has no success there, so the whole map is searched as well.
    localizer.localize(PosedImage('warm-up', camera, pixels=noise), prior=pose)
    # What the surface cache does not cover is rendered.
    small = camera.scaled_to(_SMALL, max(1, _SMALL * camera.height // camera.width))
    localizer.render(small, pose)
    return time.perf_counter() - start


def require_device(device: str):
    """Raise if a device does not answer: a GPU may have been lost while nobody computed on it."""
    if device == 'cpu':
        return
    import torch
    try:
        torch.zeros(1, device=device).item()  # which waits for the device
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device '{device}' does not answer: {error}; start the process again, "
                          "or set device to 'cpu'") from error


def with_parameters(localizer: Any, parameters: Any) -> Any:
    """Set the options that the parameters override; the map's own ones stay where they are 0."""
    if not hasattr(localizer, 'own_config'):
        return localizer  # a stand-in without options
    changes = {option: getattr(parameters, name) for name, option in _OVERRIDES.items()
               if getattr(parameters, name)}
    if 'first_error' in changes:
        changes['refined_error'] = changes['first_error']
    localizer.config = replace(localizer.own_config, rounds=parameters.rounds, **changes)
    return localizer


def with_clock(localizer: Any, device: str) -> Any:
    """Let the stages of a localizer be timed, for who takes the seconds after every image."""
    if hasattr(localizer, 'clock'):
        localizer.clock = StageClock(device)
    return localizer


def free_memory():
    """Give back what the model took on the GPU."""
    import torch
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
