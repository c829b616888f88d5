"""A photograph with its camera and, where known, its pose, depth and masks."""

from dataclasses import dataclass
from pathlib import Path

import cv2
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import nearest_rotation
import numpy as np
import torch

ROTATION_TOLERANCE = 1e-3  # largest entry of |R^T R - I| that is taken for rounding and repaired


@dataclass(frozen=True, eq=False)
class PosedImage:
    """One image; pictures on disk are read when asked for and not kept."""

    name: str  # unique in its data set
    camera: Camera
    map_from_camera: np.ndarray | None = None  # (4, 4) float64, metres, OpenCV camera axes
    path: Path | None = None  # of the picture, unless `pixels` holds it
    pixels: np.ndarray | None = None  # (H, W, 3) uint8 RGB
    depth_path: Path | None = None  # PNG of 16 bit, or .npy
    # Distance along z, float32 metres, 0 = unknown: of pixels, or of cells of n x n pixels, of
    # which there are H // n times W // n; n is found along the longer side.
    depth: np.ndarray | None = None
    mask_path: Path | None = None  # picture, 0 = pixels to ignore
    sky_path: Path | None = None  # picture of any size, white = sky
    transient_path: Path | None = None  # picture of any size, white = what moves, to ignore
    split: str | None = None  # 'train' or 'test'
    stamp: float | None = None  # seconds
    depth_scale: float = 0.001  # metres per unit of the file at `depth_path`

    def __post_init__(self):
        """Check the pose and what is held in memory; nothing is read from disk here."""
        if self.map_from_camera is not None:
            pose = checked_pose(self.map_from_camera, f"image '{self.name}'")
            object.__setattr__(self, 'map_from_camera', pose)
        if self.path is None and self.pixels is None:
            raise DataError(f"image '{self.name}' has neither pixels nor a file; give one")
        if self.pixels is not None:
            self._check_size(self.pixels, 'the picture in memory')
            if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
                raise DataError(f"image '{self.name}': pixels are {self.pixels.dtype} "
                                f'{self.pixels.shape}; RGB uint8 (H, W, 3) is needed')
        if self.depth is not None and self.depth.shape != tuple(
                side // self._cell() for side in (self.camera.height, self.camera.width)):
            self._check_size(self.depth, 'the depth in memory')

    def rgb(self) -> np.ndarray:
        """Give the picture (H, W, 3), uint8 RGB."""
        if self.pixels is not None:
            return self.pixels
        # Poses and intrinsics are of the stored pixels, so a camera's orientation tag is ignored.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = self._read(self.path, flags, 'picture')
        self._check_size(picture, str(self.path))
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def depth_map(self) -> np.ndarray | None:
        """Give the depth (H, W), float32 metres along z with 0 = unknown, or None without one."""
        if self.depth is not None:
            return self._depth_of_cells()
        if self.depth_path is None:
            return None
        if self.depth_path.suffix == '.npy':
            try:
                raw = np.load(self.depth_path)
            except (OSError, ValueError) as error:
                raise DataError(f"image '{self.name}': depth file {self.depth_path} cannot be "
                                f'read: {error}') from error
        else:
            flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE
            raw = self._read(self.depth_path, flags, 'depth file')
        self._check_size(raw, str(self.depth_path))
        depth = np.squeeze(raw).astype(np.float32) * np.float32(self.depth_scale)
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))

    def _cell(self) -> int:
        """Give the pixels n along a cell of `depth`."""
        return max(1, max(self.camera.width, self.camera.height) // max(1, *self.depth.shape))

    def _depth_of_cells(self) -> np.ndarray:
        size = self._cell()
        if size == 1:
            return self.depth
        known = np.zeros((self.camera.height, self.camera.width), np.float32)
        rows, columns = (size * count for count in self.depth.shape)
        known[:rows, :columns] = self.depth.repeat(size, axis=0).repeat(size, axis=1)
        return known

    def valid_mask(self) -> np.ndarray | None:
        """Give which pixels (H, W), bool, may be used, or None when all may."""
        valid = None
        if self.mask_path is not None:
            mask = self._read(self.mask_path, cv2.IMREAD_GRAYSCALE, 'mask')
            self._check_size(mask, str(self.mask_path))
            valid = mask > 0
        if self.transient_path is not None:
            still = ~self._white(self.transient_path, 'mask of what moves')
            valid = still if valid is None else valid & still
        return valid

    def sky_mask(self) -> np.ndarray | None:
        """Give which pixels (H, W), bool, show sky, or None where nobody marked it."""
        return None if self.sky_path is None else self._white(self.sky_path, 'mask of the sky')

    def _white(self, path: Path, what: str) -> np.ndarray:
        """Tell which pixels (H, W) of the photograph a mask of any size has white."""
        mask = self._read(path, cv2.IMREAD_GRAYSCALE, what)
        white = 255 if mask.max() > 1 else 1  # some programs write 1 for true
        size = (self.camera.width, self.camera.height)
        if mask.shape != size[::-1]:
            larger = mask.shape[0] < size[1]
            mask = cv2.resize(
                mask, size, interpolation=cv2.INTER_LINEAR if larger else cv2.INTER_AREA)
        return 2 * mask.astype(np.int32) >= white

    def _read(self, path: Path, flags: int, what: str) -> np.ndarray:
        if not path.is_file():
            raise DataError(f"image '{self.name}': {what} {path} does not exist; "
                            'put it there or take the frame out')
        data = np.fromfile(path, np.uint8)
        picture = cv2.imdecode(data, flags) if len(data) else None
        if picture is None:
            raise DataError(f"image '{self.name}': {what} {path} ({len(data)} bytes) cannot be "
                            'decoded; store it again as PNG or JPEG')
        return picture

    def _check_size(self, picture: np.ndarray, where: str):
        height, width = picture.shape[:2]
        if (width, height) != (self.camera.width, self.camera.height):
            raise DataError(
                f"image '{self.name}': {where} has {width} x {height} pixels, its camera "
                f'{self.camera.width} x {self.camera.height}; give the intrinsics of this size')


def are_poses(matrices: np.ndarray, tolerance: float = ROTATION_TOLERANCE) -> np.ndarray:
    """Tell which of the matrices (K, 4, 4) state a rigid pose, as `checked_pose` does: (K,) bool.

    It says nothing of why, and takes a hundredth of the time.
    """
    rotations = matrices[:, :3, :3]
    with np.errstate(invalid='ignore', over='ignore'):
        error = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max(axis=(1, 2))
        return np.isfinite(matrices).all(axis=(1, 2)) & (error <= tolerance) \
            & (np.linalg.det(rotations) >= 0) \
            & np.isclose(matrices[:, 3], (0, 0, 0, 1), atol=1e-9).all(axis=1)


def checked_pose(
    matrix: np.ndarray, where: str, tolerance: float = ROTATION_TOLERANCE,
) -> np.ndarray:
    """Give the rigid pose (4, 4) float64 that a matrix (4, 4) or (3, 4) states, rounding repaired.

    where: names the file and frame in the error that a matrix which is no pose raises.
    tolerance: largest entry of |R^T R - I| that is repaired, for data known to be rougher.
    """
    try:
        pose = np.array(matrix, np.float64)
    except (TypeError, ValueError):
        raise DataError(f'{where}: pose {matrix!r} is not a matrix of numbers') from None
    if pose.shape == (3, 4):
        pose = np.vstack((pose, (0, 0, 0, 1)))
    if pose.shape != (4, 4):
        raise DataError(f'{where}: pose has shape {pose.shape}; (4, 4) is needed')
    if not np.isfinite(pose).all():
        raise DataError(f'{where}: pose holds NaN or infinity: {pose.tolist()}; '
                        'register the frame again or take it out')
    if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-9):
        raise DataError(f'{where}: last row of the pose is {pose[3].tolist()}, not 0 0 0 1')
    rotation = pose[:3, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    determinant = np.linalg.det(rotation)
    if error > tolerance or determinant < 0:
        raise DataError(
            f'{where}: no rotation in the pose: determinant {determinant:.6g}, R^T R differs from '
            f'the identity by {error:.3g}; remove scale, shear or mirroring, or take it out')
    pose[:3, :3] = nearest_rotation(torch.from_numpy(rotation)).numpy()
    pose[3] = (0, 0, 0, 1)
    return pose
