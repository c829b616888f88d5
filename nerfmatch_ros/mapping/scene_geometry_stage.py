"""The stage of a build that trains scene geometry and measures how far it is to be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import json
import logging
from pathlib import Path
from typing import Any

from nerfmatch_ros.config import from_dict, to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.mapping.calibrate_scene_geometry import (
    calibrate_scene_geometry,
    GeometryCalibrationConfig,
)
from nerfmatch_ros.mapping.checkpoint import save_weights
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining, train_scene_geometry
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
from safetensors.torch import load_file

LOG = logging.getLogger(__name__)
WEIGHTS, DESCRIPTION = 'scene_geometry.safetensors', 'scene_geometry.json'


@dataclass(frozen=True)
class SceneGeometryStage:
    """Whether a map gets scene geometry, and how it is trained."""

    enabled: bool = False  # `nerfmatch build --scene-geometry` sets it
    minutes_share: float = 0.3  # of the minutes of the build
    training: SceneGeometryTraining = SceneGeometryTraining()
    calibration: GeometryCalibrationConfig = GeometryCalibrationConfig()

    def __post_init__(self):
        """Refuse a share that leaves one of the trainings without time."""
        if not 0 < self.minutes_share < 1:
            raise ConfigError(f'scene_geometry.minutes_share is {self.minutes_share:g}; '
                              'it must lie between 0 and 1')

    def split_minutes(self, minutes: float | None) -> tuple[float | None, float | None]:
        """Give the minutes that scene geometry takes, and those left for the rest of the build."""
        if minutes is None or not self.enabled:
            return None, minutes
        return self.minutes_share * minutes, (1 - self.minutes_share) * minutes


def train_and_calibrate(
    images: Sequence[PosedImage], held: Sequence[int], stage: SceneGeometryStage, *, work: Path,
    device: str, minutes: float | None, bar: Callable[[str], Callable[[float, dict], None]],
) -> None:
    """Write the network and what is known of it into the folder `work`, unless both are there.

    held: numbers of the images that are kept from training; bar: begins a stage with this name.
    """
    weights, description = work / WEIGHTS, work / DESCRIPTION
    report = bar('scene geometry')
    if description.exists():
        report(1.0, {})
        return
    checkpoint = weights.with_suffix('.checkpoint')
    network = train_scene_geometry(
        [image for k, image in enumerate(images) if k not in held], stage.training,
        checkpoint=checkpoint, minutes=minutes, device=device, report=report)
    save_weights(network, weights)
    report(1.0, {})
    calibration = {}
    try:
        calibration = calibrate_scene_geometry(
            network, [images[k] for k in held], stage.calibration,
            report=bar('trust in geometry')).to_dict()
    except DataError as error:  # the map is worth more than its second localizer
        LOG.warning('scene geometry is not calibrated, and poses that only look right may pass: '
                    '%s', error)
    write_text(description, json.dumps(
        {'config': to_dict(network.config), 'calibration': calibration}))
    checkpoint.unlink(missing_ok=True)


def read_trained(work: Path, device: str) -> dict[str, Any]:
    """Give what `train_and_calibrate` wrote as fields of a SceneMap."""
    described = json.loads((work / DESCRIPTION).read_text())
    network = SceneGeometry(replace(from_dict(
        SceneGeometryConfig, described['config'], DESCRIPTION), pretrained=False))
    network.load_state_dict(load_file(work / WEIGHTS))
    return {'scene_geometry': network.to(device).eval().requires_grad_(False),
            'scene_geometry_calibration': described['calibration']}
