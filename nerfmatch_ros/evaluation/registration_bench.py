"""What registration makes of rough poses: errors against the true poses, stage by stage.

Photographs say nothing about where the whole lies and how large it is, so every set of poses is
first aligned to the true ones by the similarity between the camera centres, as is usual (BARF,
L2G-NeRF). The truth measures and nothing else: a stage is handed rough poses only. A stage that
gives up has infinite errors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import math
import time

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation.document import number, row
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
import numpy as np
import torch

ROUGH = 'rough'  # the stage before any other
COLUMNS = ('poses', 'mean cm', 'mean deg', 'median cm', 'median deg', 'worst cm', 'worst deg',
           'of before', 'CPU s')


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors of K poses after alignment to the true ones."""

    metres: np.ndarray  # (K,) distance of the centres
    radians: np.ndarray  # (K,) angle between the orientations
    scale: float  # true metres per metre of the poses; nan where there are none

    def summary(self) -> dict[str, float]:
        """Give mean, median and worst in centimetres and degrees."""
        centimetres, degrees = 100 * self.metres, np.degrees(self.radians)
        return {f'{name}_{unit}': float(how(values))
                for unit, values in (('cm', centimetres), ('deg', degrees))
                for name, how in (('mean', np.mean), ('median', np.median), ('worst', np.max))}


@dataclass(frozen=True, eq=False)
class StageResult:
    """What a stage made of the poses."""

    name: str
    errors: PoseErrors
    cpu_seconds: float  # of this process; nan where nothing was done
    reason: str = ''  # why it has no poses


def pose_errors(poses: np.ndarray, true: np.ndarray) -> PoseErrors:
    """Align poses (K, 4, 4) to the true ones by the similarity of their centres and compare."""
    similarity = align_trajectories(poses, true)
    metres, radians = pose_distance(
        torch.from_numpy(similarity.apply_to_pose(poses)), torch.from_numpy(np.array(true)))
    return PoseErrors(metres.numpy(), radians.numpy(), similarity.scale)


def bench_registration(
    rough: np.ndarray, true: np.ndarray,
    stages: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    report: Callable[[StageResult], None] = lambda result: None,
) -> list[StageResult]:
    """Run each stage on the same rough poses (K, 4, 4) and measure what it gives.

    stages: from rough to registered poses (K, 4, 4), by name. report: called with each result.
    """
    results = [StageResult(ROUGH, pose_errors(rough, true), math.nan)]
    report(results[0])
    for name, register in stages.items():
        begun, reason = time.process_time(), ''
        try:
            poses = register(np.array(rough))
            spent = time.process_time() - begun
            errors = pose_errors(poses, true)
        except DataError as error:
            spent, reason = time.process_time() - begun, str(error)
            errors = PoseErrors(*np.full((2, len(true)), np.inf), math.nan)
        results.append(StageResult(name, errors, spent, reason))
        report(results[-1])
    return results


def table(results: list[StageResult]) -> str:
    """Write a Markdown table; 'of before' is the mean error as a share of the rough poses'."""
    before = results[0].errors.summary()
    lines = [row(*COLUMNS), row(*['---'] * len(COLUMNS))]
    for result in results:
        now = result.errors.summary()
        shares = [now[key] / before[key] if before[key] > 0 else math.nan
                  for key in ('mean_cm', 'mean_deg')]
        lines.append(row(
            result.name, *(_written(now[f'{name}_{unit}']) for name in ('mean', 'median', 'worst')
                           for unit in ('cm', 'deg')),
            ' / '.join(_written(share) for share in shares), _written(result.cpu_seconds)))
    return '\n'.join(lines) + '\n'


def _written(value: float) -> str:
    return number(value if math.isfinite(value) else None)
