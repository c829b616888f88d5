"""Reference views: surface points and inner features that the field shows each map camera."""

from collections.abc import Callable
from dataclasses import dataclass

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import working_focal, working_view, WorkingView
from nerfmatch_ros.matching.matcher import COARSE_STRIDE
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ReferenceView:
    """One map image with what the field shows at its pose; all tensors on the CPU."""

    name: str
    view: WorkingView
    map_from_camera: Tensor  # (4, 4) float64
    points: Tensor  # (N, 3) map frame, metres: the opaque cells of the 1/8 grid
    features: Tensor | None  # (N, F) float16
    depth: Tensor  # (rows, columns) metres, a grid twice as fine, for occlusion


def working_views(
    images: list[PosedImage], longest_side: int, size: tuple[int, int] | None = None,
    focal: float | None = None,
) -> list[WorkingView]:
    """Choose how the matcher sees each map image; size: (width, height), instead of a side.

    focal: pixels, of a map that has one already.
    """
    focal = focal or working_focal([image.camera for image in images], longest_side)
    options = {} if size is None else {'size': size}
    return [working_view(image.camera, focal, longest_side, **options) for image in images]


def render_reference(
    field: RadianceField, frame: SceneFrame, image: PosedImage, view: WorkingView, *,
    feature_layer: int | None,
) -> ReferenceView:
    """Render the reference view of one map image."""
    pose = torch.from_numpy(np.ascontiguousarray(image.map_from_camera))
    fine = render_view(field, frame, view.camera, pose, stride=COARSE_STRIDE // 2)
    coarse = render_view(field, frame, view.camera, pose, stride=COARSE_STRIDE,
                         feature_layer=feature_layer)
    solid = coarse.solid()
    return ReferenceView(
        image.name, view, pose, coarse.points[solid].cpu(),
        coarse.features[solid].half().cpu() if feature_layer is not None else None,
        fine.depth.view(fine.rows, fine.columns).cpu())


def render_references(
    field: RadianceField, frame: SceneFrame, images: list[PosedImage], *,
    feature_layer: int | None, longest_side: int, size: tuple[int, int] | None = None,
    report: Callable[[float], None] = lambda progress: None,
) -> list[ReferenceView]:
    """Render the reference views of a few map images; many are kept in a file instead."""
    views = []
    for image, view in zip(images, working_views(images, longest_side, size)):
        views.append(render_reference(field, frame, image, view, feature_layer=feature_layer))
        report(len(views) / len(images))
    return views
