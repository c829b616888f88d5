"""One frame, from its pixels to a pose in the stream: predict, localize, gate, fuse.

What a node and a deterministic replay share; it knows neither messages nor threads. The body is
what the tracker follows: the base of a robot, or the camera itself where there is no base.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
import time
from typing import Any, Protocol

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.body_pose import body_from_camera, camera_from_body, flatten
from nerfmatch_ros.localization.pose_history import Fix
from nerfmatch_ros.localization.pose_tracker import PoseTracker, TrackedPose
import numpy as np

# target frame, source frame, stamp in nanoseconds -> target_from_source (4, 4)
Lookup = Callable[[str, str, int], np.ndarray]

_EXTRINSICS_KEPT = 1000  # frames whose base_from_camera is remembered for a late refined pose


class Backend(Protocol):
    """What localizes a single image; `localization.localizer.Localizer` is one."""

    map_sha256: str  # of the map in use
    # A backend may also have a `clock`, a StageClock that times the stages of `localize`, or None.

    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Estimate map_from_camera; prior: (4, 4), where to look from first."""

    def refine(self, image: PosedImage, map_from_camera: np.ndarray) -> PoseEstimate:
        """Improve a pose (4, 4) of the same image."""


@dataclass(frozen=True)
class TrackedFrames:
    """Which frames the pose stream is about."""

    base: str | None  # body of the robot; None: the camera is the body
    odom: str | None  # None: no odometry, the body moves as fast as the tracker's bounds allow
    odometry_required: bool  # False: used in an epoch if its first fix finds it
    pose_of_camera: bool  # the pose that is given out is the camera's, not the body's

    @staticmethod
    def for_mode(tf_mode: str, pose_frame: str, base: str, odom: str) -> 'TrackedFrames':
        """Choose by what is broadcast, tf_mode, and by whose pose is published, pose_frame.

        Only map_to_odom and none may use odometry: a base or camera whose parent is the map has
        no other parent.
        """
        camera_only = tf_mode == 'map_to_camera' or (tf_mode == 'none' and pose_frame == 'camera')
        return TrackedFrames(
            base=None if camera_only else base,
            odom=odom if tf_mode in ('map_to_odom', 'none') else None,
            odometry_required=tf_mode == 'map_to_odom',
            pose_of_camera=camera_only or pose_frame == 'camera')


@dataclass(frozen=True)
class PipelineOptions:
    """How a frame is searched and what its covariance is taken for."""

    search_globally: bool = False  # every frame on its own; False: from the predicted pose
    covariance_scale: float = 1.0  # factor on the covariance of every fix
    min_probability: float = 0.0  # of being correct, for a fix that counts
    two_d: bool = False  # the body stays on the plane z = 0, upright


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What became of one frame."""

    stamp_ns: int
    epoch: int
    # accepted relocalized pending gated stale invalid: as the tracker says; no_fix: no
    # estimate; superseded: the epoch ended while the frame was worked on
    verdict: str
    reason: str = ''  # why there is no pose, '' with one
    estimate: PoseEstimate | None = None  # of the camera
    # map_from_body (4, 4), covariance (6, 6) of this image alone; None: no fix, or an invalid one
    raw: tuple[np.ndarray, np.ndarray] | None = None
    pose: TrackedPose | None = None  # fused, to be published; of the body
    jump: tuple[float, float] | None = None  # metres, radians, of a relocalization
    odometry_jumped: bool = False
    base_from_camera: np.ndarray | None = None
    odom_from_base: np.ndarray | None = None
    # transforms, localize, fuse; of a backend with a clock also 'localize/STAGE'
    seconds: dict[str, float] = field(default_factory=dict)


class FramePipeline:
    """
    Takes frames one at a time, from one thread; the tracker is touched under its lock only.

    tracker, options: may be replaced by another thread while it holds the lock.
    """

    def __init__(
        self, backend: Backend, tracker: PoseTracker, frames: TrackedFrames, lookup: Lookup, *,
        lock: AbstractContextManager[Any], options: PipelineOptions | None = None,
        on_odometry_jump: Callable[[], None] = lambda: None,
    ):
        """
        Keep the parts.

        lookup: gives a transform at a stamp or raises a NerfmatchError that says why not;
        on_odometry_jump: called under the lock when odometry has begun a new epoch.
        """
        self.backend = backend
        self.tracker = tracker
        self.frames = frames
        self.options = options or PipelineOptions()
        self._lookup = lookup
        self._lock = lock
        self._on_odometry_jump = on_odometry_jump
        self._odometry_in_epoch: tuple[int, bool] | None = None
        self._base_from_camera: dict[int, np.ndarray] = {}  # by stamp

    def process(self, image: PosedImage, stamp_ns: int, camera_frame: str) -> FrameResult:
        """
        Localize one image and add it to the stream.

        A transform that is needed and missing raises what `lookup` raises, a localizer that
        fails what that raises; nothing is changed then, but for the count of failures.
        """
        clock = [time.perf_counter()]
        with self._lock:
            epoch, backend, options = self.tracker.epoch, self.backend, self.options
        try:
            base_from_camera = self._extrinsic(camera_frame, stamp_ns)
            odom_from_base = self._odometry(epoch, camera_frame, stamp_ns)
        except NerfmatchError:
            self._note_failure(epoch, stamp_ns)
            raise
        if options.two_d and odom_from_base is not None:
            # Fixes on the plane would contradict odometry that rises or leans over.
            odom_from_base, _ = flatten(odom_from_base, None)
        jumped = False
        with self._lock:
            if self.tracker.epoch == epoch and odom_from_base is not None:
                jumped = self.tracker.observe_odometry(stamp_ns, odom_from_base)
                epoch = self.tracker.epoch
                if jumped:
                    self._on_odometry_jump()
            prediction = None
            if not options.search_globally and self.tracker.epoch == epoch:
                prediction = self.tracker.predict(stamp_ns, odom_from_base)
        clock.append(time.perf_counter())
        prior = None if prediction is None else prediction[0] @ base_from_camera
        _stage_seconds(backend)  # of what was asked of it between two frames
        try:
            estimate = backend.localize(image, prior=prior)
        except Exception:
            self._note_failure(epoch, stamp_ns)
            raise
        clock.append(time.perf_counter())
        stages = _stage_seconds(backend)
        result = self._fuse(
            epoch, stamp_ns, estimate, base_from_camera, odom_from_base, options, jumped)
        clock.append(time.perf_counter())
        steps = zip(('transforms', 'localize', 'fuse'), clock, clock[1:])
        result.seconds.update({name: end - start for name, start, end in steps})
        result.seconds.update({f'localize/{stage}': spent for stage, spent in stages.items()})
        return result

    def published_pose(self, result: FrameResult) -> tuple[np.ndarray, np.ndarray]:
        """Give the fused pose and covariance of the frame that is to be named in the pose."""
        return self._of_pose_frame(
            result.pose.map_from_base, result.pose.covariance, result.base_from_camera)

    def raw_pose(self, result: FrameResult) -> tuple[np.ndarray, np.ndarray]:
        """Give the fix of this image alone, of the frame that is to be named in the pose."""
        return self._of_pose_frame(*result.raw, result.base_from_camera)

    def add_refined(self, stamp_ns: int, pose: np.ndarray, covariance: np.ndarray) -> str:
        """
        Replace a fix by its refined pose, of the same frame as the published one.

        Gives the tracker's verdict.
        """
        with self._lock:
            if self.frames.pose_of_camera and self.frames.base is not None:
                base_from_camera = self._base_from_camera.get(stamp_ns)
                if base_from_camera is None:
                    return 'refined_unknown_frame'
                pose, covariance = body_from_camera(pose, covariance, base_from_camera)
            if self.options.two_d:
                pose, covariance = flatten(pose, covariance)
            return self.tracker.add_refined(stamp_ns, pose, covariance)

    def _fuse(
        self, epoch: int, stamp_ns: int, estimate: PoseEstimate, base_from_camera: np.ndarray,
        odom_from_base: np.ndarray | None, options: PipelineOptions, jumped: bool,
    ) -> FrameResult:
        known = {'stamp_ns': stamp_ns, 'estimate': estimate, 'odometry_jumped': jumped,
                 'base_from_camera': base_from_camera, 'odom_from_base': odom_from_base}
        doubt = doubtful(estimate, options.min_probability)
        found = (estimate.map_from_camera is not None and estimate.covariance is not None
                 and not doubt)
        raw = None
        if found:
            raw = body_from_camera(
                estimate.map_from_camera, options.covariance_scale * estimate.covariance,
                base_from_camera)
            raw = flatten(*raw) if options.two_d else raw
        with self._lock:
            if self.tracker.epoch != epoch:
                return FrameResult(verdict='superseded', epoch=epoch, **known,
                                   reason='the estimate belongs to an epoch that has ended')
            if not found:
                self.tracker.add_failure(stamp_ns)
                return FrameResult(
                    verdict='no_fix', epoch=epoch, **known,
                    reason=doubt or estimate.reason or 'the localizer gives no reason')
            outcome = self.tracker.add_fix(Fix(stamp_ns, *raw, odom_from_base))
            self._odometry_in_epoch = self.tracker.epoch, odom_from_base is not None
            self._remember(stamp_ns, base_from_camera)
            return FrameResult(
                verdict=outcome.verdict, epoch=self.tracker.epoch, pose=outcome.pose,
                raw=None if outcome.verdict == 'invalid' else raw, jump=outcome.jump,
                reason=_REASONS.get(outcome.verdict, ''), **known)

    def _note_failure(self, epoch: int, stamp_ns: int):
        with self._lock:
            if self.tracker.epoch == epoch:
                self.tracker.add_failure(stamp_ns)

    def _extrinsic(self, camera_frame: str, stamp_ns: int) -> np.ndarray:
        if self.frames.base is None or self.frames.base == camera_frame:
            return np.eye(4)
        return self._lookup(self.frames.base, camera_frame, stamp_ns)

    def _odometry(self, epoch: int, camera_frame: str, stamp_ns: int) -> np.ndarray | None:
        """Give odom_from_body at the stamp, never at another time; None where it is not used."""
        odom = self.frames.odom
        if odom is None:
            return None
        body = self.frames.base or camera_frame
        if self.frames.odometry_required:
            return self._lookup(odom, body, stamp_ns)
        decided = self._odometry_in_epoch
        if decided is not None and decided[0] == epoch:
            return self._lookup(odom, body, stamp_ns) if decided[1] else None
        try:
            return self._lookup(odom, body, stamp_ns)
        except NerfmatchError:
            return None  # a robot without odometry, or one whose odometry is not there yet

    def _of_pose_frame(
        self, map_from_base: np.ndarray, covariance: np.ndarray, base_from_camera: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.frames.pose_of_camera and self.frames.base is not None:
            return camera_from_body(map_from_base, covariance, base_from_camera)
        return map_from_base, covariance

    def _remember(self, stamp_ns: int, base_from_camera: np.ndarray):
        self._base_from_camera[stamp_ns] = base_from_camera
        if len(self._base_from_camera) > _EXTRINSICS_KEPT:
            del self._base_from_camera[next(iter(self._base_from_camera))]


def _stage_seconds(backend: Backend) -> dict[str, float]:
    """Give and forget the seconds of each stage that a backend timed; {} if it times none."""
    clock = getattr(backend, 'clock', None)
    return {} if clock is None else clock.take()


def doubtful(estimate: PoseEstimate, min_probability: float) -> str:
    """Say why the judge of the map does not let a pose pass, '' where it does or has no say."""
    if estimate.map_from_camera is None or not estimate.probability < min_probability:
        return ''
    return (f'the pose is correct with a probability of {estimate.probability:.2f}; '
            f'min_probability is {min_probability:g}')


_REASONS = {
    'pending': 'a second fix has to agree with this first one',
    'gated': 'the fix contradicts the motion since the last one',
    'stale': 'a fix of this or a later stamp came before',
    'invalid': 'the fix is no pose, or its covariance not positive definite',
}
