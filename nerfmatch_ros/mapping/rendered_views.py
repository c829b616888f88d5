"""Pictures with depth that a map's field shows from new places, to measure with or to train on.

The places lie between those of the reference views, where a field knows what is to be seen; what
it does not know has no depth, and a view of which little is known is not used.
"""

from collections.abc import Callable
import math

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import working_focal, working_view
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import interpolate, perturb
from nerfmatch_ros.localization.render_views import default_camera
from nerfmatch_ros.radiance_field.renderer import OPAQUE, render_view
from nerfmatch_ros.scene_geometry import SceneGeometry
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch

_NEAREST = 0.2  # share of the reference views, the nearest, of which one is the other end
_STEP_ASIDE = 0.2  # of the distance between both ends, std
_TURN = 0.1  # radians, std
_LEAST_KNOWN = 0.6  # share of a view that the field must show as solid
_MOST_TRIES = 3  # for each view
_MEASURED = 1  # beside the seed


def views_to_measure(
    scene_map: SceneMap, network: SceneGeometry, count: int, *, seed: int = 0,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> list[PosedImage]:
    """Render `count` views, as `render_new_views`, that no training with any seed has seen."""
    return render_new_views(scene_map, seen_camera(scene_map, network.config.longest_side), count,
                            seed=(seed, _MEASURED), report=report)


def seen_camera(scene_map: SceneMap, longest_side: int) -> Camera:
    """Give the camera of a map's photographs at the size that scene geometry sees them in."""
    camera = default_camera(scene_map.cameras)
    return working_view(camera, working_focal([camera], longest_side), longest_side).camera


def render_new_views(
    scene_map: SceneMap, camera: Camera, count: int, *, seed: int | tuple[int, ...] = 0,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> list[PosedImage]:
    """Render `count` views of a map from poses between those of its reference views.

    camera: of the views, without distortion. Gives photographs in memory with pose and depth,
    metres along z, 0 where the field is not solid; fewer where it shows too little.
    """
    if count < 0:
        raise ConfigError(f'{count} rendered views are asked for; give 0 or more')
    random = np.random.default_rng(seed)
    shape = (camera.height, camera.width)
    views: list[PosedImage] = []
    for attempt in range(_MOST_TRIES * count):
        if len(views) == count:
            break
        pose = new_pose(scene_map.reference_poses, random)
        seen = render_view(scene_map.field, scene_map.frame, camera, torch.from_numpy(pose),
                           stride=1, colour=True)
        solid = seen.opacity > OPAQUE
        if solid.float().mean() < _LEAST_KNOWN:
            continue
        depth = torch.where(solid, seen.depth, 0).cpu().numpy().astype(np.float32)
        pixels = (seen.colour.cpu() * 255).round().byte().numpy()
        views.append(PosedImage(f'rendered {attempt}', camera, pose,
                                pixels=pixels.reshape(*shape, 3), depth=depth.reshape(shape)))
        report(len(views) / count, {})
    return views


def new_pose(poses: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw a pose (4, 4) near the way between two of (K, 4, 4) that are not far apart."""
    first = random.integers(len(poses))
    distance = np.linalg.norm(poses[:, :3, 3] - poses[first, :3, 3], axis=1)
    near = np.argsort(distance)[1:math.ceil(_NEAREST * len(poses)) + 1]
    second = random.choice(near) if len(near) else first
    way = interpolate(torch.from_numpy(poses[first]), torch.from_numpy(poses[second]),
                      float(random.uniform()))
    aside = _STEP_ASIDE * distance[second] * random.standard_normal(3)
    turn = _TURN * random.standard_normal(3)
    return perturb(way, torch.from_numpy(np.concatenate((aside, turn)))).numpy()
