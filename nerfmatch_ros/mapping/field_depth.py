"""Depth of photographs, looked up in a field that knows the place."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import OPAQUE, render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import torch

_CELLS = 80  # along the longer side of a photograph


def with_field_depth(
    images: Sequence[PosedImage], field: RadianceField, frame: SceneFrame, *,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> list[PosedImage]:
    """Give posed photographs with the depth that the field has there, where they bring none.

    It is of cells, `_CELLS` along the longer side; 0 where the field is not solid.
    """
    given = []
    for number, image in enumerate(images):
        if image.depth is None and image.depth_path is None:
            size = max(1, max(image.camera.width, image.camera.height) // _CELLS)
            seen = render_view(field, frame, image.camera, torch.from_numpy(image.map_from_camera),
                               stride=size)
            depth = torch.where(seen.opacity > OPAQUE, seen.depth, 0).cpu().numpy()
            image = replace(image, depth=depth.reshape(seen.rows, seen.columns))
        given.append(image)
        report((number + 1) / len(images), {})
    return given
