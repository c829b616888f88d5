"""
The refiner node: looks again, longer, at images whose pose is known, and improves it.

    python -m nerfmatch_ros.ros.refiner_node --ros-args -p map_path:=FOLDER

Takes the image of exactly the stamp of the newest pose, refines that pose, and publishes it on
`refined_pose` with the same stamp and a covariance of its own. The localizer replays its history
from there. Only the newest pose counts; one whose image is too old is given up.
"""

if __name__ == '__main__':
    # Before rclpy, whose threads bring arenas of their own into which no large block fits.
    from nerfmatch_ros.memory import keep_freed_memory
    keep_freed_memory()

from collections.abc import Callable
import os
from pathlib import Path
import sys
import time
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovarianceStamped
from nerfmatch_ros.config import choose_device
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.localization.body_pose import body_from_camera
from nerfmatch_ros.localization.frame_pipeline import doubtful, TrackedFrames
from nerfmatch_ros.ros.backend import load_localizer
from nerfmatch_ros.ros.conversions import (
    pose_with_covariance,
    read_pose_with_covariance,
    SECOND,
    StampedPose,
)
from nerfmatch_ros.ros.frame_gate import FrameGate, FrameGateOptions
from nerfmatch_ros.ros.frame_ring import FrameRing
from nerfmatch_ros.ros.frame_worker import FrameWorker
from nerfmatch_ros.ros.image_input import ImageInput
from nerfmatch_ros.ros.image_messages import FrameRejected
from nerfmatch_ros.ros.managed_node import ManagedNode, STEADY
from nerfmatch_ros.ros.parameter_set import ParameterSet
from nerfmatch_ros.ros.parameters import RefinerParameters
from nerfmatch_ros.ros.quality import EVERY, LATCHED, MismatchReporter, NEWEST
from nerfmatch_ros.ros.ros_logging import Complaints, forward_core_logs, stop_forwarding
from nerfmatch_ros.ros.run_node import run_nodes
from nerfmatch_ros.ros.statistics import DropCounter, Percentiles
from nerfmatch_ros.ros.transform_buffer import TransformError
from nerfmatch_ros.ros.transform_listener import TransformListener
import numpy as np
from std_msgs.msg import Header

NODE_NAME = 'nerfmatch_refiner'
LOCALIZER_STATUS = 'nerfmatch_localizer/status'
# The localizer has sifted the images; here any stamp will do that a pose may name.
_EVERY_FRAME = FrameGateOptions(
    max_image_age=0.0, max_future=float('inf'), frozen_after=0)


class Job(NamedTuple):
    """An image with the pose to start from."""

    message: Any
    start: StampedPose  # of the pose frame


class RefinerNode(ManagedNode):
    """Pairs images with poses and refines the newest pair on a thread of its own."""

    def __init__(
        self, load: Callable[..., Any] = load_localizer, *, own_process: bool = False, **options,
    ):
        """
        Declare the parameters and nothing else.

        load: stands in for `load_localizer`; own_process: its priority may be lowered.
        """
        super().__init__(NODE_NAME, **options)
        self.parameters = ParameterSet(self, RefinerParameters)
        self.drops = DropCounter()
        self.latency = Percentiles()
        self.published = 0
        self._complaints = Complaints(self.get_logger())
        self._mismatches = MismatchReporter(self, self.get_logger().error)
        self._load, self._own_process = load, own_process
        self._backend: Any = None
        self._frames: TrackedFrames | None = None
        self._worker: FrameWorker | None = None
        self._input: ImageInput | None = None
        self._listener: TransformListener | None = None
        self._log_handler = None
        self._publisher = self._diagnostics = None
        self._subscriptions_of_localizer: list[Any] = []
        self._watch: Any = None
        self._newest_pose: StampedPose | None = None  # whose image has not come yet
        self._map_of_localizer = ''  # sha256; '' before it was heard
        self._deactivate = False  # as soon as the executor comes round
        if self.parameters.values.autostart:
            self.start_automatically()

    def start_up(self):
        """Check the parameters and load the map."""
        parameters = self.parameters.checked()
        self._log_handler = forward_core_logs(self.get_logger())
        if self._own_process and parameters.refine_nice:
            # On a machine without a GPU both nodes want the same cores.
            os.setpriority(os.PRIO_PROCESS, 0, parameters.refine_nice)
        device, started = choose_device(parameters.device), time.perf_counter()
        self._backend = self._load(
            Path(parameters.map_path).expanduser(), device=device,
            threads=parameters.threads or None, sha256=parameters.map_sha256,
            warm=parameters.warmup, memory_fraction=parameters.max_gpu_memory_fraction,
            precision=parameters.precision)
        self._frames = TrackedFrames.for_mode(
            parameters.tf_mode, parameters.pose_frame, parameters.base_frame_id, '')
        self._publisher = self.create_lifecycle_publisher(
            PoseWithCovarianceStamped, 'refined_pose', EVERY,
            event_callbacks=self._mismatches.of_publisher('refined_pose', EVERY))
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        if not self._frames.pose_of_camera:
            self._listener = TransformListener(self, duration=parameters.tf_buffer_duration)
        self.get_logger().info(
            f'map {parameters.map_path}, device {device}, loaded and warm in '
            f'{time.perf_counter() - started:.2f} s; refined poses on '
            f'{self._publisher.topic_name}')

    def begin(self):
        """Listen to images and poses."""
        parameters = self.parameters.checked()
        self._ring = FrameRing(parameters.refine_frame_cache_mb * 1_000_000)
        self._newest_pose = None
        self._deactivate = False
        self._worker = FrameWorker(
            self._refine, self.unexpected, drop=self._drop, is_ready=lambda job: True,
            give_up=self._give_up, save_memory=self._save_memory)
        self._input = ImageInput(
            self, parameters, self._mismatches, gate=FrameGate(_EVERY_FRAME),
            drop=self._drop, on_frame=self._on_frame, on_restart=self._on_restart)
        topic = 'pose_with_covariance'
        self._subscriptions_of_localizer = [
            self.create_subscription(
                PoseWithCovarianceStamped, topic, self._on_pose, NEWEST,
                event_callbacks=self._mismatches.of_subscription(topic, NEWEST)),
            self.create_subscription(
                DiagnosticStatus, LOCALIZER_STATUS, self._on_status, LATCHED)]
        self._watch = self.create_timer(1.0, self._report, clock=STEADY)

    def halt(self):
        """Stop listening; what is being refined is dropped."""
        if self._worker is None:
            return
        for subscription in self._subscriptions_of_localizer:
            self.destroy_subscription(subscription)
        self._subscriptions_of_localizer = []
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._watch is not None:
            self.destroy_timer(self._watch)
            self._watch = None
        self._worker.slot.close()
        if self._listener is not None:
            self._listener.interrupt()
        self._worker.stop(self.patience)
        self.unfinished.append(self._worker.thread)
        self._worker = None

    def release(self):
        """Let go of the map and of the topics."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._publisher is not None:
            self.destroy_lifecycle_publisher(self._publisher)
            self.destroy_publisher(self._diagnostics)
            self._publisher = self._diagnostics = None
        self._backend = None
        if self._log_handler is not None:
            stop_forwarding(self._log_handler)
            self._log_handler = None

    def _on_frame(self, message: Any):
        if not self.parameters.values.refine_enabled:
            self._on_restart()  # no memory for images that nobody wants
            return
        stamp = message.header.stamp.sec * SECOND + message.header.stamp.nanosec
        self._ring.put(stamp, message)
        pose = self._newest_pose
        if pose is not None and pose.stamp_ns == stamp:
            self._pair(pose)

    def _on_restart(self):
        self._ring.clear()
        self._newest_pose = None

    def _on_pose(self, message: PoseWithCovarianceStamped):
        """Take the newest pose; it waits for its image if that is not here yet."""
        if not self.parameters.values.refine_enabled:
            return
        try:
            pose = read_pose_with_covariance(message)
        except DataError as error:
            self._drop('bad_pose', str(error))
            return
        if pose.frame_id != self.parameters.values.global_frame_id:
            self._drop('wrong_frame', f"the pose is in frame '{pose.frame_id}', this node's "
                       f"global_frame_id is '{self.parameters.values.global_frame_id}'")
            return
        other_map = self._other_map()
        if other_map:
            self._drop('other_map', other_map)
            return
        self._newest_pose = pose
        self._pair(pose)

    def _pair(self, pose: StampedPose):
        message = self._ring.take(pose.stamp_ns)
        if message is not None:
            self._newest_pose = None
            if self._worker.slot.put(Job(message, pose)) is not None:
                self.drops.add('busy')

    def _on_status(self, message: DiagnosticStatus):
        values = {pair.key: pair.value for pair in message.values}
        self._map_of_localizer = values.get('map_sha256', '')

    def _other_map(self) -> str:
        """Say so if the localizer uses another map, '' if not."""
        ours, theirs = self._backend.map_sha256, self._map_of_localizer
        if theirs in ('', ours):
            return ''
        return (f'the localizer uses map {theirs[:12]}, this node {ours[:12]}; give both the same '
                'map_path')

    def _refine(self, job: Job):
        """Refine one pose and publish it; on the worker's thread."""
        parameters, source = self.parameters.values, self._input
        if source is None:
            return
        start = job.start
        if self._age(start.stamp_ns) > parameters.refine_max_age:
            self.drops.add('too_old')
            return
        image = source.decode(job.message)
        base_from_camera = np.eye(4)
        frame = parameters.camera_frame_id or job.message.header.frame_id.lstrip('/')
        if self._listener is not None and frame != parameters.base_frame_id:
            try:
                base_from_camera = self._listener.lookup(
                    parameters.base_frame_id, frame, start.stamp_ns,
                    wait=parameters.wait_for_transform)
            except TransformError as error:
                raise FrameRejected(f'tf_{error.kind}', str(error)) from error
        began = time.perf_counter()
        estimate = self._backend.refine(
            image, start.pose @ base_from_camera, parameters.refine_iterations)
        if estimate.map_from_camera is None or estimate.covariance is None:
            self._drop('no_fix', f'image {image.name} is not refined: {estimate.reason}')
            return
        doubt = doubtful(estimate, parameters.min_probability)
        if doubt:
            self._drop('improbable', f'image {image.name}: {doubt}')
            return
        if self._age(start.stamp_ns) > parameters.refine_max_age:
            self.drops.add('too_old')
            return
        self.latency.add(time.perf_counter() - began)
        pose, covariance = body_from_camera(
            estimate.map_from_camera, parameters.covariance_scale * estimate.covariance,
            base_from_camera)
        if parameters.covariance_diagonal_only:
            covariance = np.diag(np.diag(covariance))
        if self._worker is None or self._worker.slot.closed:
            return
        self._publisher.publish(pose_with_covariance(
            pose, covariance, job.message.header.stamp, parameters.global_frame_id))
        self.published += 1

    def _age(self, stamp: int) -> float:
        return (self.now_ns() - stamp) / SECOND

    def _drop(self, kind: str, text: str):
        self.drops.add(kind)
        self._complaints.warning(kind, f'not refined ({kind}): {text}')

    def _give_up(self, reason: str, process_ends: bool):
        self.get_logger().error(reason)
        if process_ends:
            self.fatal = reason
        else:
            self._deactivate = True

    def _save_memory(self):
        if hasattr(self._backend, 'save_memory'):
            self._backend.save_memory()

    def _report(self):
        """Ask for latched cameras; publish diagnostics once a second."""
        if self._deactivate:
            self._deactivate = False
            self.trigger_deactivate()
            return
        self._input.seek_latched()
        summary = self.latency.summary()
        values = {'published': self.published, 'frames kept': len(self._ring),
                  'latency p50 ms': '' if summary is None else f'{1e3 * summary.p50:.0f}',
                  **{f'dropped {kind}': count for kind, count in self.drops.counts().items()}}
        wrong = [*filter(None, [self._other_map()]), *self._mismatches.lines()]
        if self.unexpected.failing:
            wrong.append('callbacks or images keep failing; the log has the traceback')
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if wrong else DiagnosticStatus.OK,
            name=f'{self.get_name()}: refinement',
            message='; '.join([*wrong, f'{self.published} poses refined']),
            hardware_id=self._backend.map_sha256[:12],
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
        self._diagnostics.publish(DiagnosticArray(
            header=Header(stamp=self.get_clock().now().to_msg()), status=[status]))


def main(args: list[str] | None = None, load: Callable[..., Any] = load_localizer) -> int:
    """Run the node until it is told to stop; give the exit code."""
    return run_nodes([lambda: RefinerNode(load, own_process=True)], NODE_NAME, args)


if __name__ == '__main__':
    sys.exit(main())
