"""What a node says about its health: plain snapshots in, diagnostic messages out."""

from collections.abc import Mapping
import math
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
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
from nerfmatch_ros.ros.statistics import Summary
from std_msgs.msg import Header

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

SILENCE = 5.0  # seconds without images that are worth a warning
BUSY = 10.0  # seconds in one image that are worth a warning
LONGEST = 1000  # characters of a value, some of which come from messages of others
REFINER_SILENCE = 30.0  # seconds without a refined pose that are worth a warning


class _Findings:
    """Collects what is wrong; the worst decides the level."""

    def __init__(self):
        self._found: list[tuple[bytes, str]] = []

    def add(self, condition: Any, level: bytes, text: str):
        if condition:
            self._found.append((level, text))

    def status(self, name: str, fine: str, values: Mapping[str, Any]) -> DiagnosticStatus:
        """fine: the message where nothing was found."""
        ordered = sorted(self._found, key=lambda item: item[0], reverse=True)
        return DiagnosticStatus(
            level=ordered[0][0] if ordered else OK, name=name,
            message='; '.join(text for _, text in ordered) or fine,
            values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()])


def localization_status(now: LocalizationSnapshot) -> DiagnosticStatus:
    """OK while localized, WARN while coasting, ERROR while lost or never localized."""
    found = _Findings()
    if now.active:
        found.add(now.paused, WARN, 'paused')
        distance = '' if now.fix_distance is None else f', {now.fix_distance:.2f} m since'
        found.add(now.state == 'COASTING', WARN,
                  f'coasting: last pose {_text(now.fix_age)} s ago{distance}')
        found.add(now.state == 'LOST', ERROR, f'lost: last pose {_text(now.fix_age)} s ago')
        found.add(now.state == 'UNLOCALIZED', ERROR, 'not localized yet')
        found.add(now.degraded, WARN, f'DEGRADED: {now.reason}')
        found.add(now.state != 'LOCALIZED' and now.reason and not now.degraded, WARN,
                  f'last image: {now.reason}')
    found.add(now.failing, ERROR, 'callbacks or images keep failing; the log has the traceback')
    found.add(now.same_names > 1, ERROR,
              f'{now.same_names} nodes have this name; give each its own namespace')
    jump = now.last_jump or (None, None)
    return found.status('localization', 'localized' if now.active else 'inactive', {
        'state': now.state, 'active': now.active, 'paused': now.paused, 'epoch': now.epoch,
        'reason': now.reason, 'degraded': now.degraded, 'seconds since last pose': now.fix_age,
        'metres since last pose': now.fix_distance, **_estimate_values(now),
        'rejects in a row': now.rejects_in_a_row,
        'last jump [m]': jump[0], 'last jump [rad]': jump[1],
        **_counts('poses', now.counts), **_counts('reference', now.references)})


def input_status(now: InputSnapshot) -> DiagnosticStatus:
    """WARN where no image comes or those that come are of no use; ERROR if the clock stands."""
    found = _Findings()
    if now.silence > SILENCE:
        for topic in now.topics:
            found.add(True, WARN, f"no image for {now.silence:.0f} s on '{topic.name}' "
                                  f'({_publishers(topic)})')
    for topic in now.topics:
        for line in topic.mismatches:
            found.add(True, WARN, line)
    found.add(now.degraded, WARN, f'DEGRADED: the pictures are {now.degraded}; is the lens '
                                  'covered, or the exposure wrong?')
    found.add(now.frozen, WARN, 'camera frozen: it repeats one picture')
    found.add(now.clock_stopped, ERROR, 'clock not advancing: use_sim_time is set and nobody '
                                        'publishes /clock, or it is paused')
    found.add(now.received and not now.processed_rate and now.last_drop, WARN,
              f'no image is used; the last one: {now.last_drop}')
    return found.status('input', f'{now.rate:.1f} images/s, {now.processed_rate:.1f} used', {
        'topics': ', '.join(topic.name for topic in now.topics),
        'publishers': ', '.join(str(topic.publishers) for topic in now.topics),
        'received': now.received, 'rate [Hz]': now.rate, 'processed [Hz]': now.processed_rate,
        **_percentiles('age', now.age), 'encoding': now.encoding,
        'size': now.size and f'{now.size[0]} x {now.size[1]}', 'transport': now.transport,
        'stamps monotonic': not now.drops.get('out_of_order'),
        **_counts('dropped', now.drops)})


def camera_info_status(now: CameraInfoSnapshot) -> DiagnosticStatus:
    """WARN where images wait for a camera, ERROR where the camera_info is wrong."""
    found = _Findings()
    found.add(now.complaint, ERROR, now.complaint)
    if now.waiting > now.timeout:
        topics = ', '.join(f"'{topic.name}' ({_publishers(topic)})" for topic in now.topics)
        frames = ', '.join(map(repr, now.lacking))
        found.add(True, WARN, f'no camera_info of frame {frames} for {now.waiting:.0f} s on '
                              f'{topics}; images wait for it')
    for topic in now.topics:
        for line in topic.mismatches:
            found.add(True, WARN, line)
    found.add(now.size_matches is False, ERROR, 'image and camera_info differ in size')
    return found.status('camera_info', 'present' if now.frames else 'none yet', {
        'topics': ', '.join(topic.name for topic in now.topics),
        'frames': ', '.join(now.frames), 'model': now.model,
        'valid': bool(now.frames) and not now.complaint, 'size matches': now.size_matches,
        'changes': now.changes})


def latency_status(now: LatencySnapshot) -> DiagnosticStatus:
    """WARN where one image takes unusually long."""
    found = _Findings()
    found.add(now.busy_for > BUSY, WARN, f'one image has taken {now.busy_for:.0f} s so far')
    total = now.stages.get('total')
    values = {}
    for stage, summary in now.stages.items():
        values.update(_percentiles(stage, summary))
    return found.status(
        'latency', f'{total.p50:.3f} s for an image' if total else 'no image yet',
        {**values, 'share of time busy': now.busy})


def transform_status(now: TransformSnapshot) -> DiagnosticStatus:
    """ERROR where a transform is missing for good or somebody else sends ours."""
    found = _Findings()
    found.add(now.odometry is False and now.mode == 'map_to_odom', ERROR,
              f'no transform {now.odom_frame} to {now.base_frame} at the stamps of the images; '
              'without odometry use tf_mode map_to_base or map_to_camera')
    found.add(now.extrinsic_fault, ERROR, now.extrinsic_fault)
    found.add(now.foreign, ERROR, f'others send {", ".join(now.foreign)} as well, which this node '
                                  'broadcasts; stop them, or set tf_mode none here')
    return found.status('tf', f'{now.rate:.1f} transforms/s', {
        'mode': now.mode, 'odometry available': now.odometry, **_percentiles('wait', now.wait),
        'sent': now.sent, 'rate [Hz]': now.rate, 'jumps': now.jumps,
        'other publishers': ', '.join(now.foreign), **_counts('failed', now.failures)})


def output_status(now: OutputSnapshot) -> DiagnosticStatus:
    """WARN where somebody asks for more than is offered."""
    found = _Findings()
    for line in now.mismatches:
        found.add(True, WARN, line)
    return found.status('output', f'{sum(now.subscribers.values())} subscribers', {
        f'subscribers {topic}': count for topic, count in now.subscribers.items()})


def refiner_status(now: RefinerSnapshot) -> DiagnosticStatus:
    """WARN at most: localization goes on without."""
    found = _Findings()
    heard = now.silence is not None
    late = not heard or now.silence > REFINER_SILENCE
    found.add(not now.publishers, WARN, 'no refiner runs')
    found.add(now.publishers and late, WARN,
              f'no refined pose for {now.silence:.0f} s' if heard else 'no refined pose yet')
    return found.status('refiner', 'alive' if now.publishers else 'none', {
        'publishers': now.publishers, 'seconds since last message': now.silence,
        **_percentiles('latency', now.latency), 'mean improvement [m]': now.improvement,
        **_counts('refined', now.counts)})


def map_status(now: MapSnapshot) -> DiagnosticStatus:
    """WARN where memory ran out."""
    found = _Findings()
    found.add(now.out_of_memory, WARN, f'out of memory in {now.out_of_memory} images')
    return found.status('map', f'{now.path} on {now.device}' if now.loaded else 'no map loaded', {
        'path': now.path, 'sha256': now.sha256, 'frame': now.frame, 'loaded at': now.loaded_at,
        'device': now.device, 'memory [MB]': _megabytes(now.memory),
        'memory limit [MB]': _megabytes(now.memory_limit), 'out of memory': now.out_of_memory})


_MAKERS = {
    LocalizationSnapshot: localization_status, InputSnapshot: input_status,
    CameraInfoSnapshot: camera_info_status, LatencySnapshot: latency_status,
    TransformSnapshot: transform_status, OutputSnapshot: output_status,
    RefinerSnapshot: refiner_status, MapSnapshot: map_status,
}


def diagnostic_array(
    node_name: str, stamp: Time, snapshots: list[Any], hardware_id: str = '',
) -> DiagnosticArray:
    """Make the message for /diagnostics of snapshots of any of the classes above."""
    statuses = []
    for snapshot in snapshots:
        status = _MAKERS[type(snapshot)](snapshot)
        status.name = f'{node_name}: {status.name}'
        status.hardware_id = hardware_id
        statuses.append(status)
    return DiagnosticArray(header=Header(stamp=stamp), status=statuses)


def status_message(
    node_name: str, now: LocalizationSnapshot, *, stamp_ns: int, verdict: str,
    seconds: Mapping[str, float], map_sha256: str,
) -> DiagnosticStatus:
    """
    Make the message for ~/status: what became of one image, and the state after it.

    stamp_ns: of the image; verdict: the pipeline's; seconds: spent on it, by stage.
    """
    status = localization_status(now)
    status.name = f'{node_name}: status'
    status.hardware_id = map_sha256[:12]
    values = {'stamp': stamp_ns, 'verdict': verdict, 'map_sha256': map_sha256,
              **{f'seconds {stage}': spent for stage, spent in seconds.items()}}
    status.values = [*(KeyValue(key=key, value=_text(value)) for key, value in values.items()),
                     *status.values]
    return status


def status_values(message: DiagnosticStatus) -> dict[str, str]:
    """Give the numbers and texts of a status by their keys."""
    return {item.key: item.value for item in message.values}


def _publishers(topic: TopicSnapshot) -> str:
    if topic.mismatches:
        return f'{topic.publishers} publishers, some with an incompatible quality of service'
    return f'{topic.publishers} publishers'


def _estimate_values(now: LocalizationSnapshot) -> dict[str, Any]:
    ratio = now.inliers / now.matches if now.matches and now.inliers is not None else None
    values = {'inliers': now.inliers, 'matches': now.matches, 'inlier ratio': ratio,
              'reprojection error [px]': now.reprojection_error,
              'probability': now.probability, 'reference': now.reference or None}
    for name, unit, spread in (
            ('sigma ', 'm', now.position_std), ('sigma r', 'rad', now.rotation_std)):
        for k, axis in enumerate('xyz'):
            values[f'{name}{axis} [{unit}]'] = None if spread is None else spread[k]
    return values


def _percentiles(name: str, summary: Summary | None) -> dict[str, float | None]:
    return {f'{name} {part} [s]': summary and getattr(summary, part)
            for part in ('p50', 'p95', 'max')}


def _counts(name: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {f'{name} {kind}': count for kind, count in sorted(counts.items())}


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 2**20


def _text(value: Any) -> str:
    """Write a value; '-' where there is none."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return '-'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return f'{value:.4g}' if isinstance(value, float) else str(value)[:LONGEST]
