"""Measures whether scene geometry knows its own place: trust at home and in pictures of others.

    python tools/measure_geometry_trust.py --images redkitchen --elsewhere euroc_v101 herzjesu \
        --steps 700 --output work/kitchen

Trains on the photographs of split 'train' but for those that a build holds out, calibrates with
these, and looks at the photographs of split 'test' and at all photographs of the other data sets.
The cameras of those are given as they are, and nothing says that they are of elsewhere.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
import json
import logging
from pathlib import Path
import sys

from nerfmatch_ros.config import choose_device
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.files import write_text
from nerfmatch_ros.localization.geometry_trust import (
    GeometryCalibration,
    GeometryTrust,
    TRUSTED,
)
from nerfmatch_ros.localization.rigid_motion import distance
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.mapping.calibrate_scene_geometry import calibrate_scene_geometry
from nerfmatch_ros.mapping.held_out import held_out
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining, train_scene_geometry
from nerfmatch_ros.scene_geometry import SceneGeometry
import numpy as np

MOST_HELD_OUT = 12  # as in a build


def main() -> int:
    """Train, calibrate, look, print and write what was trusted."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--images', type=Path, required=True, help='data set of the place')
    parser.add_argument('--elsewhere', type=Path, nargs='+', required=True, help='other data sets')
    parser.add_argument('--output', type=Path, required=True,
                        help='folder of the training, which goes on there, and of trust.json')
    parser.add_argument('--steps', type=int, default=SceneGeometryTraining.steps)
    parser.add_argument('--device', default='auto')
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    images = read_posed_images(options.images, 'train')
    held = [images[k] for k in held_out(len(images), MOST_HELD_OUT)]
    names = {image.name for image in held}
    options.output.mkdir(parents=True, exist_ok=True)
    network = train_scene_geometry(
        [image for image in images if image.name not in names],
        SceneGeometryTraining(steps=options.steps), checkpoint=options.output / 'checkpoint',
        device=choose_device(options.device))
    calibration = calibrate_scene_geometry(network, held)
    figures = {'limit_m': calibration.limit_m, 'covariance_scale': calibration.covariance_scale,
               'here': trust_here(network, calibration, read_posed_images(options.images, 'test'))}
    for folder in options.elsewhere:
        figures[folder.resolve().name] = trust_elsewhere(
            network, calibration, read_posed_images(folder, None))
    write_text(options.output / 'trust.json', json.dumps(figures, indent=1) + '\n')
    print(json.dumps(figures, indent=1))
    return 0


def trust_here(
    network: SceneGeometry, calibration: GeometryCalibration, images: Sequence[PosedImage],
) -> dict[str, float]:
    """Give shares of photographs with known poses: trusted, right, trusted though wrong."""
    trusted, right = [], []
    reader, trust = GeometryReader(network), GeometryTrust(calibration)
    for image in images:
        found = reader.look(replace(image, map_from_camera=None))
        trusted.append(trust.probability(found.evidence) >= TRUSTED)
        metres, radians = (np.inf, np.inf) if found.map_from_camera is None else distance(
            found.map_from_camera, image.map_from_camera)
        right.append(metres <= calibration.limit_m and radians <= calibration.limit_rad)
    trusted, right = np.array(trusted), np.array(right)
    return {'images': len(images), 'trusted': trusted.mean(), 'right': right.mean(),
            'trusted_but_wrong': (trusted & ~right).mean()}


def trust_elsewhere(
    network: SceneGeometry, calibration: GeometryCalibration, images: Sequence[PosedImage],
) -> dict[str, float]:
    """Give the share of photographs of another place that are trusted, and the highest trust."""
    reader, trust = GeometryReader(network), GeometryTrust(calibration)
    sure = np.array([trust.probability(reader.look(image).evidence) for image in images])
    return {'images': len(images), 'trusted': float((sure >= TRUSTED).mean()),
            'highest': float(sure.max())}


if __name__ == '__main__':
    sys.exit(main())
