"""How well a field shows photographs that it never saw: PSNR and a picture to look at."""

from dataclasses import dataclass
import math

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.mapping.training_pixels import pixel_camera, PixelSize, reduced_rgb
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor

PICTURES = 4  # photographs that are shown, of all that are measured


@dataclass(frozen=True)
class FieldQuality:
    """A field beside K photographs."""

    psnr: list[float]  # (K,) dB, exposure fitted per photograph
    picture: np.ndarray  # (sum of heights, 3 * width, 3) uint8: photograph, render, depth


def psnr(rendered: Tensor, photograph: Tensor) -> float:
    """Peak signal-to-noise ratio, dB, of two pictures in [0, 1]."""
    return -10 * math.log10(max(((rendered - photograph) ** 2).mean().item(), 1e-10))


def match_exposure(rendered: Tensor, photograph: Tensor) -> Tensor:
    """Fit gain and offset per channel, which no field can know of a new image: (N, 3)."""
    mean, other = rendered.mean(0), photograph.mean(0)
    covariance = ((rendered - mean) * (photograph - other)).mean(0)
    gain = covariance / ((rendered - mean) ** 2).mean(0).clamp(min=1e-6)
    return ((rendered - mean) * gain + other).clamp(0, 1)


def compare_with_photographs(
    field: RadianceField, frame: SceneFrame, images: list[PosedImage], how: PixelSize,
) -> FieldQuality:
    """Render the field at the poses of photographs (at least one), beside them."""
    values, rows = [], []
    for image in images:
        camera = pixel_camera(image.camera, how)
        view = render_view(field, frame, camera, torch.from_numpy(image.map_from_camera),
                           stride=1, colour=True)
        photograph = reduced_rgb(image, how)
        truth = torch.from_numpy(photograph.reshape(-1, 3)).float() / 255
        rendered = match_exposure(view.colour.cpu(), truth)
        values.append(psnr(rendered, truth))
        shape = (camera.height, camera.width)
        depth = view.depth.cpu().numpy().reshape(shape)
        depth = (depth / max(np.percentile(depth, 98), 1e-6)).clip(0, 1) * 255
        depth = cv2.applyColorMap(depth.astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
        rendered = (rendered * 255).round().byte().numpy().reshape(*shape, 3)
        rows.append(np.hstack([photograph, rendered, depth]))
    rows = rows[::math.ceil(len(rows) / PICTURES)]
    width = min(row.shape[1] for row in rows)
    rows = [cv2.resize(row, (width, round(row.shape[0] * width / row.shape[1]))) for row in rows]
    return FieldQuality(values, np.vstack(rows))
