"""
Compare registration by the field, L2G-NeRF and BARF, on data sets with rough poses.

    python tools/perturb_poses.py --images DIR --output ROUGH --noise 0.05 3
    python tools/measure_registration.py --truth DIR --rough ROUGH [ROUGH ...]

Prints a table for each data set: errors after alignment by a similarity, CPU seconds.
"""

from dataclasses import replace
from pathlib import Path
import tempfile
from typing import Annotated

from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.evaluation.registration_bench import bench_registration, table
from nerfmatch_ros.mapping.pose_registration import (
    METHODS,
    PoseRegistrationConfig,
    register_by_field,
)
import numpy as np
import tyro
from tyro.conf import arg

DEFAULTS = PoseRegistrationConfig()


def measure(
    truth: Annotated[Path, arg(help='folder with true poses')],
    rough: Annotated[list[Path], arg(help='folders with the same images and rough poses')],
    methods: tuple[str, ...] = METHODS,
    split: str | None = 'train',
    config: Annotated[PoseRegistrationConfig, arg(name='')] = DEFAULTS,
) -> None:
    """Register every set of rough poses by every method and print the errors."""
    true = {image.name: image.map_from_camera for image in read_posed_images(truth, split)}
    for folder in rough:
        images = [image for image in read_posed_images(folder, split) if image.name in true]

        def register(poses: np.ndarray, method: str, images=images) -> np.ndarray:
            with tempfile.TemporaryDirectory() as work:
                return register_by_field(
                    images, poses, replace(config, method=method),
                    checkpoint=Path(work) / 'registration.checkpoint').poses

        results = bench_registration(
            np.stack([image.map_from_camera for image in images]),
            np.stack([true[image.name] for image in images]),
            {method: lambda poses, method=method: register(poses, method) for method in methods})
        print(f'{folder} ({len(images)} images)\n\n{table(results)}', flush=True)
        for result in results:
            if result.reason:
                print(f'{result.name}: {result.reason}')


if __name__ == '__main__':
    tyro.cli(measure)
