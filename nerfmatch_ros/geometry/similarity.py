"""A similarity of space: scale, rotation, translation; it relates a field's scene to the map."""

from dataclasses import dataclass
import math
from typing import Any

from nerfmatch_ros.errors import DataError
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Similarity:
    """Moves points by y = scale * rotation @ x + translation; name it `target_from_source`."""

    scale: float  # target units per source unit, positive
    rotation: np.ndarray  # (3, 3) float64, proper
    translation: np.ndarray  # (3,) float64, target units

    def __post_init__(self):
        """Turn values into float64 and refuse what is no similarity."""
        rotation = np.array(self.rotation, np.float64)
        translation = np.array(self.translation, np.float64)
        scale = float(self.scale)
        if not (math.isfinite(scale) and scale > 0):
            raise DataError(f'scale of a similarity is {scale}; it must be positive and finite')
        if translation.shape != (3,) or not np.isfinite(translation).all():
            raise DataError(f'translation of a similarity is {translation.tolist()}; '
                            'three finite numbers are needed')
        if rotation.shape != (3, 3) or not np.isfinite(rotation).all() \
                or np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-6 \
                or np.linalg.det(rotation) < 0:
            raise DataError(f'rotation of a similarity is {rotation.tolist()}; '
                            'a proper rotation (3, 3) is needed')
        object.__setattr__(self, 'scale', scale)
        object.__setattr__(self, 'rotation', rotation)
        object.__setattr__(self, 'translation', translation)

    def apply(self, points: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Move points (..., 3), an array or a tensor, to the target frame."""
        linear = self.scale * self.rotation.T
        if isinstance(points, Tensor):
            return points @ torch.from_numpy(linear).to(points) + torch.from_numpy(
                self.translation).to(points)
        return points @ linear + self.translation

    def apply_to_pose(self, source_from_camera: np.ndarray) -> np.ndarray:
        """Give the rigid poses (..., 4, 4) of cameras in the target frame.

        A point at distance d from the camera in the source is at scale * d in the target.
        """
        pose = np.array(source_from_camera, np.float64)
        pose[..., :3, 3] = self.apply(pose[..., :3, 3])
        pose[..., :3, :3] = self.rotation @ pose[..., :3, :3]
        return pose

    def inverse(self) -> 'Similarity':
        """Give source_from_target."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for a YAML file."""
        return {'scale': self.scale, 'rotation': self.rotation.tolist(),
                'translation': self.translation.tolist()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'Similarity':
        """Make a similarity of what `to_dict` gives."""
        if not isinstance(values, dict) or set(values) != {'scale', 'rotation', 'translation'}:
            raise DataError(f'a similarity has scale, rotation and translation, not {values!r}')
        return Similarity(**values)
