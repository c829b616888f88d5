"""
The localizer node: for every image the pose of the robot in the map.

    python -m nerfmatch_ros.ros.localizer_node --ros-args -p map_path:=FOLDER

Subscribes images, camera_info, initialpose and refined poses; publishes the pose of the newest
image and the transform that hangs the robot into the map. The executor only stores and sifts, one
thread localizes, another one broadcasts.
"""

if __name__ == '__main__':
    # Before rclpy, whose threads bring arenas of their own into which no large block fits.
    from nerfmatch_ros.memory import keep_freed_memory
    keep_freed_memory()

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import sys
import threading
import time
from typing import Any

from geometry_msgs.msg import PoseWithCovarianceStamped
from nerfmatch_ros.config import choose_device
from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.localization.frame_pipeline import FramePipeline, FrameResult, TrackedFrames
from nerfmatch_ros.localization.pose_tracker import PoseTracker
from nerfmatch_ros.ros.backend import (
    free_memory,
    load_localizer,
    require_device,
    with_clock,
    with_parameters,
)
from nerfmatch_ros.ros.conversions import read_pose_with_covariance, stamp_ns
from nerfmatch_ros.ros.foreign_watch import ForeignWatch
from nerfmatch_ros.ros.frame_gate import FrameGate
from nerfmatch_ros.ros.frame_worker import drop_kind, FrameWorker
from nerfmatch_ros.ros.health import Health
from nerfmatch_ros.ros.image_input import ImageInput
from nerfmatch_ros.ros.image_messages import FrameRejected
from nerfmatch_ros.ros.localizer_services import LocalizerServices
from nerfmatch_ros.ros.managed_node import ManagedNode
from nerfmatch_ros.ros.node_options import (
    gate_options,
    pipeline_options,
    slew_limits,
    tracker_options,
)
from nerfmatch_ros.ros.parameter_set import ParameterSet
from nerfmatch_ros.ros.parameters import LocalizerParameters
from nerfmatch_ros.ros.pose_output import PoseOutput
from nerfmatch_ros.ros.quality import EVERY, MismatchReporter, NEWEST
from nerfmatch_ros.ros.ros_logging import Complaints, forward_core_logs, stop_forwarding
from nerfmatch_ros.ros.run_node import run_nodes
from nerfmatch_ros.ros.start_pose import StartPose
from nerfmatch_ros.ros.statistics import DropCounter, StageTimes
from nerfmatch_ros.ros.transform_broadcaster import MapToOdomBroadcaster
from nerfmatch_ros.ros.transform_buffer import TransformError
from nerfmatch_ros.ros.transform_listener import TransformListener
from nerfmatch_ros.ros.transforms import TransformPublisher
import numpy as np
from rclpy.clock import JumpHandle, JumpThreshold
from rclpy.duration import Duration

NODE_NAME = 'nerfmatch_localizer'
SAME_JUMP = 3.0  # seconds within which images and the clock tell of one jump of time


class LocalizerNode(ManagedNode):
    """Wires input, worker, pipeline and outputs together, transition by transition."""

    def __init__(self, load: Callable[..., Any] = load_localizer, **options):
        """Declare the parameters and nothing else; load: stands in for `load_localizer`."""
        super().__init__(NODE_NAME, **options)
        self.parameters = ParameterSet(self, LocalizerParameters)
        self.parameters.on_change(self._on_parameters)
        self.complaints = Complaints(self.get_logger())
        self.drops = DropCounter()
        self.lock = threading.RLock()  # of tracker and pipeline
        self.pipeline: FramePipeline | None = None
        self.worker: FrameWorker | None = None
        self.input: ImageInput | None = None
        self.listener: TransformListener | None = None
        self.broadcaster: MapToOdomBroadcaster | None = None
        self.health: Health | None = None
        self.latencies = StageTimes('age', 'decode', 'transforms', 'localize', 'fuse', 'total')
        self.paused = False
        self.map_path = ''
        self.foreign: ForeignWatch | None = None
        self._time_jumped = '', 0.0  # who told of the last jump of time, and when (steady)
        self._clock_jumps: JumpHandle | None = None
        self._wanted = '', ''  # target and source of the newest lookup
        self.last_drop = '', ''  # kind and text, until a frame is worked on again
        self.last_result: FrameResult | None = None
        self.last_accepted = time.monotonic()
        self.attempted = threading.Condition()
        self.attempts = 0  # frames that were worked on
        self._load = load
        self._device = 'cpu'
        self._log_handler = None
        self.output: PoseOutput | None = None
        self._offered_services: LocalizerServices | None = None
        self.start_pose: StartPose | None = None
        self._subscriptions_of_poses: list[Any] = []
        self._pending_initial_pose: PoseWithCovarianceStamped | None = None
        self._sender: TransformPublisher | None = None
        self.mismatches = MismatchReporter(self, self.get_logger().error)
        # Before activation too, so that a pose that is given early is not lost.
        self._initial_poses = self.create_subscription(
            PoseWithCovarianceStamped, 'initialpose', self.take_initial_pose, NEWEST,
            event_callbacks=self.mismatches.of_subscription('initialpose', NEWEST))
        if self.parameters.values.autostart:
            self.start_automatically()

    # Transitions

    def start_up(self):
        """Check the parameters, load the map, make publishers and services."""
        parameters = self.parameters.checked()
        self._log_handler = forward_core_logs(self.get_logger())
        self._device = device = choose_device(parameters.device)
        if parameters.device == 'auto' and device == 'cpu':
            self.get_logger().warning('device auto: no GPU is found, computing on the CPU')
        backend, seconds = self._load_backend(parameters)
        self.map_path = parameters.map_path
        frames = TrackedFrames.for_mode(
            parameters.tf_mode, parameters.pose_frame, parameters.base_frame_id,
            parameters.odom_frame_id)
        self.pipeline = FramePipeline(
            with_parameters(backend, parameters), PoseTracker(tracker_options(parameters)),
            frames, self._lookup,
            lock=self.lock, options=pipeline_options(parameters),
            on_odometry_jump=self._on_odometry_jump)
        self.output = PoseOutput(self, parameters.global_frame_id, self.mismatches)
        self.start_pose = StartPose(self)
        if frames.base is not None or frames.odom is not None:
            ours = {'map_to_odom': [parameters.odom_frame_id],
                    'map_to_base': [parameters.base_frame_id]}.get(parameters.tf_mode, [])
            self.foreign = ForeignWatch(*ours)
            self.listener = TransformListener(
                self, duration=parameters.tf_buffer_duration, on_transform=self.foreign.heard)
        self.health = Health(self, device)
        self._offered_services = LocalizerServices(self)
        self.get_logger().info(
            f'map {parameters.map_path}, device {device}, loaded and warm in {seconds:.2f} s; '
            f'poses of {"the camera" if frames.pose_of_camera else parameters.base_frame_id} in '
            f'{parameters.global_frame_id} on {self.output.topic}, tf_mode {parameters.tf_mode}')

    def begin(self):
        """Listen to images and start the threads."""
        parameters = self.parameters.checked()
        require_device(self._device)
        # First, as `halt` goes by it.
        self.worker = FrameWorker(
            self._work, self.unexpected, drop=self._drop, is_ready=self._is_ready,
            give_up=self._give_up, save_memory=self._save_memory)
        self.reset('activated')
        self.paused = False
        self.drops = DropCounter()
        self.last_drop = '', ''
        self.last_accepted = time.monotonic()
        if parameters.tf_mode == 'map_to_odom':
            self.broadcaster = MapToOdomBroadcaster(
                self, self.listener, parent=parameters.global_frame_id,
                child=parameters.odom_frame_id, base=parameters.base_frame_id,
                rate=parameters.tf_publish_rate, now_ns=self.now_ns,
                limits=slew_limits(parameters), tolerance=parameters.transform_tolerance,
                stale_timeout=parameters.tf_stale_timeout, on_jump=self._on_jump,
                watch=self.foreign)
            self.broadcaster.enabled = parameters.tf_broadcast
        elif parameters.tf_mode != 'none':
            self._sender = TransformPublisher(self, watch=self.foreign)
        self.input = ImageInput(
            self, parameters, self.mismatches, gate=FrameGate(gate_options(parameters)),
            drop=self._drop, on_frame=self._on_frame, on_restart=self._on_restart,
            on_camera=self._on_camera, zero_is_now=parameters.stamp_zero_as_now)
        self._clock_jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1)),
            post_callback=lambda _: self.on_clock_jump('the clock went back'))
        self._subscriptions_of_poses = [self.create_subscription(
            PoseWithCovarianceStamped, 'refined_pose', self._on_refined_pose, EVERY,
            event_callbacks=self.mismatches.of_subscription('refined_pose', EVERY))]
        self.start_pose.apply(parameters)
        if self._pending_initial_pose is not None:
            message, self._pending_initial_pose = self._pending_initial_pose, None
            self.take_initial_pose(message)
        self.health.begin()
        self.get_logger().info(
            f'images from {", ".join(self.input.image_topics)}, cameras from '
            f'{", ".join(self.input.info_topics)}')

    def halt(self):
        """Stop listening; a frame that is being worked on is finished and dropped."""
        if self.worker is None:
            return
        self.worker.slot.close()
        self.reset('deactivated')
        if self._clock_jumps is not None:
            self._clock_jumps.unregister()
            self._clock_jumps = None
        source, self.input = self.input, None
        if source is not None:
            source.close()
        for subscription in self._subscriptions_of_poses:
            self.destroy_subscription(subscription)
        self._subscriptions_of_poses = []
        if self.listener is not None:
            self.listener.interrupt()
        # Before the wait, which a second signal may cut short.
        self.start_pose.save()
        self.worker.stop(self.patience)
        self.unfinished.append(self.worker.thread)
        self.worker = None
        with self.attempted:
            self.attempted.notify_all()  # ~/relocalize waits in vain
        for name in ('broadcaster', '_sender'):
            part = getattr(self, name)
            setattr(self, name, None)  # first: it is not closed twice if that fails
            if part is not None:
                part.close()
        self.health.end()

    def release(self):
        """Take down what `start_up` made, in reverse order; the model's memory is given back."""
        for name in ('_offered_services', 'health', 'listener', 'output'):
            part = getattr(self, name)
            setattr(self, name, None)
            if part is not None:
                part.close()
        if self.pipeline is not None:
            self.pipeline = None
            free_memory()
        self.start_pose = None
        if self._log_handler is not None:
            stop_forwarding(self._log_handler)
            self._log_handler = None

    # What comes in; all of it on the executor's thread

    def _on_frame(self, message: Any):
        """Keep the newest image for the worker."""
        if self.paused:
            self.drops.add('paused')
            return
        replaced = self.worker.slot.put(message)
        if replaced is not None:
            # An image that could not be worked on was waiting for its camera.
            self.drops.add('busy' if self._is_ready(replaced) else 'no_camera_info')

    def _on_camera(self):
        self.worker.slot.look_again()

    def _is_ready(self, message: Any) -> bool:
        source = self.input
        return source is None or source.cameras.has_heard_of(message.header.frame_id)

    def _on_restart(self):
        """Stamps went back by a second or more: a bag began anew, or a clock was set."""
        self._on_time_jump('stamps', 'the stamps of images went back')

    def on_clock_jump(self, reason: str):
        """Begin anew after the clock was set."""
        if self.input is None:
            return
        self.input.gate.reset()  # stamps that go back as well are no second event
        self._on_time_jump('clock', reason)

    def _on_time_jump(self, witness: str, reason: str):
        """Begin anew, once for an event that images and clock both tell of."""
        now, (before, when) = time.monotonic(), self._time_jumped
        if before not in ('', witness) and now - when < SAME_JUMP:
            self._time_jumped = '', now
            return
        self._time_jumped = witness, now
        self.restart_epoch(reason, clear_transforms=True)

    def take_initial_pose(self, message: PoseWithCovarianceStamped):
        """Take the pose as a place to look first; before activation it is kept."""
        if self.worker is None:
            self._pending_initial_pose = message
            return
        try:
            self.start_pose.take(message)
        except NerfmatchError as error:
            self.get_logger().warning(f'initialpose is refused: {error}')

    def _on_refined_pose(self, message: PoseWithCovarianceStamped):
        """Let a refined pose replace the fix of its image; the history replays from there."""
        pose = None
        try:
            pose, covariance, stamp, frame = read_pose_with_covariance(message)
            if frame != self.parameters.values.global_frame_id:
                verdict = 'refined_wrong_frame'
            else:
                verdict = self.pipeline.add_refined(stamp, pose, covariance)
        except NerfmatchError as error:
            self.complaints.warning('refined_invalid', f'refined pose is refused: {error}')
            verdict = 'refined_invalid'
        self.health.note_refined(verdict, stamp_ns(message.header), pose)
        if verdict == 'accepted':
            self._update_broadcast()

    # The worker's thread

    def _work(self, message: Any):
        """Take one image from its bytes to what is published; say of any what became of it."""
        source, stamp = self.input, stamp_ns(message.header)
        if source is None:
            return
        with self.lock:
            epoch = self.pipeline.tracker.epoch
        try:
            self._localize(source, message, stamp)
        except Exception as error:
            if self.worker is not None and not self.worker.slot.closed:
                self._publish_status(FrameResult(
                    stamp, epoch, drop_kind(error), reason=str(error)))
            raise

    def _localize(self, source: ImageInput, message: Any, stamp: int):
        started = time.perf_counter()
        self.latencies.add('age', (self.now_ns() - stamp) * 1e-9)
        try:
            image = source.decode(message)
        except NerfmatchError:
            with self.lock:
                self.pipeline.tracker.add_failure(stamp)
            raise
        self.latencies.add('decode', time.perf_counter() - started)
        frame = self.camera_frame(message.header.frame_id)
        try:
            result = self.pipeline.process(image, stamp, frame)
        except TransformError as error:
            self.health.note_transform_failure(error, *self._wanted)
            raise FrameRejected(f'tf_{error.kind}', str(error)) from error
        self.last_drop = '', ''
        self.health.note_processed(result.estimate.source)
        for step, seconds in result.seconds.items():
            self.latencies.add(step, seconds)
        self._publish(result, image, message)
        self.latencies.add('total', time.perf_counter() - started)
        with self.attempted:
            self.attempts += 1
            self.attempted.notify_all()
        if self.last_result is result:
            self._show(result, image, message.header)

    def _show(self, result: FrameResult, image: Any, header: Any):
        """Publish what there is to look at; the pose is out, whatever comes of that."""
        try:
            self.output.send_debug(self.pipeline.backend, image, result.estimate, header)
        except Exception as error:
            if drop_kind(error) != 'exception':
                raise
            self.unexpected.note('showing a frame')

    def _publish(self, result: FrameResult, image: Any, message: Any):
        parameters, stamp = self.parameters.values, message.header.stamp
        with self.lock:
            # Under the lock: no result of an epoch is published once the next has begun, and
            # none at all once the node is being deactivated.
            if (result.verdict == 'superseded' or self.pipeline.tracker.epoch != result.epoch
                    or self.worker is None or self.worker.slot.closed):
                self.drops.add('superseded')
                return
            self.last_result = result
            if result.raw is not None:
                self.output.send_raw(*self.pipeline.raw_pose(result), stamp,
                                      parameters.covariance_diagonal_only)
            if result.pose is not None:
                self.last_accepted = time.monotonic()
                self.start_pose.remember(result.pose)
                # The transform goes first: who receives the pose may look it up at once.
                self._send_transform(result, message.header)
                pose, covariance = self.pipeline.published_pose(result)
                self.output.send(pose, covariance, stamp, parameters.covariance_diagonal_only)
                self.health.note_pose(result.stamp_ns, pose)
        if result.jump is not None:
            self.health.note_jump(*result.jump, 'relocalized')
        if result.pose is None and result.verdict != 'pending':
            self.complaints.warning(
                result.verdict, f'no pose for image {image.name}: {result.reason}')
        self._publish_status(result)

    def _send_transform(self, result: FrameResult, header: Any):
        parameters = self.parameters.values
        if self.broadcaster is not None:
            if result.jump is not None:
                # Said already; the transform goes there at once instead of jumping once more.
                self.broadcaster.clear_goal()
            self._update_broadcast(result.odom_from_base)
        elif self._sender is not None and parameters.tf_broadcast:
            child = parameters.base_frame_id
            if parameters.tf_mode == 'map_to_camera':
                child = self.camera_frame(header.frame_id)
            if child in ('', parameters.global_frame_id):
                self.complaints.error(
                    'child', f"no transform is sent: the image's frame_id is '{child}'; name the "
                    "camera's frame with camera_frame_id")
                return
            self._sender.send(parameters.global_frame_id, child, result.pose.map_from_base,
                              header.stamp)

    def _update_broadcast(self, odom_from_base: np.ndarray | None = None):
        """Give the broadcaster the newest map_from_odom; it moves there smoothly."""
        with self.lock:
            broadcaster, goal = self.broadcaster, self.pipeline.tracker.map_from_odom
            if broadcaster is None or goal is None:
                return
            if odom_from_base is None:
                odom_from_base = self.last_result.odom_from_base if self.last_result else None
            broadcaster.set_goal(goal, odom_from_base)

    def _lookup(self, target: str, source: str, stamp: int) -> np.ndarray:
        self._wanted = target, source
        worker = self.worker
        listening = worker is not None and not worker.slot.closed
        return self.listener.lookup(
            target, source, stamp,
            wait=self.parameters.values.wait_for_transform if listening else 0.0)

    def _drop(self, kind: str, text: str):
        """Count a frame that could not be used, whoever found out."""
        self.drops.add(kind)
        self.last_drop = kind, text
        self.complaints.warning(kind, f'image dropped ({kind}): {text}')

    def _give_up(self, reason: str, process_ends: bool):
        """Stop as something is wrong that the next frame will not mend."""
        self.get_logger().error(reason)
        if process_ends:
            self.fatal = reason
        else:
            self.health.deactivate_soon()

    def _save_memory(self):
        backend = self.pipeline.backend
        if hasattr(backend, 'save_memory'):
            backend.save_memory()

    def _publish_status(self, frame: FrameResult | None = None):
        if self.health is not None:
            self.health.publish_status(frame)

    # For services, health and start pose

    def uses_simulated_time(self) -> bool:
        """Tell whether the node's time comes from /clock."""
        return self.get_parameter('use_sim_time').value

    def camera_frame(self, image_frame: str) -> str:
        """Give the frame of the camera that an image came from."""
        return self.parameters.values.camera_frame_id or image_frame.lstrip('/')

    def reset(self, reason: str):
        """Begin a new epoch: what is being computed for the old one is dropped."""
        with self.lock:
            if self.pipeline is None:
                return
            self.pipeline.tracker.reset(reason)

    def restart_epoch(self, reason: str, *, clear_transforms: bool):
        """Begin a new epoch after time itself was disturbed."""
        self.get_logger().info(f'{reason}: a new epoch begins')
        with self.lock:
            self.reset(reason)
            if self.broadcaster is not None:
                self.broadcaster.clear_goal()
        if self.worker is not None:
            self.worker.slot.clear()  # a frame of the time before
        if clear_transforms and self.listener is not None:
            self.listener.clear()

    def swap_map(self, folder: str) -> str:
        """Load another map and use it; the old one stays if that fails. Gives its sha256."""
        pipeline = self.pipeline
        backend, seconds = self._load_backend(replace(self.parameters.values, map_path=folder))
        with self.lock:
            if pipeline is None or self.pipeline is not pipeline:
                raise NerfmatchError('the node was cleaned up while the map was loaded; '
                                     'call the service again')
            # The parameters may have changed while the map was loaded.
            pipeline.backend = with_parameters(backend, self.parameters.values)
            pipeline.tracker.reset('another map')
            self.map_path = folder
            if self.broadcaster is not None:
                self.broadcaster.clear_goal()
        self._publish_status()  # the refiner learns here that the map is another one
        free_memory()  # of the old map
        self.get_logger().info(f'map {folder} in use, loaded in {seconds:.2f} s')
        return backend.map_sha256

    def _load_backend(self, parameters: LocalizerParameters) -> tuple[Any, float]:
        started = time.perf_counter()
        backend = self._load(
            Path(parameters.map_path).expanduser(), device=choose_device(parameters.device),
            threads=parameters.threads or None, sha256=parameters.map_sha256,
            warm=parameters.warmup, memory_fraction=parameters.max_gpu_memory_fraction,
            precision=parameters.precision, localizer=parameters.localizer)
        return with_clock(backend, self._device), time.perf_counter() - started

    def _on_parameters(self, parameters: LocalizerParameters):
        """Apply what may be changed while the node runs."""
        with self.lock:
            if self.pipeline is None:
                return
            self.pipeline.tracker.options = tracker_options(parameters)
            self.pipeline.options = pipeline_options(parameters)
            with_parameters(self.pipeline.backend, parameters)
        if self.input is not None:
            self.input.gate.options = gate_options(parameters)
        if self.broadcaster is not None:
            self.broadcaster.limits = slew_limits(parameters)
            self.broadcaster.tolerance = parameters.transform_tolerance
            self.broadcaster.stale_timeout = parameters.tf_stale_timeout
            self.broadcaster.enabled = parameters.tf_broadcast

    def _on_odometry_jump(self):
        """Send map -> odom no more: the odometry it was made for is over."""
        self.get_logger().warning('odometry jumped: a new epoch begins')
        if self.broadcaster is not None:
            self.broadcaster.clear_goal()

    def _on_jump(self, metres: float, radians: float):
        if self.health is not None:
            self.health.note_jump(metres, radians, 'snapped')


def main(args: list[str] | None = None, load: Callable[..., Any] = load_localizer) -> int:
    """Run the node until it is told to stop; give the exit code."""
    return run_nodes([lambda: LocalizerNode(load)], NODE_NAME, args)


if __name__ == '__main__':
    sys.exit(main())
