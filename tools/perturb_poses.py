"""
Write a data set with rough poses, as registration is to mend them: noise or drifting odometry.

    python tools/perturb_poses.py --images DIR --output ROUGH --noise 0.05 3
    python tools/perturb_poses.py --images DIR --output ROUGH --drift 0.01 0.5

The pictures are linked, not copied. The first pose of a drift is right, as odometry begins where
the robot knows that it is.
"""

from dataclasses import replace
import math
from pathlib import Path
from typing import Annotated

from nerfmatch_ros.data.pose_noise import drifting, noisy
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.data.transforms_json import frame_entry, write
import numpy as np
import torch
import tyro
from tyro.conf import arg


def perturb(
    images: Annotated[Path, arg(help='folder with transforms.json')],
    output: Annotated[Path, arg(help='new folder')],
    noise: Annotated[tuple[float, float] | None, arg(
        help='metres and degrees, standard deviation of each pose along and about each axis')
    ] = None,
    drift: Annotated[tuple[float, float] | None, arg(
        help='metres per metre and degrees per metre or radian, of odometry')] = None,
    seed: int = 0,
) -> None:
    """Write `output/transforms.json` with the poses of `images` made rough."""
    if (noise is None) == (drift is None):
        raise SystemExit('give either --noise or --drift')
    posed = read_posed_images(images)
    poses = np.stack([image.map_from_camera for image in posed])
    generator = torch.Generator().manual_seed(seed)
    metres, degrees = noise or drift
    make = noisy if noise is not None else drifting
    rough = make(poses, metres, math.radians(degrees), generator)
    output.mkdir(parents=True)
    for path in sorted(images.iterdir()):
        if path.is_dir():
            (output / path.name).symlink_to(path.resolve())
    write(output / 'transforms.json', [
        frame_entry(replace(image, map_from_camera=pose), images)
        for image, pose in zip(posed, rough)])


if __name__ == '__main__':
    tyro.cli(perturb)
