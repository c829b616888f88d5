"""
Ways to mend rough poses, compared from the same starts: `nerfmatch bench registration`.

Exact poses are made rough in a known way, mended, and compared with what they were, after the
similarity that brings the centres together. The exact poses make the start and measure the end;
what mends them sees neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import json
import math
from pathlib import Path
import time

from nerfmatch_ros.data.pose_noise import drifting, noisy
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation.document import number, row, text_of, with_section
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
from nerfmatch_ros.mapping.register_poses import (
    checked_steps,
    ODOMETRY,
    register,
    RegistrationConfig,
)
import numpy as np
from rich.console import Console
from rich.table import Table
import torch

HEAD = """\
# Registration of rough poses

`nerfmatch bench registration --images DIR --markdown FILE` writes the section of its data set
here and leaves the others as they are. Exact poses are made rough, mended, and compared with what
they were: mean errors after the similarity that brings the centres together.
"""
LEAST_DEGREES = 0.1  # of a start that is not turned, as a deviation must not be 0
COLUMNS = ('cm before', 'cm after', 'ratio', 'deg before', 'deg after', 'ratio', 'CPU s')


@dataclass(frozen=True)
class RoughStart:
    """A way to make poses rough: 'noise:METRES:DEGREES' or 'drift:M_PER_M:DEG_PER_M'."""

    kind: str
    metres: float
    degrees: float

    @staticmethod
    def parse(text: str) -> 'RoughStart':
        """Read one; raises ConfigError for what is none."""
        try:
            kind, metres, degrees = text.split(':')
            start = RoughStart(kind, float(metres), float(degrees))
        except ValueError:
            start = None
        if start is None or start.kind not in ('noise', 'drift') \
                or not (0 < start.metres < math.inf and 0 <= start.degrees < math.inf):
            raise ConfigError(f"'{text}' says not how poses are rough; give noise:METRES:DEGREES "
                              'such as noise:0.05:3, or drift:0.01:0.5')
        return start

    def __str__(self) -> str:
        """Give the text that `parse` reads."""
        return f'{self.kind}:{self.metres:g}:{self.degrees:g}'

    def told(self, config: RegistrationConfig) -> RegistrationConfig:
        """Give the configuration of who knows how rough the poses are, as to its kind and size.

        Of odometry only that it is one, and what is common, as its datasheet would.
        """
        if self.kind == 'drift':
            return replace(config, odometry=config.odometry or ODOMETRY)
        return replace(config, translation=self.metres, rotation=max(self.degrees, LEAST_DEGREES),
                       odometry=None)

    def make(self, poses: np.ndarray, seed: int) -> np.ndarray:
        """Give rough poses (K, 4, 4) of exact ones."""
        rough = noisy if self.kind == 'noise' else drifting
        return rough(poses, self.metres, math.radians(self.degrees),
                     torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class PoseErrorMeans:
    """Mean errors of K poses after the similarity that aligns their centres."""

    metres: float
    degrees: float

    @staticmethod
    def of(poses: np.ndarray, exact: np.ndarray) -> 'PoseErrorMeans':
        """Compare poses (K, 4, 4) with the exact ones."""
        aligned = align_trajectories(poses, exact).apply_to_pose(poses)
        metres, radians = pose_distance(torch.from_numpy(aligned), torch.from_numpy(exact))
        return PoseErrorMeans(float(metres.mean()), float(torch.rad2deg(radians).mean()))


def bench_registration(
    images: Sequence[PosedImage], starts: Sequence[RoughStart], schedules: Sequence[str],
    config: RegistrationConfig, output: Path, *, seed: int = 0, device: str = 'cpu',
    minutes: float | None = None, say: Callable[[str], None] = lambda text: None,
) -> dict:
    """
    Mend each start by each schedule, such as 'l2g+features'; finished ones in `output` are kept.

    images: with exact poses. Gives the report, which is also in `output/registration.json`.
    """
    exact = np.stack([image.map_from_camera for image in images])
    steps = {schedule: checked_steps(schedule.split('+')) for schedule in schedules}
    report = {'images': len(images), 'seed': seed, 'results': {}}
    for start in starts:
        rough = start.make(exact, seed)
        before = PoseErrorMeans.of(rough, exact)
        results = report['results'][str(start)] = {}
        for schedule, named in steps.items():
            folder = output / str(start).replace(':', '_') / schedule
            path = folder / 'result.json'
            if not path.exists():
                say(f'{start}, {schedule}')
                folder.mkdir(parents=True, exist_ok=True)
                _check_start(folder / 'start.json', images, rough)
                began = time.process_time()
                found = register(
                    [replace(image, map_from_camera=pose)
                     for image, pose in zip(images, rough)],
                    replace(start.told(config), steps=named), work=folder, device=device,
                    minutes=minutes)
                after = PoseErrorMeans.of(
                    np.stack([image.map_from_camera for image in found.images]), exact)
                write_text(path, json.dumps({
                    'before_m': before.metres, 'before_deg': before.degrees,
                    'after_m': after.metres, 'after_deg': after.degrees,
                    'cpu_seconds': time.process_time() - began, 'notes': found.notes}))
            results[schedule] = json.loads(path.read_text(encoding='utf-8'))
    write_text(output / 'registration.json', json.dumps(report, indent=1) + '\n')
    return report


def _check_start(path: Path, images: Sequence[PosedImage], rough: np.ndarray) -> None:
    """Refuse a folder in which another start was being mended."""
    mark = json.dumps([[image.name, pose.round(9).tolist()]
                       for image, pose in zip(images, rough)])
    if path.exists() and path.read_text(encoding='utf-8') != mark:
        raise DataError(f'{path.parent} holds the registration of other poses; '
                        'give another folder or delete it')
    write_text(path, mark)


def cells(result: dict) -> tuple[str, ...]:
    """Write the figures of one start and schedule in the order of COLUMNS."""
    ratios = [result[f'after_{unit}'] / result[f'before_{unit}'] for unit in ('m', 'deg')]
    return (number(result['before_m'], 100), number(result['after_m'], 100), number(ratios[0]),
            number(result['before_deg']), number(result['after_deg']), number(ratios[1]),
            number(result['cpu_seconds']))


def print_registration(report: dict) -> None:
    """Print a row for each start and schedule."""
    table = Table(title=f'{report["images"]} images', title_justify='left')
    for name in ('start', 'registration'):
        table.add_column(name)
    for name in COLUMNS:
        table.add_column(name, justify='right')
    for start, results in report['results'].items():
        for k, (schedule, result) in enumerate(results.items()):
            table.add_row(start if k == 0 else '', schedule, *cells(result),
                          end_section=k == len(results) - 1)
    Console().print(table)


def write_section(report: dict, markdown: Path, name: str, command: str) -> None:
    """Put the table into the section of a data set in a document."""
    lines = [f'## {name}', '', f'{report["images"]} images: `{command}`', '',
             row('start', 'registration', *COLUMNS),
             row(*['---'] * 2, *['---:'] * len(COLUMNS))]
    lines += [row(start, schedule, *cells(result))
              for start, results in report['results'].items()
              for schedule, result in results.items()]
    text = with_section(text_of(markdown), name, '\n' + '\n'.join(lines) + '\n\n', head=HEAD)
    write_text(markdown, text)
