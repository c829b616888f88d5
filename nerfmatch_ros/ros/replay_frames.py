"""
A bag through the same core as the nodes: every frame in its order, without DDS or a clock.

The result does not depend on how fast the machine is: the same bag gives the same poses.
"""

import threading
import time
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.evaluation.stream_report import StampedPose
from nerfmatch_ros.localization.body_pose import body_from_camera
from nerfmatch_ros.localization.frame_pipeline import FramePipeline, FrameResult, TrackedFrames
from nerfmatch_ros.localization.pose_tracker import PoseTracker
from nerfmatch_ros.ros import bag_messages
from nerfmatch_ros.ros.backend import with_parameters
from nerfmatch_ros.ros.bag import BagReader
from nerfmatch_ros.ros.bag_topics import is_rectified
from nerfmatch_ros.ros.camera_messages import CameraCache
from nerfmatch_ros.ros.frame_gate import picture_fault
from nerfmatch_ros.ros.image_messages import compressed_to_rgb, FrameRejected, image_to_rgb
from nerfmatch_ros.ros.parameters import LocalizerParameters, RefinerParameters
from nerfmatch_ros.ros.replay_input import ReplayFrames, ReplayInput
from nerfmatch_ros.ros.replay_result import FAST, POSE, REFINED, ReplayResult
import numpy as np
from rich.progress import track


def replay_every_frame(
    found: ReplayInput, frames: ReplayFrames, backend: Any, *, tf_mode: str = 'map_to_odom',
    refine: bool = True,
) -> ReplayResult:
    """
    Localize every image of the bag.

    backend: a `frame_pipeline.Backend`. refine: refine each accepted pose; the refined one comes
    back after the next frame, as from a refiner that takes one frame's time.
    """
    return _Replay(found, frames, backend, tf_mode, refine).run()


class _Replay:
    """The state of one run."""

    def __init__(
        self, found: ReplayInput, frames: ReplayFrames, backend: Any, tf_mode: str, refine: bool,
    ):
        self._found, self._frames, self._backend = found, frames, backend
        self._tf_mode, self._refine_poses = tf_mode, refine
        tracked = TrackedFrames.for_mode(
            tf_mode, 'camera' if frames.pose_of_camera else 'base', frames.base, frames.odom)
        # The same options as the nodes have by default.
        self._refinements = RefinerParameters().refine_iterations
        with_parameters(backend, LocalizerParameters())
        self._tracker = PoseTracker()
        self._pipeline = FramePipeline(
            backend, self._tracker, tracked, found.transforms.lookup, lock=threading.Lock())
        self._cameras = CameraCache(rectified=is_rectified(found.image_topic))
        self._refined: StampedPose | None = None  # not fed back yet
        self._last_accepted_ns: int | None = None
        self._result = ReplayResult()

    def run(self) -> ReplayResult:
        """Take the messages in the order of the bag."""
        result, found = self._result, self._found
        previous = -1
        with BagReader(found.path) as bag:
            messages = bag.messages([found.info_topic, found.image_topic])
            for name, _, message in track(
                    messages, description='localizing', transient=True,
                    total=bag.counts[found.info_topic] + bag.counts[found.image_topic]):
                if name == found.info_topic:
                    self._cameras.put(message)
                    continue
                stamp = bag_messages.read_stamp(message.header)
                if stamp <= previous:
                    continue  # as the node drops it: out of order, or twice the same
                previous = stamp
                try:
                    result.outcomes[stamp] = self._take(message, stamp)
                except FrameRejected as error:
                    self._tracker.add_failure(stamp)
                    result.outcomes[stamp] = error.kind
                except NerfmatchError as error:
                    result.outcomes[stamp] = str(error)
                self._follow(stamp)
        result.notes['counts'] = dict(sorted(self._tracker.counts.items()))
        return result

    def _take(self, message: Any, stamp: int) -> str:
        """Localize one image; give what became of it."""
        started = time.perf_counter()
        image = self._decode(message, stamp)
        if self._last_accepted_ns is not None:
            self._tracker.tick((stamp - self._last_accepted_ns) / 1e9)
        frame = message.header.frame_id.lstrip('/')
        outcome = self._pipeline.process(image, stamp, frame)
        latency = time.perf_counter() - started
        streams = self._result.streams
        if outcome.raw is not None:
            streams[FAST].append(
                StampedPose(stamp, *self._pipeline.raw_pose(outcome), latency))
        # The refined pose of the frame before arrives while this one was worked on.
        self._feed_back()
        if outcome.pose is None:
            return outcome.reason if outcome.verdict == 'no_fix' else outcome.verdict
        self._last_accepted_ns = stamp
        streams[POSE].append(
            StampedPose(stamp, *self._pipeline.published_pose(outcome), latency))
        self._note_transform(outcome, stamp, frame)
        if self._refine_poses:
            self._refined = self._refine(image, outcome, started)
        return outcome.verdict

    def _decode(self, message: Any, stamp: int) -> PosedImage:
        pixels = (compressed_to_rgb if self._found.compressed else image_to_rgb)(message)
        if not pixels.flags.writeable:  # a view of the bag's bytes, which PyTorch dislikes
            pixels = pixels.copy()
        height, width = pixels.shape[:2]
        camera = self._cameras.get(message.header.frame_id, width, height)
        fault = picture_fault(pixels)
        if fault:
            raise FrameRejected(fault, f'the picture is {fault}')
        return PosedImage(f'{stamp // 10**9}.{stamp % 10**9:09d}', camera, pixels=pixels,
                          stamp=stamp / 1e9)

    def _refine(
        self, image: PosedImage, outcome: FrameResult, started: float,
    ) -> StampedPose | None:
        """Refine the pose that was given out; the result is of the same body."""
        estimate = self._backend.refine(
            image, outcome.pose.map_from_base @ outcome.base_from_camera, self._refinements)
        if estimate.map_from_camera is None or estimate.covariance is None:
            return None
        pose, covariance = estimate.map_from_camera, estimate.covariance
        if not self._pipeline.frames.pose_of_camera:
            pose, covariance = body_from_camera(pose, covariance, outcome.base_from_camera)
        refined = StampedPose(
            outcome.stamp_ns, pose, covariance, time.perf_counter() - started)
        self._result.streams[REFINED].append(refined)
        return refined

    def _feed_back(self):
        refined, self._refined = self._refined, None
        if refined is not None:
            self._pipeline.add_refined(
                refined.stamp_ns, refined.map_from_body, refined.covariance)

    def _note_transform(self, outcome: FrameResult, stamp: int, frame: str):
        """Keep the transform of the modes that send one with each pose."""
        if self._tf_mode == 'map_to_base':
            self._result.transforms.append((self._frames.base, stamp, outcome.pose.map_from_base))
        elif self._tf_mode == 'map_to_camera':
            self._result.transforms.append((frame, stamp, outcome.pose.map_from_base))

    def _follow(self, stamp: int):
        """Keep map to odom as it stands at every frame, also at those that brought nothing."""
        map_from_odom = self._tracker.map_from_odom
        if self._tf_mode == 'map_to_odom' and map_from_odom is not None:
            self._result.transforms.append(
                (self._frames.odom, stamp, np.array(map_from_odom)))
