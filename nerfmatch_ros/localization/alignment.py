"""The result of aligning a pose with a picture, by whatever a refiner compares."""

from dataclasses import dataclass
import math

import numpy as np


@dataclass(frozen=True, eq=False)
class Alignment:
    """The pose that a picture was aligned to, or the reason why there is none."""

    map_from_camera: np.ndarray | None  # (4, 4) float64, metres
    reason: str  # why there is no pose; '' with a pose
    covariance: np.ndarray | None = None  # (6, 6) x y z rx ry rz, map axes, unscaled
    residual_before: float = math.nan  # median of e / sqrt(3) at the start, colour in [0, 1]
    residual_after: float = math.nan  # the same at the end
    correlation: float = math.nan  # of picture and points at the end, mean of the channels
    overlap: float = math.nan  # share of the points inside the picture at the end
    gain: tuple[float, ...] = ()  # (3,) picture = gain * point + bias
    points: int = 0  # inside the picture at the end
    iterations: int = 0  # steps tried
    moved: tuple[float, float] = (math.nan, math.nan)  # metres and radians from the start
