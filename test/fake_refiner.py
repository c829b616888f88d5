"""A localizer that refines poses by known shares of their error, on a clock of its own."""

from dataclasses import dataclass
import math
from types import SimpleNamespace

from fake_localizer import estimate, FakeLocalizer, moved, queries
from nerfmatch_ros.evaluation import refinement_bench
from nerfmatch_ros.evaluation.refinement_bench import bench_refinement, summarize
from nerfmatch_ros.geometry.pose import interpolate, pose_distance
import numpy as np
import torch

# What is left of the error after a step; 'inerf' has a pose only from near by.
LEFT = {'match': 0.5, 'views': 0.25, 'photometric': 0.1, 'inerf': 0.8}
SECONDS = {'match': 0.1, 'views': 0.5, 'photometric': 0.2, 'inerf': 5.0}
START_SECONDS = {'retrieval': 0.02, 'match': 0.04}
STARTS = ['retrieval', 'match', '2cm_0.5deg', '5cm_1deg', '10cm_2.5deg', '30cm_8deg']


def distance(first, second):
    metres, radians = pose_distance(torch.from_numpy(first), torch.from_numpy(second))
    return float(metres), math.degrees(radians)


@dataclass(frozen=True)
class FakeConfig:
    rounds: int = 3
    refine: tuple = ('match', 'photometric')


class FakeRefiner(FakeLocalizer):
    """Knows the true poses and closes a fixed share of the gap to them in each step."""

    map_sha256 = '0123456789abcdef'

    def __init__(self, images, fake_config=FakeConfig(), unfound=()):
        super().__init__([
            estimate(None, reason='dark') if k in unfound
            else estimate(moved(image.map_from_camera, 0.04)) for k, image in enumerate(images)])
        self.truth = [image.map_from_camera for image in images]
        self.config = fake_config
        self.clock = 0.0
        self.calls = []

    def localize(self, image, prior=None):
        assert self.config.rounds == 0, 'the start is the fast path alone'
        self.clock += START_SECONDS['match']
        return super().localize(image)

    def similar_views(self, image, count):
        self.asked.append(image)
        self.clock += START_SECONDS['retrieval']
        truth = self.truth[int(image.rgb()[0, 0, 0])]
        return np.array([moved(truth, 0, 0.4, 0, 0.2), np.eye(4)])[:count]

    def refine(self, image, map_from_camera, schedule):
        assert self.config.rounds == 3, 'the configuration of the map refines'
        self.asked.append(image)
        index = int(image.rgb()[0, 0, 0])
        self.calls.append((index, tuple(schedule), map_from_camera))
        truth, pose = self.truth[index], map_from_camera
        for step in schedule:
            self.clock += SECONDS[step]
            if step == 'inerf' and distance(pose, truth)[0] > 0.2:
                return estimate(None, reason=f'{step} leads nowhere')
            pose = interpolate(torch.from_numpy(truth), torch.from_numpy(pose), LEFT[step]).numpy()
        return estimate(pose)


def compare(monkeypatch, count=4, config=None, **options):
    """Run a comparison on a clock that only the fake localizer moves; give report and all."""
    images = queries(count)
    localizer = FakeRefiner(images, **options)
    monkeypatch.setattr(refinement_bench, 'time',
                        SimpleNamespace(perf_counter=lambda: localizer.clock))
    attempts = bench_refinement(localizer, images, config)
    report = summarize(attempts, localizer.scene_map.extent, default=localizer.config.refine)
    return SimpleNamespace(
        report=report, results=report['results'], attempts=attempts, localizer=localizer,
        images=images)
