"""Watches the localizer node: ~/status for every frame, /diagnostics and the log every second."""

from collections import Counter, deque
from dataclasses import replace
import re
import time
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nerfmatch_ros.localization.frame_pipeline import FrameResult
from nerfmatch_ros.localization.pose_tracker import TrackerState
from nerfmatch_ros.ros.diagnostics import diagnostic_array, SILENCE, status_message
from nerfmatch_ros.ros.managed_node import STEADY
from nerfmatch_ros.ros.quality import LATCHED
from nerfmatch_ros.ros.ros_logging import Complaints
from nerfmatch_ros.ros.snapshots import (
    CameraInfoSnapshot,
    InputSnapshot,
    LatencySnapshot,
    LocalizationSnapshot,
    MapSnapshot,
    OutputSnapshot,
    RefinerSnapshot,
    TopicSnapshot,
    TransformSnapshot,
)
from nerfmatch_ros.ros.statistics import DropCounter, Percentiles, Rate
from nerfmatch_ros.ros.transform_listener import static_transform_command
import numpy as np
import torch

PERIOD = 1.0  # seconds
CLOCK_STOPPED = 3.0  # seconds without progress of a simulated clock
CLOCK_STEP = 1.0  # seconds by which the system's clock was set
POSES_KEPT = 1000  # newest, to tell how far refinement moved them
REMIND = 30.0  # seconds after which the log repeats what is still wrong
DEGRADED = ('dark', 'saturated', 'flat')  # kinds of drops that say the picture shows nothing


class Health:
    """What the node knows about itself, gathered from its parts."""

    def __init__(self, node, device: str):
        """Make the publishers; node: the localizer node; device: that it computes on."""
        self._node, self._device = node, device
        self._loaded_at = time.strftime('%Y-%m-%d %H:%M:%S')
        self._status = node.create_publisher(DiagnosticStatus, '~/status', LATCHED)
        self._diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Steady: it must run while simulated time stands still.
        self._timer = node.create_timer(PERIOD, self._watch, clock=STEADY)
        self._reminders = Complaints(node.get_logger(), REMIND)
        self._frame: FrameResult | None = None  # the newest that was worked on
        self._fix: FrameResult | None = None  # the newest with a pose
        self._same_names = 1
        self._received, self._processed = Rate(), Rate()
        self._broadcast = Rate()
        self._seen_frames = self._seen_broadcasts = 0
        self._busy_seconds, self._busy_share, self._counted = 0.0, 0.0, time.monotonic()
        self._positions: dict[int, np.ndarray] = {}  # of poses given out, by stamp
        self._moved: deque[float] = deque(maxlen=POSES_KEPT)  # metres, by refinement
        self._refined: Counter[str] = Counter()
        self._references = DropCounter()  # images by what they were matched with
        self._refined_at: float | None = None
        self._refined_latency = Percentiles()
        self._transform_failures = DropCounter()
        self._last_transform_text = ''
        self._missing_link = '', ''  # target and source of the newest failure
        self._last_jump: tuple[float, float] | None = None
        self.jumps = 0
        self._deactivate = False
        self._begun: float | None = None
        self._clock_value: int | None = None
        self._clock_moved = time.monotonic()
        self._clock_offset: float | None = None  # to the steady clock; None: it is simulated

    def begin(self):
        """Note that the node was activated."""
        self._begun = self._clock_moved = time.monotonic()
        self._seen_frames = self._seen_broadcasts = 0
        self._deactivate = False
        self._frame = self._fix = None
        self._busy_seconds = 0.0
        self._clock_offset = self._offset()
        self.publish_status()

    def end(self):
        """Note that the node was deactivated."""
        self._begun = None
        self.publish_status()

    def close(self):
        """Take publishers and timer down."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._status)
        self._node.destroy_publisher(self._diagnostics)

    # Told by the node, from any thread

    def note_pose(self, stamp_ns: int, pose: np.ndarray):
        """Note a pose (4, 4) that was given out."""
        self._positions[stamp_ns] = pose[:3, 3]
        if len(self._positions) > POSES_KEPT:
            del self._positions[next(iter(self._positions))]

    def note_refined(self, verdict: str, stamp_ns: int, pose: np.ndarray | None):
        """Note what became of a refined pose (4, 4); None: it could not be read."""
        self._refined[verdict] += 1
        position = self._positions.get(stamp_ns)
        if verdict == 'accepted' and position is not None:
            self._moved.append(float(np.linalg.norm(pose[:3, 3] - position)))
        self._refined_at = time.monotonic()
        self._refined_latency.add((self._node.now_ns() - stamp_ns) * 1e-9)

    def note_transform_failure(self, error: Any, target: str, source: str):
        """Note why target_from_source was missing."""
        self._transform_failures.add(error.kind)
        self._last_transform_text = str(error)
        self._missing_link = target, source

    def note_jump(self, metres: float, radians: float, what: str):
        """Note, and say once, that the pose jumped; a planner must know."""
        self.jumps += 1
        self._last_jump = metres, radians
        self._node.get_logger().warning(
            f'{what}: the robot jumps by {metres:.2f} m and {radians:.3f} rad in the map')

    def note_processed(self, reference: str):
        """Count a frame that was worked on; reference: what it was matched with, '' if unknown."""
        self._processed.add(time.monotonic())
        kind = reference.partition(':')[0]  # without the reason, of which there are many
        if kind:
            self._references.add(kind)

    def deactivate_soon(self):
        """Deactivate the node from its own thread: frames cannot be worked on."""
        self._deactivate = True

    def publish_status(self, frame: FrameResult | None = None):
        """Publish the state of the node, after a frame or a transition; frame: the one."""
        node = self._node
        if node.pipeline is None:
            return
        self._frame = frame = frame or self._frame
        if frame is not None and frame.pose is not None:
            self._fix = frame
        self._status.publish(status_message(
            node.get_name(), self._localization(),
            stamp_ns=frame.stamp_ns if frame else 0, verdict=frame.verdict if frame else '',
            seconds=frame.seconds if frame else {},
            map_sha256=node.pipeline.backend.map_sha256))

    # Once a second

    def _watch(self):
        node = self._node
        if self._deactivate and node.worker is not None:
            self._deactivate = False
            node.trigger_deactivate()
        own = node.get_name(), node.get_namespace()
        self._same_names = node.get_node_names_and_namespaces().count(own)
        self._watch_clock()
        if node.worker is not None:
            node.input.seek_latched()
            self._count()
            self._watch_state()
            node.start_pose.save_regularly()
        snapshots, stamp = self._snapshots(), node.get_clock().now().to_msg()
        if node.worker is not None:
            self._remind(snapshots)
        hardware = node.pipeline.backend.map_sha256[:12]
        self._diagnostics.publish(
            diagnostic_array(node.get_name(), stamp, snapshots, hardware))

    def _count(self):
        """Bring the rates up to date."""
        now, received = time.monotonic(), self._node.input.received
        self._received.add(now, received - self._seen_frames)
        self._seen_frames = received
        busy, passed = self._node.worker.busy_seconds, now - self._counted
        self._busy_share = min(1.0, (busy - self._busy_seconds) / max(passed, 1e-3))
        self._busy_seconds, self._counted = busy, now
        if self._node.broadcaster is not None:
            sent = self._node.broadcaster.sent
            self._broadcast.add(now, sent - self._seen_broadcasts)
            self._seen_broadcasts = sent

    def _watch_clock(self):
        """Notice a simulated clock that stands still, and a system clock that was set."""
        node, now = self._node, time.monotonic()
        value = node.now_ns()
        if value != self._clock_value:
            self._clock_value, self._clock_moved = value, now
        before, self._clock_offset = self._clock_offset, self._offset()
        if before is None or self._clock_offset is None:
            return
        step = self._clock_offset - before
        if abs(step) > CLOCK_STEP:
            node.on_clock_jump(f'the clock was set by {step:.1f} s')

    def _offset(self) -> float | None:
        """Give how far the clock is from the steady one, in seconds."""
        # A simulated clock runs at a pace of its own; rclpy tells of its jumps.
        if self._node.uses_simulated_time():
            return None
        return self._node.now_ns() * 1e-9 - time.monotonic()

    def _watch_state(self):
        """Let time turn coasting into lost, and say when that happens."""
        node = self._node
        if node.paused:
            node.last_accepted = time.monotonic()  # nobody asks for a pose
            return
        with node.lock:
            silence = time.monotonic() - node.last_accepted
            lost = node.pipeline.tracker.tick(silence)
        if lost:
            node.get_logger().warning(f'lost: no image gave a pose for {silence:.1f} s')
            self.publish_status()

    def _remind(self, snapshots: list[Any]):
        """Say in the log what keeps poses from coming; seldom the same twice."""
        node = self._node
        starting = time.monotonic() - self._begun < SILENCE  # others may be, too
        told = [unsaid(snapshot) for snapshot in snapshots
                if not (starting and isinstance(snapshot, TransformSnapshot))]
        for status in diagnostic_array(
                '', Time(), [snapshot for snapshot in told if snapshot is not None]).status:
            if status.level == DiagnosticStatus.OK:
                continue
            log = (self._reminders.error if status.level == DiagnosticStatus.ERROR
                   else self._reminders.warning)
            text = f'{status.name.removeprefix(": ")}: {status.message}'
            log(re.sub(r'[\d.]+', '', text), text)  # the same, for a longer time, is the same
        if self._same_names > 1:
            self._reminders.error(
                'same name', f'{self._same_names} nodes are named '
                f'{node.get_fully_qualified_name()}; give each its own namespace')

    # Snapshots

    def _snapshots(self) -> list[Any]:
        made = [self._localization(), self._latency(), self._transforms(), self._output(),
                self._refiner(), self._map()]
        if self._node.input is not None:
            made[1:1] = [self._input(), self._camera_info()]
        return made

    def _localization(self) -> LocalizationSnapshot:
        node = self._node
        frame, estimate = self._frame, None
        active = node.worker is not None
        with node.lock:
            tracker = node.pipeline.tracker
            state, epoch = tracker.state, tracker.epoch
            counts, rejects = dict(tracker.counts), tracker.consecutive_rejects
        deviations = None, None
        if frame is not None:
            estimate = frame.estimate
            if frame.pose is not None:
                sigma = np.sqrt(frame.pose.covariance.diagonal())
                deviations = tuple(sigma[:3].tolist()), tuple(sigma[3:].tolist())
        return LocalizationSnapshot(
            state=state.name, active=active, paused=node.paused, epoch=epoch,
            failing=node.unexpected.failing, same_names=self._same_names,
            reason=frame.reason if frame else '',
            degraded=frame is not None and frame.verdict in DEGRADED,
            fix_age=(time.monotonic() - node.last_accepted
                     if state != TrackerState.UNLOCALIZED else None),
            fix_distance=None if state == TrackerState.LOCALIZED else self._travelled(),
            inliers=estimate and estimate.inliers, matches=estimate and estimate.matches,
            reprojection_error=estimate and estimate.reprojection_error,
            probability=estimate and estimate.probability,
            reference=estimate.source if estimate else '', references=self._references.counts(),
            position_std=deviations[0], rotation_std=deviations[1], rejects_in_a_row=rejects,
            last_jump=self._last_jump, counts=counts)

    def _travelled(self) -> float | None:
        """Give the metres from the last pose to here, where odometry tells."""
        node, fix = self._node, self._fix
        base = node.pipeline.frames.base
        if fix is None or fix.odom_from_base is None or base is None:
            return None
        latest = node.listener.latest(node.parameters.values.odom_frame_id, base)
        if latest is None:
            return None
        return float(np.linalg.norm(latest[0][:3, 3] - fix.odom_from_base[:3, 3]))

    def _input(self) -> InputSnapshot:
        node, now = self._node, time.monotonic()
        source, drops = node.input, node.drops.counts()
        kind, text = node.last_drop
        silence = now - max(source.last_arrival, self._begun or now)
        return InputSnapshot(
            topics=self._topics(source.image_topics), silence=silence,
            received=source.received, rate=self._received.per_second(now),
            processed_rate=self._processed.per_second(now), age=node.latencies.summary('age'),
            encoding=source.encoding, size=source.size,
            transport=node.parameters.values.image_transport,
            degraded=kind if kind in DEGRADED else '', frozen=kind == 'frozen',
            clock_stopped=(node.uses_simulated_time()
                           and now - self._clock_moved > CLOCK_STOPPED),
            drops=drops, last_drop=text)

    def _camera_info(self) -> CameraInfoSnapshot:
        node = self._node
        source, frames = node.input, node.input.cameras.frames
        known = [frame for frame, camera in frames.items() if camera is not None]
        lacking = source.lacking()
        return CameraInfoSnapshot(
            topics=self._topics(source.info_topics), frames=tuple(known), lacking=tuple(lacking),
            waiting=max(lacking.values(), default=0.0),
            timeout=node.parameters.values.camera_info_timeout,
            model=next((frames[frame].model for frame in known), ''),
            changes=source.cameras.changes, complaint='; '.join(source.cameras.complaints),
            size_matches=False if node.last_drop[0] == 'bad_size' else None)

    def _latency(self) -> LatencySnapshot:
        node = self._node
        busy = node.worker.busy_since if node.worker is not None else None
        return LatencySnapshot(
            stages=node.latencies.summaries(),
            busy_for=0.0 if busy is None else time.monotonic() - busy, busy=self._busy_share)

    def _transforms(self) -> TransformSnapshot:
        node = self._node
        parameters, broadcaster = node.parameters.values, node.broadcaster
        missing = node.last_drop[0].startswith('tf_')
        target, source = self._missing_link
        extrinsic = ''
        if missing and target == parameters.base_frame_id:
            extrinsic = (f'{self._last_transform_text}; publish it, for example: '
                         + static_transform_command(target, source))
        odometry = None
        if parameters.tf_mode == 'map_to_odom':
            odometry = not (missing and target == parameters.odom_frame_id)
        return TransformSnapshot(
            mode=parameters.tf_mode, odom_frame=parameters.odom_frame_id,
            base_frame=parameters.base_frame_id, odometry=odometry, extrinsic_fault=extrinsic,
            wait=node.latencies.summary('transforms'),
            failures=self._transform_failures.counts(),
            foreign=tuple(f'{parent} -> {child}' for child, parent in
                          node.foreign.foreign().items())
            if node.foreign is not None and parameters.tf_broadcast else (),
            rate=self._broadcast.per_second(time.monotonic()),
            sent=broadcaster.sent if broadcaster is not None else 0,
            jumps=self.jumps)

    def _output(self) -> OutputSnapshot:
        node = self._node
        inputs = () if node.input is None else (*node.input.image_topics, *node.input.info_topics)
        return OutputSnapshot(
            subscribers={topic: node.count_subscribers(topic) for topic in node.output.topics},
            mismatches=tuple(line for line in node.mismatches.lines()
                             if not line.startswith(tuple(f"'{topic}'" for topic in inputs))))

    def _refiner(self) -> RefinerSnapshot:
        at = self._refined_at
        topic = self._node.resolve_topic_name('refined_pose')
        return RefinerSnapshot(
            publishers=self._node.count_publishers(topic),
            silence=None if at is None else time.monotonic() - at, counts=dict(self._refined),
            latency=self._refined_latency.summary(),
            improvement=float(np.mean(self._moved)) if self._moved else None)

    def _map(self) -> MapSnapshot:
        node, memory, limit = self._node, None, None
        if self._device.startswith('cuda'):
            memory = torch.cuda.memory_allocated(self._device)
            limit = (torch.cuda.get_device_properties(self._device).total_memory
                     * node.parameters.values.max_gpu_memory_fraction)
        return MapSnapshot(
            path=node.map_path, sha256=node.pipeline.backend.map_sha256,
            frame=node.parameters.values.global_frame_id, loaded_at=self._loaded_at,
            device=self._device, memory=memory, memory_limit=limit,
            out_of_memory=node.worker.out_of_memory if node.worker is not None else 0)

    def _topics(self, names: list[str]) -> tuple[TopicSnapshot, ...]:
        return tuple(TopicSnapshot(
            name, self._node.count_publishers(name), tuple(self._node.mismatches.lines(name)))
            for name in names)


def unsaid(snapshot: Any) -> Any:
    """Leave out what the log was told when it happened; None for what is not to be logged."""
    if isinstance(snapshot, InputSnapshot):
        return replace(snapshot, degraded='', frozen=False, last_drop='')
    if isinstance(snapshot, CameraInfoSnapshot):
        return replace(snapshot, complaint='', size_matches=None)
    if isinstance(snapshot, (TransformSnapshot, MapSnapshot)):
        return snapshot
    return None
