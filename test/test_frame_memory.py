"""What a stream of frames leaves behind: nothing that grows with their number."""

from dataclasses import replace
import gc
from threading import RLock
import tracemalloc

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.demo import DEMO_MAP
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization import frame_pipeline
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.frame_pipeline import FramePipeline, FrameResult, TrackedFrames
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.localization.pose_tracker import PoseTracker
from nerfmatch_ros.stage_clock import StageClock
import numpy as np
import torch

SECOND = 10 ** 9
CAMERA = Camera('PINHOLE', 64, 48, 260.0, 260.0, 31.5, 23.5)
KEPT = 30_000  # bytes; a pose (4, 4) a frame would be more than twice that


def frame(random):
    return PosedImage(
        'frame', CAMERA, pixels=random.integers(0, 256, (48, 64, 3), np.uint8))


def stream(backend):
    return FramePipeline(
        backend, PoseTracker(), TrackedFrames.for_mode('map_to_camera', 'camera', '', ''),
        lookup=None, lock=RLock())


def alive(*kinds):
    gc.collect()
    return sum(type(item) in kinds for item in gc.get_objects())


class Standing:
    """A localizer whose camera stands still, now and then without a pose or with a wrong one."""

    map_sha256 = 'fa'

    def localize(self, image, prior=None):
        number = int(image.name)
        if number % 7 == 0:
            return PoseEstimate(None, 'too few', None, 0, 10, float('nan'))
        pose = np.eye(4)
        pose[0, 3] = 50.0 * (number % 11 == 0)
        return PoseEstimate(pose, '', np.eye(6) * 1e-4, 50, 80, 0.7, pixels=np.zeros((80, 2)))


def test_the_stream_of_poses_takes_no_more_memory_after_many_frames(monkeypatch):
    monkeypatch.setattr(frame_pipeline, '_EXTRINSICS_KEPT', 50)
    pipeline, random = stream(Standing()), np.random.default_rng(0)
    image, verdicts = frame(random), set()

    def run(first, last):
        for number in range(first, last):
            result = pipeline.process(
                replace(image, name=str(number)), SECOND + number * SECOND // 10, 'camera')
            verdicts.add(result.verdict)
            if result.pose is not None and number % 3 == 0:
                pipeline.add_refined(result.stamp_ns, result.raw[0], result.raw[1] / 4)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = run(0, 300)  # what is remembered of the newest frames is full by then
        after = run(300, 900)
    finally:
        tracemalloc.stop()
    assert {'accepted', 'no_fix', 'gated'} <= verdicts
    assert after - before < KEPT
    assert alive(FrameResult) <= 1


def test_the_localizer_keeps_nothing_of_an_image():
    random = np.random.default_rng(0)
    localizer = Localizer.load(DEMO_MAP)
    localizer.config = replace(localizer.config, rounds=0)
    localizer.clock = StageClock()
    pipeline, prior = stream(localizer), localizer.scene_map.reference_poses[0]

    def run(frames):
        for k in range(frames):
            localizer.localize(frame(random), prior=prior)
            pipeline.process(frame(random), SECOND + k * SECOND, 'camera')
        return alive(torch.Tensor), alive(PosedImage, PoseEstimate, FrameResult), len(
            gc.get_objects())

    run(1)  # fills what is computed once
    before, after = run(1), run(6)
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 6
    assert not localizer.clock.take(), 'the pipeline takes the times of every frame'
