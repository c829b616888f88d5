"""Seeing a map image differently: exact geometric and photometric augmentation.

Turning the camera about its centre and changing its focal length moves pixels by a homography, so
the true matches stay exact whatever the depth.
"""

from dataclasses import dataclass, replace

import cv2
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class AugmentationConfig:
    """Strength of the augmentation."""

    rotation: tuple[float, float, float] = (0.10, 0.14, 0.10)  # radians about x, y, z, std
    zoom: tuple[float, float] = (-0.15, 0.25)  # range of the logarithm of the focal length
    exposure: float = 0.25  # range of the logarithm of gain and of gamma
    tint: float = 0.06  # logarithm of the gain of a channel, std
    blur: float = 0.4  # share of pictures blurred, half of them by motion
    motion: float = 9.0  # pixels, longest motion blur
    noise: float = 0.02  # largest std of additive noise


def turn_and_zoom(
    picture: np.ndarray, camera: Camera, map_from_camera: np.ndarray, config: AugmentationConfig,
    random: np.random.Generator,
) -> tuple[np.ndarray, Camera, np.ndarray]:
    """Show a pinhole picture (h, w, 3) uint8 as a turned and zoomed camera would see it."""
    old_from_new = Rotation.from_rotvec(random.normal(size=3) * config.rotation).as_matrix()
    factor = float(np.exp(random.uniform(*config.zoom)))
    zoomed = replace(camera, fx=camera.fx * factor, fy=camera.fy * factor)
    new_from_old = zoomed.matrix() @ old_from_new.T @ np.linalg.inv(camera.matrix())
    border = cv2.BORDER_REFLECT if random.random() < 0.5 else cv2.BORDER_CONSTANT
    warped = cv2.warpPerspective(
        picture, new_from_old, (camera.width, camera.height), flags=cv2.INTER_LINEAR,
        borderMode=border, borderValue=(110, 110, 110))
    pose = map_from_camera.copy()
    pose[:3, :3] = map_from_camera[:3, :3] @ old_from_new
    return warped, zoomed, pose


def change_light(
    picture: np.ndarray, config: AugmentationConfig, random: np.random.Generator,
) -> np.ndarray:
    """Change exposure, tint, sharpness and noise: (h, w, 3) uint8 -> float32 in [0, 1]."""
    if random.random() < config.blur:
        if random.random() < 0.5:
            picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.4, 1.3))
        else:
            picture = cv2.filter2D(picture, -1, motion_kernel(
                random.uniform(2, config.motion), random.uniform(0, np.pi)))
    gain = np.exp(random.uniform(-config.exposure, config.exposure)
                  + config.tint * random.normal(size=3)).astype(np.float32)
    gamma = np.exp(random.uniform(-config.exposure, config.exposure))
    # Gain and gamma act on 256 levels: a table is exact and much faster than powers of pixels.
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    table = (np.clip(levels * gain, 0, 1) ** gamma).astype(np.float32)
    lit = np.stack([table[:, c][picture[..., c]] for c in range(3)], axis=-1)
    strength = random.uniform(0, config.noise)
    return lit + strength * random.standard_normal(picture.shape, dtype=np.float32)


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """Make the filter (k, k) of a motion; length: pixels, angle: radians in the picture."""
    size = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    middle, half = size // 2, length / 2
    for step in np.linspace(-half, half, 4 * size):
        x, y = middle + step * np.cos(angle), middle + step * np.sin(angle)
        kernel[int(round(y)), int(round(x))] += 1
    return kernel / kernel.sum()
