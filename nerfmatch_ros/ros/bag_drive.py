"""
A folder of posed images as the bag of a robot that drove there: `nerfmatch bag`.

The robot sees the images one after the other in the order of their names, 1 / rate seconds apart,
whatever stamps they have: a photographer's pauses are of no interest, and the speed stays that of
the rate. Between the images it moves straight from pose to pose. Its odometry drifts; the true
poses are on a topic of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.simulated_odometry import simulate_odometry
from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros.bag import BagTopic, BagWriter
import numpy as np
import torch

MAP, ODOM, BASE, CAMERA = 'map', 'odom', 'base_link', 'camera_optical_frame'
IMAGE_TOPIC, INFO_TOPIC = '/camera/image_raw', '/camera/camera_info'
TRUTH_TOPIC = '/ground_truth/pose'
TOPICS = (
    BagTopic('/tf_static', messages.TRANSFORMS, latched=True, depth=1),
    BagTopic('/tf', messages.TRANSFORMS, depth=100),
    BagTopic(INFO_TOPIC, messages.CAMERA_INFO),
    BagTopic(IMAGE_TOPIC, messages.IMAGE),
    BagTopic(TRUTH_TOPIC, messages.POSE),
)
START_NS = 1_700_000_000 * 10**9  # of the first image; the same input gives the same bag
ODOMETRY_RATE = 50.0  # Hz, at least
BEFORE, AFTER = 0.5, 1.0  # seconds that the robot stands before the first and after the last image
# The camera looks forward, 0.1 m ahead of the base and 0.3 m above it. Optical axes: x right,
# y down, z forward; those of the base: x forward, y left, z up.
BASE_FROM_CAMERA = np.array([
    [0.0, 0.0, 1.0, 0.1],
    [-1.0, 0.0, 0.0, 0.0],
    [0.0, -1.0, 0.0, 0.3],
    [0.0, 0.0, 0.0, 1.0],
])
# Above these the localizer's default parameters doubt the odometry.
DOUBTFUL_SPEED, DOUBTFUL_TURN = 5.0, 3.0  # m/s, rad/s

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriveOptions:
    """How the robot drives past the images."""

    rate: float = 10.0  # images per second
    odometry: float = 0.01  # error: metres per metre, radians per metre or radian; 0 is perfect
    seed: int = 0  # of the drift and of where odometry begins

    def __post_init__(self):
        """Refuse what makes no drive."""
        if not (math.isfinite(self.rate) and 0 < self.rate <= 1000):
            raise ConfigError(f'--rate {self.rate:g}: images per second, above 0, at most 1000')
        if not (math.isfinite(self.odometry) and 0 <= self.odometry <= 1):
            raise ConfigError(f'--odometry {self.odometry:g}: the error as a share of the motion, '
                              '0 (perfect) to 1')


@dataclass(frozen=True)
class DriveSummary:
    """What was written."""

    images: int
    seconds: float  # from the first image to the last
    metres: float  # of the way
    fastest_m_s: float
    fastest_rad_s: float
    drift_m: float  # how far off odometry is at the end, had it been right at the start
    drift_rad: float


def write_drive(
    images: Sequence[PosedImage], output: Path, options: DriveOptions | None = None,
) -> DriveSummary:
    """
    Write the bag, whole or not at all, and say what is in it.

    An image without a pose has no ground truth; the robot passes it on its way between the others.
    """
    options = options or DriveOptions()
    interval = round(1e9 / options.rate)
    image_stamps = START_NS + interval * np.arange(len(images), dtype=np.int64)
    way = _way(images, image_stamps)
    stamps = _odometry_stamps(image_stamps, interval, options.rate)
    map_from_base = way.at(np.clip(stamps, way.stamps_ns[0], way.stamps_ns[-1]))
    odom_from_base, map_from_odom = simulate_odometry(
        map_from_base, options.odometry, torch.Generator().manual_seed(options.seed))
    with BagWriter(output) as bag:
        for topic in TOPICS:
            bag.add_topic(topic)
        first = int(stamps[0])
        bag.write('/tf_static', first,
                  messages.make_transforms(BASE_FROM_CAMERA, first, BASE, CAMERA))
        of_image = {int(stamp): image for stamp, image in zip(image_stamps, images)}
        for stamp, pose in zip(stamps.tolist(), odom_from_base):
            bag.write('/tf', stamp, messages.make_transforms(pose, stamp, ODOM, BASE))
            if stamp in of_image:
                _write_image(bag, stamp, of_image[stamp])
    return _summary(len(images), stamps, map_from_base, map_from_odom @ odom_from_base)


def _write_image(bag: BagWriter, stamp: int, image: PosedImage):
    bag.write(INFO_TOPIC, stamp, messages.make_camera_info(image.camera, stamp, CAMERA))
    bag.write(IMAGE_TOPIC, stamp, messages.make_image(image.rgb(), stamp, CAMERA))
    if image.map_from_camera is not None:
        bag.write(TRUTH_TOPIC, stamp, messages.make_pose(_base_pose(image), stamp, MAP))


def _base_pose(image: PosedImage) -> np.ndarray:
    return image.map_from_camera @ np.linalg.inv(BASE_FROM_CAMERA)


def _way(images: Sequence[PosedImage], stamps: np.ndarray) -> Trajectory:
    """Give map_from_base where it is known."""
    known = [(int(stamp), _base_pose(image)) for stamp, image in zip(stamps, images)
             if image.map_from_camera is not None]
    if not known:
        raise DataError(f'none of {len(images)} images has a pose; a drive needs at least one')
    return Trajectory.of(known)


def _odometry_stamps(image_stamps: np.ndarray, interval: int, rate: float) -> np.ndarray:
    """Give stamps (N,) that hold those of the images, and more between, before and after."""
    steps = max(1, math.ceil(ODOMETRY_RATE / rate))
    parts = interval * np.arange(steps, dtype=np.int64) // steps
    between = (image_stamps[:-1, None] + parts).ravel()
    period = round(1e9 / ODOMETRY_RATE)
    before = np.arange(round(BEFORE * ODOMETRY_RATE), 0, -1, dtype=np.int64)
    after = np.arange(1, round(AFTER * ODOMETRY_RATE) + 1, dtype=np.int64)
    return np.concatenate((image_stamps[0] - period * before, between, image_stamps[-1:],
                           image_stamps[-1] + period * after))


def _summary(
    count: int, stamps: np.ndarray, way: np.ndarray, measured: np.ndarray,
) -> DriveSummary:
    metres, radians = (distance.numpy() for distance in pose_distance(
        torch.from_numpy(way[:-1]), torch.from_numpy(way[1:])))
    seconds = np.diff(stamps) / 1e9
    drift = pose_distance(torch.from_numpy(way[-1]), torch.from_numpy(measured[-1]))
    speed, turn = float((metres / seconds).max()), float((radians / seconds).max())
    if speed > DOUBTFUL_SPEED or turn > DOUBTFUL_TURN:
        log.warning(
            'between some images the robot moves at %.1f m/s or %.1f rad/s; the localizer doubts '
            'odometry above %g m/s or %g rad/s, so raise max_speed and max_turn_rate or lower '
            '--rate', speed, turn, DOUBTFUL_SPEED, DOUBTFUL_TURN)
    return DriveSummary(
        images=count, seconds=float(stamps[-1] - stamps[0]) / 1e9 - BEFORE - AFTER,
        metres=float(metres.sum()), fastest_m_s=speed, fastest_rad_s=turn,
        drift_m=float(drift[0]), drift_rad=float(drift[1]))
