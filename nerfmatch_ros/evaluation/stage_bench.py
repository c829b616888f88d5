"""Times every stage of a localization, and several ways of doing it in turns on the same images.

A way is anything that localizes and has a clock: a `Localizer`, or the `Straightforward` pipeline.
In every repeat each image is localized in each way before the next image, who is first alternates,
and one localization in each way comes before all of them: load and clock of the machine change
alike for all. Times are medians over images of the median over repeats.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.stage_recorder import StageCost, StageRecorder
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
import numpy as np

DECODE, TOTAL, OTHER = 'decode', 'total', 'other'
# In this order; what a map's way does not do is left out.
STAGES = (DECODE, 'picture', 'encode', 'retrieval', 'reference', 'match', 'fine', 'pnp', 'refine')
OURS = 'localizer'


class Way(Protocol):
    """What can be measured."""

    clock: Any

    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Estimate the pose of an image."""


@dataclass(frozen=True, eq=False)
class Query:
    """An image to localize, and the rough pose that is known before."""

    image: PosedImage  # with its true pose, which no way sees
    prior: np.ndarray | None = None  # (4, 4) map_from_camera


@dataclass(frozen=True, eq=False)
class Run:
    """One localization of one image in one way."""

    way: str
    image: PosedImage  # with its true pose
    estimate: PoseEstimate
    stages: dict[str, StageCost]  # 'total' among them


def bench_stages(
    ways: Mapping[str, Way], queries: Sequence[Query], *, repeats: int = 3, device: str = 'cpu',
) -> list[Run]:
    """Localize every image `repeats` times in every way, in turns, from file to pose."""
    from rich.console import Console
    from rich.progress import track
    if repeats < 1:
        raise ConfigError(f'{repeats} repeats measure nothing; give at least 1')
    check_queries(queries)
    for way in ways.values():
        run_once(way, queries[0], StageRecorder(device))
    runs = []
    turns = [(repeat, index) for repeat in range(repeats) for index in range(len(queries))]
    for repeat, index in track(turns, description='measuring', transient=True,
                               console=Console(stderr=True)):
        names = list(ways)
        for name in names if (repeat + index) % 2 == 0 else reversed(names):
            recorder = StageRecorder(device)
            estimate = run_once(ways[name], queries[index], recorder)
            runs.append(Run(name, queries[index].image, estimate, recorder.take()))
    return [replace(run, stages=_without_outermost(run.stages)) for run in runs]


def run_once(way: Way, query: Query, clock: Any) -> PoseEstimate:
    """Localize an image with a clock that sees every stage, from reading its file on."""
    kept, way.clock = way.clock, clock
    try:
        with clock.stage(TOTAL):
            with clock.stage(DECODE):
                pixels = query.image.rgb()
            return way.localize(
                replace(query.image, pixels=pixels, map_from_camera=None, depth=None,
                        depth_path=None), query.prior)
    finally:
        way.clock = kept


def check_queries(queries: Sequence[Query]) -> None:
    """Refuse images that cannot be scored."""
    if not queries:
        raise DataError('there are no images to localize')
    unknown = [query.image.name for query in queries if query.image.map_from_camera is None]
    if unknown:
        raise DataError(f'{len(unknown)} of {len(queries)} images have no true pose, the first is '
                        f'{unknown[0]}; choose another split')


def _without_outermost(stages: Mapping[str, StageCost]) -> dict[str, StageCost]:
    return {path.removeprefix(f'{TOTAL}/'): cost for path, cost in stages.items()}


def medians(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Give for each stage of one way wall and CPU seconds and runs, in the order of `STAGES`.

    A stage that an image did not need counts with 0 seconds there. 'other' is what lies within
    the total and in no stage.
    """
    found = {path for run in runs for path in run.stages}
    rows = sorted(found - {TOTAL}, key=_place)
    images: dict[str, list[Run]] = {}
    for run in runs:
        images.setdefault(run.image.name, []).append(run)
    table = {path: _median(images, lambda run, path=path: run.stages.get(
        path, StageCost(0.0, 0.0, 0))) for path in rows}
    table[OTHER] = _median(images, _other)
    table[TOTAL] = _median(images, lambda run: run.stages[TOTAL])
    return table


def accuracy(runs: Sequence[Run]) -> dict[str, float]:
    """Give the median errors of one way over its images; who has no pose is infinitely wrong."""
    first = list({run.image.name: run for run in runs}.values())
    errors = metrics.pose_errors([run.estimate.map_from_camera for run in first],
                                 [run.image.map_from_camera for run in first])
    return {
        'median_translation_m': metrics.median(errors.translation),
        'median_rotation_deg': metrics.median(errors.rotation),
        'without_pose': float(np.mean([run.estimate.map_from_camera is None for run in first]))}


def sources(runs: Sequence[Run]) -> dict[str, int]:
    """Count the images of one way by what they were matched with, in words."""
    return dict(Counter(run.estimate.source
                        for run in {run.image.name: run for run in runs}.values()))


def ratios(
    by_way: Mapping[str, Mapping[str, Mapping[str, float]]], way: str = OURS,
) -> dict[str, dict[str, float]]:
    """Say how many times longer every other way takes: medians of the totals, wall and CPU."""
    own = by_way[way][TOTAL]
    return {name: {kind: table[TOTAL][kind] / own[kind] for kind in ('wall', 'cpu')}
            for name, table in by_way.items() if name != way}


def _median(images: Mapping[str, list[Run]], cost_of) -> dict[str, float]:
    """Take the median over repeats, then over images, of a StageCost."""
    costs = [[cost_of(run) for run in repeats] for repeats in images.values()]
    return {kind: float(np.median([np.median([getattr(cost, kind) for cost in repeats])
                                   for repeats in costs])) for kind in ('wall', 'cpu', 'runs')}


def _other(run: Run) -> StageCost:
    named = [cost for path, cost in run.stages.items() if path != TOTAL and '/' not in path]
    total = run.stages[TOTAL]
    return StageCost(total.wall - sum(cost.wall for cost in named),
                     total.cpu - sum(cost.cpu for cost in named))


def _place(path: str) -> tuple:
    return tuple((STAGES.index(name) if name in STAGES else len(STAGES), name)
                 for name in path.split('/'))
