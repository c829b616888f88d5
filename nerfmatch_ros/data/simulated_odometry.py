"""
Wheel odometry as a robot would have measured it on a known way: smooth, drifting, seeded.

The measured motion is the true one, wrong by a share that changes slowly along the way. Summed up,
that makes a drift like that of real odometry: nothing jumps, and the error grows without bound.
"""

from nerfmatch_ros.geometry.pose import inverse, so3_exp, so3_log, transform
import numpy as np
import torch

CORRELATION = 1.0  # metres plus radians of motion along which the wrong share stays about the same
START_RANGE = 5.0  # metres; the odometry's origin lies anywhere within, turned by any angle


def simulate_odometry(
    map_from_base: np.ndarray, noise: float, generator: torch.Generator,
    turn_noise: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Give odom_from_base (N, 4, 4) of a way (N, 4, 4), and map_from_odom (4, 4) at its start.

    noise: standard deviation of the error of a short motion: metres per metre along each axis,
    and radians about each axis per metre or radian, whichever is more; 0 is perfect. It does not
    depend on how finely the way is sampled. turn_noise: instead of `noise`, for the radians.
    """
    way = torch.from_numpy(np.asarray(map_from_base, np.float64))
    start = _random_start(generator)
    motions = inverse(way[:-1]) @ way[1:]
    metres = torch.linalg.vector_norm(motions[:, :3, 3], dim=-1)
    radians = torch.linalg.vector_norm(so3_log(motions[:, :3, :3]), dim=-1)
    share = noise * _slow_noise(metres + radians, generator)
    if turn_noise is not None and noise > 0:
        share[:, 3:] *= turn_noise / noise
    error = transform(so3_exp(share[:, 3:] * torch.maximum(metres, radians)[:, None]),
                      share[:, :3] * metres[:, None])
    poses = [inverse(start) @ way[0]]
    for motion in motions @ error:
        poses.append(poses[-1] @ motion)
    return torch.stack(poses).numpy(), start.numpy()


def _random_start(generator: torch.Generator) -> torch.Tensor:
    x, y, turn = torch.rand(3, generator=generator, dtype=torch.float64) * 2 - 1
    zero = torch.zeros((), dtype=torch.float64)
    return transform(so3_exp(torch.stack((zero, zero, turn * torch.pi))),
                     START_RANGE * torch.stack((x, y, zero)))


def _slow_noise(motion: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Give normal noise (N, 6) of unit variance that forgets itself over CORRELATION of motion."""
    keep = torch.exp(-motion / CORRELATION)
    # Scaled so that the variance stays 1 after a step of any length (Ornstein-Uhlenbeck).
    renew = torch.sqrt(1 - keep * keep)
    fresh = torch.randn(len(motion) + 1, 6, generator=generator, dtype=torch.float64)
    values = [fresh[0]]
    for i in range(len(motion)):
        values.append(keep[i] * values[-1] + renew[i] * fresh[i + 1])
    return torch.stack(values[1:]) if len(motion) else fresh[:0]
