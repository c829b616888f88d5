"""Rough poses mended before a map is made of them: the steps one after the other, resumable.

Steps, in the order that the configuration names them: `l2g` and `barf` move the cameras while a
field is learned; `features` makes them consistent with what photographs share, with odometry and
where the way closes loops. That is the default, being far more exact where there is texture. The
map keeps the frame of the given poses: its origin, its metres, and which way is up.
"""

from collections.abc import Callable, Sequence
import csv
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
import io
import json
import math
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.tum import numbers_from_pose
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
from nerfmatch_ros.mapping.consistent_poses import make_consistent
from nerfmatch_ros.mapping.pose_adjustment import ConsistencyConfig
from nerfmatch_ros.mapping.pose_prior import PosePrior
from nerfmatch_ros.mapping.pose_registration import register_by_field
from nerfmatch_ros.mapping.pose_registration_config import PoseRegistrationConfig
import numpy as np
import torch

BY_FIELD = ('l2g', 'barf')
STEPS = (*BY_FIELD, 'features')
TABLE = 'registration.csv'
ODOMETRY = 0.02  # error of a motion as a share of it, where nothing else is known of a robot's


@dataclass(frozen=True)
class RegistrationConfig:
    """How rough poses are mended before a map is made of them."""

    steps: tuple[str, ...] = ('features',)  # some of l2g, barf, features, in this order
    minutes_share: float = 0.2  # of the minutes of the build, for l2g or barf
    translation: float = 0.1  # metres, standard deviation of a given position along each axis
    rotation: float = 5.0  # degrees, the same of a given orientation
    # Poses that are those of odometry: standard deviation of the error of a motion, metres per
    # metre, radians per metre or radian; null: errors of poses do not hang together.
    odometry: float | None = None
    field: PoseRegistrationConfig = dataclass_field(default_factory=PoseRegistrationConfig)
    features: ConsistencyConfig = dataclass_field(default_factory=ConsistencyConfig)

    def __post_init__(self):
        """Refuse what registers nothing."""
        checked_steps(self.steps)
        if not 0 < self.minutes_share < 1:
            raise ConfigError(f'registration.minutes_share is {self.minutes_share:g}; '
                              'it must lie between 0 and 1')
        for name in ('translation', 'rotation', 'odometry'):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f'registration.{name} is {value:g}; give a positive number')


def checked_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Give the steps of a registration, or raise ConfigError for what is none."""
    unknown = [step for step in steps if step not in STEPS]
    if unknown or not steps or len(set(steps)) < len(steps):
        raise ConfigError(f"registration by '{'+'.join(steps)}': use some of "
                          f"{', '.join(STEPS)}, each once, joined by '+'")
    return tuple(steps)


@dataclass(frozen=True, eq=False)
class Registered:
    """Poses of the photographs, and how they came about."""

    images: list[PosedImage]  # with registered poses
    notes: dict  # plain values, for the map


def register(
    images: Sequence[PosedImage], config: RegistrationConfig, *, work: Path, device: str = 'cpu',
    minutes: float | None = None,
    bar: Callable[[str], Callable[[float, dict], None]] = lambda name: lambda share, numbers: None,
) -> Registered:
    """Mend the poses of photographs; finished steps are found in the folder `work`.

    images: in the order of their names, all with rough poses, one frame, metres. minutes: of each
    step by the field. bar: begins the progress bar of a step. Writes `work/registration.csv`.
    """
    given = np.stack([image.map_from_camera for image in images])
    poses, notes = given, {'steps': '+'.join(config.steps)}
    for number, step in enumerate(config.steps):
        path = work / f'registration_{number}_{step}.json'
        report = bar(f'registration, {step}')
        if not path.exists():
            found, numbers = _run(step, images, given, poses, config, device=device,
                                  minutes=minutes, work=work, report=report)
            write_text(path, json.dumps({'poses': found.tolist(), 'numbers': numbers}))
        stored = json.loads(path.read_text(encoding='utf-8'))
        poses, notes[step] = np.array(stored['poses']), stored['numbers']
        report(1.0, {'moved, cm': 100 * notes[step]['moved_median_m']})
    write_text(work / TABLE, _table(images, given, poses))
    return Registered(
        [replace(image, map_from_camera=pose) for image, pose in zip(images, poses)],
        {**notes, **_moved(given, poses), 'up': 'z of the given poses',
         'given_from_registered_scale': align_trajectories(poses, given, robust=True).scale})


def _run(
    step: str, images: Sequence[PosedImage], given: np.ndarray, poses: np.ndarray,
    config: RegistrationConfig, *, device: str, minutes: float | None, work: Path,
    report: Callable[[float, dict], None],
) -> tuple[np.ndarray, dict]:
    """Give poses (K, 4, 4) after a step, and what is worth telling of it."""
    prior = PosePrior(given, config.translation, math.radians(config.rotation),
                      config.odometry, in_order(images))
    if step == 'features':
        found = make_consistent(images, prior, start=poses, config=config.features,
                                report=report)
    else:
        found = register_by_field(
            images, poses, replace(config.field, method=step), prior=prior, device=device,
            minutes=minutes, checkpoint=work / f'registration_{step}.checkpoint', report=report)
    return found.poses, {**found.numbers, **_moved(poses, found.poses)}


def in_order(images: Sequence[PosedImage]) -> np.ndarray:
    """Number images (K,) along the way: by their stamps, else as they are given."""
    stamps = [image.stamp for image in images]
    if None in stamps:
        return np.arange(len(images))
    return np.argsort(np.array(stamps), kind='stable')


def _moved(before: np.ndarray, after: np.ndarray) -> dict:
    metres, radians = pose_distance(torch.from_numpy(before), torch.from_numpy(after))
    return {'moved_median_m': float(metres.median()), 'moved_most_m': float(metres.max()),
            'moved_median_deg': float(torch.rad2deg(radians).median())}


def _table(images: Sequence[PosedImage], given: np.ndarray, poses: np.ndarray) -> str:
    """Give the text of registration.csv: each photograph's pose, given and registered."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    numbers = ('tx', 'ty', 'tz', 'qx', 'qy', 'qz', 'qw')
    writer.writerow(['name', 'stamp', *numbers, *(f'given_{name}' for name in numbers),
                     'moved_m', 'moved_deg'])
    for image, before, after in zip(images, given, poses):
        metres, radians = pose_distance(torch.from_numpy(before), torch.from_numpy(after))
        values = [*numbers_from_pose(after), *numbers_from_pose(before), float(metres),
                  math.degrees(radians)]
        stamp = '' if image.stamp is None else f'{image.stamp:.9f}'
        writer.writerow([image.name, stamp, *(f'{value:.9f}' for value in values)])
    return text.getvalue()
