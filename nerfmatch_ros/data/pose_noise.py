"""Poses made rough, to measure what mends them: independent errors, or those of odometry."""

from nerfmatch_ros.data.simulated_odometry import simulate_odometry
from nerfmatch_ros.geometry.pose import so3_exp
import numpy as np
import torch


def noisy(
    poses: np.ndarray, metres: float, radians: float, generator: torch.Generator,
) -> np.ndarray:
    """Give poses (K, 4, 4) with normal errors: of the centre along, of the camera about each axis.

    metres, radians: standard deviations.
    """
    draws = torch.randn(len(poses), 6, generator=generator, dtype=torch.float64)
    rough = np.array(poses, np.float64)
    rough[:, :3, 3] += metres * draws[:, :3].numpy()
    rough[:, :3, :3] = rough[:, :3, :3] @ so3_exp(radians * draws[:, 3:]).numpy()
    return rough


def drifting(
    poses: np.ndarray, metres: float, radians: float, generator: torch.Generator,
) -> np.ndarray:
    """Give poses (K, 4, 4) as odometry that began at the first one measures this way.

    metres: per metre; radians: per metre or radian; see `simulate_odometry`.
    """
    odom_from_camera, map_from_odom = simulate_odometry(
        poses, metres, generator, turn_noise=radians)
    return map_from_odom @ odom_from_camera
