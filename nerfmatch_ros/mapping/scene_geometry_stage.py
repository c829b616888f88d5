"""The stages of a build that train scene geometry and measure how far it is to be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import json
import logging
from pathlib import Path

from nerfmatch_ros.config import from_dict, to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.mapping.calibrate_scene_geometry import (
    calibrate_with_map,
    GeometryCalibrationConfig,
)
from nerfmatch_ros.mapping.checkpoint import save_weights
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining, train_scene_geometry
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap
from safetensors.torch import load_file

LOG = logging.getLogger(__name__)
WEIGHTS, NETWORK = 'scene_geometry.safetensors', 'scene_geometry.json'
CALIBRATION = 'scene_geometry_calibration.json'
Bar = Callable[[str], Callable[[float, dict], None]]  # begins a stage of this name


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


def train_stage(
    images: Sequence[PosedImage], held: Sequence[int], stage: SceneGeometryStage, *, work: Path,
    device: str, minutes: float | None, bar: Bar,
) -> None:
    """Write the network and its configuration into the folder `work`, unless both are there.

    held: numbers of the images that are kept from training.
    """
    weights, description = work / WEIGHTS, work / NETWORK
    report = bar('scene geometry')
    if not description.exists():
        checkpoint = weights.with_suffix('.checkpoint')
        network = train_scene_geometry(
            [image for k, image in enumerate(images) if k not in held], stage.training,
            checkpoint=checkpoint, minutes=minutes, device=device, report=report)
        save_weights(network, weights)
        write_text(description, json.dumps(to_dict(network.config)))
        checkpoint.unlink(missing_ok=True)
    report(1.0, {})


def with_scene_geometry(
    scene_map: SceneMap, held_out: Sequence[PosedImage], stage: SceneGeometryStage, *, work: Path,
    bar: Bar,
) -> SceneMap:
    """Give a map the network that `train_stage` left in `work`, and what is known of it.

    held_out: the photographs that the network did not learn; the map's field shows more. What was
    measured is written into `work`, and read from there if it is there.
    """
    config = from_dict(SceneGeometryConfig, json.loads((work / NETWORK).read_text()), NETWORK)
    network = SceneGeometry(replace(config, pretrained=False))
    network.load_state_dict(load_file(work / WEIGHTS))
    network.to(scene_map.words.device).eval().requires_grad_(False)
    path, report = work / CALIBRATION, bar('trust in geometry')
    if not path.exists():
        calibration = {}
        try:
            calibration = calibrate_with_map(
                scene_map, network, held_out, stage.calibration, report=report).to_dict()
        except DataError as error:  # the map is worth more than its second localizer
            LOG.warning('scene geometry is not calibrated, and poses that only look right may '
                        'pass: %s', error)
        write_text(path, json.dumps(calibration))
    report(1.0, {})
    return replace(scene_map, scene_geometry=network,
                   scene_geometry_calibration=json.loads(path.read_text()))
