"""How far a map reaches: its depth and extent, and a frame that holds what is new as well."""

from dataclasses import replace
import logging

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.radiance_field.scene_frame import fit_scene_frame, SceneFrame
from nerfmatch_ros.scene_map import SceneMap
import numpy as np

LOG = logging.getLogger(__name__)
# Scene units: how far new cameras and points may lie from the middle of the old field's box, which
# reaches to 1, before a field in a larger box is trained from the beginning.
BEYOND = 1.3


def depth_of(scene_map: SceneMap) -> float:
    """Give the median distance, metres along the optical axis, of what reference views show."""
    references, count = scene_map.references, len(scene_map.reference_names)
    depths = []
    for k in np.unique(np.linspace(0, count - 1, min(count, 30)).round().astype(int)):
        pose, points = scene_map.reference_poses[k], references.view(k)[0].numpy()
        if len(points):
            depths.append(np.median((points - pose[:3, 3]) @ pose[:3, 2]))
    return max(float(np.median(depths)), 1e-3) if depths else 1.0


def extent_of(old: SceneMap, new: list[PosedImage]) -> float:
    """Diagonal, metres, of the box of the cameras, those of the old map included."""
    centres = np.concatenate((old.reference_poses[:, :3, 3],
                              [image.map_from_camera[:3, 3] for image in new]))
    return max(old.extent, float(np.linalg.norm(np.ptp(centres, axis=0))))


def frame_for(old: SceneMap, new: list[PosedImage], points: np.ndarray) -> SceneFrame:
    """Keep the frame of the old field, or fit a larger one if what is new reaches beyond it.

    points: (P, 3) map frame, metres, that the new photographs see; may be empty.
    """
    to_scene = old.frame.scene_from_map.apply
    centres = np.stack([image.map_from_camera[:3, 3] for image in new])
    far = np.percentile(np.abs(to_scene(points)), 90, axis=0).max() if len(points) else 0.0
    reach = max(np.abs(to_scene(centres)).max(), far)
    if reach <= BEYOND or old.frame.ball:
        return old.frame
    LOG.warning('what is new reaches %.2f times as far as the field of the map: a field in a '
                'larger box is trained from the beginning', reach)
    poses = np.concatenate((old.reference_poses, [image.map_from_camera for image in new]))
    points = np.concatenate((old.surface.points.cpu().numpy(), points))
    fitted = fit_scene_frame(poses, points, np.zeros(0))
    ratio = fitted.scene_from_map.scale / old.frame.scene_from_map.scale
    return replace(fitted, near=ratio * old.frame.near, far=ratio * old.frame.far)
