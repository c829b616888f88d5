"""Watches the localizer node: ~/status for every frame, /diagnostics and the log every second."""

from collections import Counter
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nerfmatch_ros.localization.pose_tracker import TrackerState
from nerfmatch_ros.ros.diagnostics import diagnostic_array, SILENCE, status_message
from nerfmatch_ros.ros.managed_node import STEADY
from nerfmatch_ros.ros.quality import LATCHED
from nerfmatch_ros.ros.snapshots import (
    CameraInfoSnapshot,
    InputSnapshot,
    LatencySnapshot,
    LocalizationSnapshot,
    MapSnapshot,
    RefinerSnapshot,
    TopicSnapshot,
    TransformSnapshot,
)
from nerfmatch_ros.ros.statistics import Percentiles, Rate
from nerfmatch_ros.ros.transform_listener import static_transform_command
import numpy as np
import torch

PERIOD = 1.0  # seconds
CLOCK_STOPPED = 3.0  # seconds without progress of a simulated clock
CLOCK_STEP = 1.0  # seconds by which the system's clock was set
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
        self._received, self._processed = Rate(), Rate()
        self._broadcast = Rate()
        self._seen_frames = self._seen_broadcasts = 0
        self._refined: Counter[str] = Counter()
        self._refined_at: float | None = None
        self._refined_latency = Percentiles()
        self._transform_failures: Counter[str] = Counter()
        self._last_transform_failure: dict[str, float] = {}
        self._last_transform_text = ''
        self._transform_waits = Percentiles()
        self._last_jump: tuple[float, float] | None = None
        self.jumps = 0
        self._deactivate = False
        self._begun: float | None = None
        self._clock_value: int | None = None
        self._clock_moved = time.monotonic()
        self._wall_offset = time.time() - time.monotonic()

    def begin(self):
        """Note that the node was activated."""
        self._begun = self._clock_moved = time.monotonic()
        self._seen_frames = self._seen_broadcasts = 0
        self._deactivate = False
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

    def note_refined(self, verdict: str, stamp_ns: int):
        """Note what became of a refined pose."""
        self._refined[verdict] += 1
        self._refined_at = time.monotonic()
        self._refined_latency.add((self._node.now_ns() - stamp_ns) * 1e-9)

    def note_transform_failure(self, error: Any):
        """Note why a transform was missing."""
        self._transform_failures[error.kind] += 1
        self._last_transform_failure[error.kind] = time.monotonic()
        self._last_transform_text = str(error)

    def note_jump(self, metres: float, radians: float, what: str):
        """Note, and say once, that the pose jumped; a planner must know."""
        self.jumps += 1
        self._last_jump = metres, radians
        self._node.get_logger().warning(
            f'{what}: the robot jumps by {metres:.2f} m and {radians:.3f} rad in the map')

    def note_processed(self):
        """Count a frame that was worked on."""
        self._processed.add(time.monotonic())

    def deactivate_soon(self):
        """Deactivate the node from its own thread: frames cannot be worked on."""
        self._deactivate = True

    def publish_status(self):
        """Publish the state of the node, after a frame or a transition."""
        node = self._node
        if node.pipeline is None:
            return
        result = node.last_result
        self._status.publish(status_message(
            node.get_name(), self._localization(),
            stamp_ns=result.stamp_ns if result else 0, verdict=result.verdict if result else '',
            seconds=result.seconds if result else {},
            map_sha256=node.pipeline.backend.map_sha256))

    # Once a second

    def _watch(self):
        node = self._node
        if self._deactivate and node.worker is not None:
            self._deactivate = False
            node.trigger_deactivate()
        self._watch_clock()
        if node.worker is not None:
            node.input.seek_latched()
            self._count()
            self._watch_state()
            self._complain()
            node.start_pose.save_regularly()
        hardware = node.pipeline.backend.map_sha256[:12]
        self._diagnostics.publish(diagnostic_array(
            node.get_name(), node.get_clock().now().to_msg(), self._snapshots(), hardware))

    def _count(self):
        """Bring the rates up to date."""
        now, received = time.monotonic(), self._node.input.received
        for _ in range(received - self._seen_frames):
            self._received.add(now)
        self._seen_frames = received
        if self._node.broadcaster is not None:
            sent = self._node.broadcaster.sent
            for _ in range(sent - self._seen_broadcasts):
                self._broadcast.add(now)
            self._seen_broadcasts = sent

    def _watch_clock(self):
        """Notice a simulated clock that stands still, and a system clock that was set."""
        node, now = self._node, time.monotonic()
        value = node.now_ns()
        if value != self._clock_value:
            self._clock_value, self._clock_moved = value, now
        offset = time.time() - now
        step, self._wall_offset = offset - self._wall_offset, offset
        if abs(step) > CLOCK_STEP and not node.uses_simulated_time():
            node.restart_epoch(f'the system clock was set by {step:.1f} s',
                               clear_transforms=True)

    def _watch_state(self):
        """Let time turn coasting into lost, and say when the state changes to lost."""
        node = self._node
        with node.lock:
            tracker = node.pipeline.tracker
            before = tracker.state
            tracker.tick(time.monotonic() - node.last_accepted)
            changed = tracker.state != before
        if changed:
            self.publish_status()

    def _complain(self):
        """Say in the log what keeps poses from coming; seldom the same twice."""
        node = self._node
        if time.monotonic() - self._begun < SILENCE:
            return  # others may be starting too
        for status in diagnostic_array(
                node.get_name(), node.get_clock().now().to_msg(),
                [s for s in self._snapshots() if not isinstance(
                    s, (LocalizationSnapshot, RefinerSnapshot, LatencySnapshot))]).status:
            log = (node.complaints.error if status.level == DiagnosticStatus.ERROR
                   else node.complaints.warning)
            if status.level != DiagnosticStatus.OK:
                log(f'watch {status.name}', f'{status.name.split(": ")[-1]}: {status.message}')
        localization = self._localization()
        if localization.same_names > 1:
            node.complaints.error(
                'same name', f'{localization.same_names} nodes are named '
                f'{node.get_fully_qualified_name()}; give each its own namespace')

    # Snapshots

    def _snapshots(self) -> list[Any]:
        made = [self._localization(), self._latency(), self._transforms(), self._refiner(),
                self._map()]
        if self._node.input is not None:
            made[1:1] = [self._input(), self._camera_info()]
        return made

    def _localization(self) -> LocalizationSnapshot:
        node = self._node
        result, estimate = node.last_result, None
        active = node.worker is not None
        with node.lock:
            tracker = node.pipeline.tracker
            state, epoch = tracker.state, tracker.epoch
            counts, rejects = dict(tracker.counts), tracker.consecutive_rejects
        deviations = None, None
        if result is not None:
            estimate = result.estimate
            covariance = result.pose.covariance if result.pose is not None else None
            if covariance is not None:
                sigma = np.sqrt(covariance.diagonal())
                deviations = tuple(sigma[:3].tolist()), tuple(sigma[3:].tolist())
        return LocalizationSnapshot(
            state=state.name, active=active, paused=node.paused, epoch=epoch,
            failing=active and node.worker.failing, same_names=self._same_names(),
            reason=result.reason if result else '',
            fix_age=(time.monotonic() - node.last_accepted
                     if state != TrackerState.UNLOCALIZED else None),
            inliers=estimate and estimate.inliers, matches=estimate and estimate.matches,
            reprojection_error=estimate and estimate.reprojection_error,
            position_std=deviations[0], rotation_std=deviations[1], rejects_in_a_row=rejects,
            last_jump=self._last_jump, counts=counts)

    def _input(self) -> InputSnapshot:
        node, now = self._node, time.monotonic()
        source, drops = node.input, node.drops.counts()
        kind, text = node.last_drop
        silence = now - max(source.last_arrival, self._begun or now)
        return InputSnapshot(
            topics=self._topics(source.image_topics), silence=silence,
            received=source.received, rate=self._received.per_second(now),
            processed_rate=self._processed.per_second(now), age=node.latencies['age'].summary(),
            encoding=source.encoding, transport=node.parameters.values.image_transport,
            degraded=kind if kind in DEGRADED else '', frozen=kind == 'frozen',
            clock_stopped=(node.uses_simulated_time()
                           and now - self._clock_moved > CLOCK_STOPPED),
            drops=drops, last_drop=text)

    def _camera_info(self) -> CameraInfoSnapshot:
        node = self._node
        source, frames = node.input, node.input.cameras.frames
        waiting = node.worker.slot.waiting() if node.worker is not None else None
        known = [frame for frame, camera in frames.items() if camera is not None]
        lacking = waiting is not None and waiting.header.frame_id.lstrip('/') not in known
        return CameraInfoSnapshot(
            topics=self._topics(source.info_topics), frames=tuple(known),
            waiting=time.monotonic() - max(node.last_processed, self._begun) if lacking else 0.0,
            timeout=node.parameters.values.camera_info_timeout,
            model=next((frames[frame].model for frame in known), ''),
            changes=source.cameras.changes,
            complaint='' if known or not frames else 'the camera_info heard of cannot be used',
            size_matches=False if node.last_drop[0] == 'bad_size' else None)

    def _latency(self) -> LatencySnapshot:
        node = self._node
        busy = node.worker.busy_since if node.worker is not None else None
        stages = {step: values.summary() for step, values in node.latencies.items()}
        return LatencySnapshot(
            stages={step: summary for step, summary in stages.items() if summary is not None},
            busy_for=0.0 if busy is None else time.monotonic() - busy)

    def _transforms(self) -> TransformSnapshot:
        node = self._node
        parameters, broadcaster = node.parameters.values, node.broadcaster
        kind = node.last_drop[0]
        missing = kind.startswith('tf_')
        extrinsic = ''
        if missing and f"'{parameters.base_frame_id}'" in self._last_transform_text and \
                parameters.odom_frame_id not in self._last_transform_text:
            camera = node.camera_frame(node.input.newest_frame_id if node.input else '')
            extrinsic = (f'{self._last_transform_text}; publish it, for example: '
                         + static_transform_command(parameters.base_frame_id, camera))
        odometry = None
        if parameters.tf_mode == 'map_to_odom':
            odometry = not (missing and not extrinsic)
        return TransformSnapshot(
            mode=parameters.tf_mode, odom_frame=parameters.odom_frame_id,
            base_frame=parameters.base_frame_id, odometry=odometry, extrinsic_fault=extrinsic,
            wait=node.latencies['transforms'].summary(), failures=dict(self._transform_failures),
            foreign=tuple(f'{parent} -> {child}' for child, parent in
                          node.foreign.foreign().items()) if node.foreign is not None else (),
            rate=self._broadcast.per_second(time.monotonic()),
            sent=broadcaster.sent if broadcaster is not None else 0,
            jumps=self.jumps)

    def _refiner(self) -> RefinerSnapshot:
        at = self._refined_at
        topic = self._node.resolve_topic_name('refined_pose')
        return RefinerSnapshot(
            publishers=self._node.count_publishers(topic),
            silence=None if at is None else time.monotonic() - at, counts=dict(self._refined),
            latency=self._refined_latency.summary())

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
            name, self._node.count_publishers(name),
            tuple(line for line in self._node.incompatible if line.startswith(f"'{name}'")))
            for name in names)

    def _same_names(self) -> int:
        own = self._node.get_name(), self._node.get_namespace()
        return self._node.get_node_names_and_namespaces().count(own)
