"""`nerfmatch bench`: how long each stage of a localization takes on a map and its photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.evaluation.bench_report import stage_report
from nerfmatch_ros.evaluation.machine_rates import measure_rates
from nerfmatch_ros.evaluation.prior_poses import prior_poses
from nerfmatch_ros.evaluation.refinement_bench import evenly_chosen
from nerfmatch_ros.evaluation.stage_bench import (
    bench_stages,
    check_queries,
    OURS,
    Query,
    Way,
)
from nerfmatch_ros.evaluation.stage_work import count_work
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
import numpy as np

STRAIGHTFORWARD = 'straightforward'
WITHOUT_PRIOR = 'straightforward without prior'


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    limit: int | None = None  # at most that many images, spread evenly
    repeats: int = 3  # of every image in every way
    track: bool = False  # with a prior, as between two frames of a video


class WithoutPrior:
    """A way that searches the whole map whatever is known before."""

    def __init__(self, way: Way):
        self._way = way

    @property
    def clock(self) -> Any:
        """The clock of the way itself."""
        return self._way.clock

    @clock.setter
    def clock(self, clock: Any) -> None:
        self._way.clock = clock

    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Localize without the prior."""
        return self._way.localize(image)


def bench(
    localizer: Any, images: Sequence[PosedImage], config: BenchConfig | None = None, *,
    straightforward: Way | None = None,
) -> dict:
    """Measure a `Localizer`, and in turns with it the plain pipeline; give the report.

    images: all of the split, in their order and with their poses; the limit chooses among them.
    A tracked image is measured against the plain pipeline with the same prior and without.
    """
    config = config or BenchConfig()
    check_queries([Query(image) for image in images])
    priors, words = [None] * len(images), ''
    if config.track:
        priors, words = prior_poses(images, localizer.scene_map.extent)
    queries = evenly_chosen([Query(*pair) for pair in zip(images, priors)], config.limit)
    ways = {OURS: localizer}
    if straightforward is not None:
        ways[STRAIGHTFORWARD] = straightforward
        if config.track:
            ways[WITHOUT_PRIOR] = WithoutPrior(straightforward)
    device = str(localizer.device)
    machine = measure_rates(device)
    runs = bench_stages(ways, queries, repeats=config.repeats, device=device)
    work = {name: count_work(way, queries if name == OURS else queries[:1], machine)
            for name, way in ways.items()}
    return stage_report(
        runs, mode='tracked' if config.track else 'global', prior=words, config=localizer.config,
        map_sha256=localizer.map_sha256, work=work, machine=machine.to_dict(),
        precision=str(getattr(localizer, 'precision', '')).removeprefix('torch.'))
