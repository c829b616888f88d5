"""
A tree of frames over time: what a transform was at a stamp, never outside what was heard.

Without ROS; it stands in where tf2_ros is not installed, and serves a replay that has no clock.
A link is kept as it arrives, seven numbers (x y z, quaternion x y z w), and becomes a matrix only
when somebody looks it up: a thousand transforms a second cost little.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
import math

from nerfmatch_ros.data.tum import numbers_from_pose
from nerfmatch_ros.errors import DataError, NerfmatchError
from nerfmatch_ros.localization.rigid_motion import inverse
import numpy as np

SECOND = 1_000_000_000  # nanoseconds
# tf2 refuses a quaternion whose squared length is further from 1, so the whole robot does.
NORM_TOLERANCE = 1e-2
PRUNE_SHARE = 16  # a history is cut once it is too long by this fraction, not at every arrival
FRAMES_NAMED = 20  # in the text of an error


class TransformError(NerfmatchError):
    """
    A transform cannot be given at the time asked for.

    kind: 'missing', a frame was never heard of; 'disconnected', no chain of links joins the two;
    'future', the link is not yet there at that time; 'past', it is no longer there, or never was.
    Waiting helps against all but 'past'.
    """

    def __init__(self, kind: str, text: str):
        """Keep the kind beside the text."""
        super().__init__(text)
        self.kind = kind


class TransformBuffer:
    """The links of the last seconds; not thread safe."""

    def __init__(self, duration: float = 30.0):
        """Keep `duration` seconds before the newest stamp of every link; static links for ever."""
        self._duration_ns = int(duration * SECOND)
        self._links: dict[str, _Link] = {}
        # child -> its former and its present parent; two publishers that disagree show here.
        self.conflicts: dict[str, tuple[str, str]] = {}

    @property
    def parents(self) -> dict[str, str]:
        """The parent of every child."""
        return {child: link.parent for child, link in self._links.items()}

    def set(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray,
            static: bool = False) -> bool:
        """Keep parent_from_child (4, 4) at a stamp; see `set_numbers`."""
        numbers = tuple(numbers_from_pose(np.asarray(parent_from_child, np.float64)).tolist())
        return self.set_numbers(parent, child, stamp_ns, numbers, static)

    def set_numbers(self, parent: str, child: str, stamp_ns: int, numbers: Sequence[float],
                    static: bool = False) -> bool:
        """
        Keep x y z, quaternion x y z w of the child in its parent; False if it is too old to keep.

        A child has one parent: another one, like a change between static and not, starts the
        link anew. Raises a DataError for what is no link, see `check_link`.
        """
        parent, child = parent.lstrip('/'), child.lstrip('/')
        check_link(parent, child, numbers)
        link = self._links.get(child)
        if link is None or link.parent != parent or link.static != static:
            if link is not None and link.parent != parent:
                self.conflicts[child] = link.parent, parent
            link = self._links[child] = _Link(parent, child, static)
        return link.add(stamp_ns, numbers, self._duration_ns)

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """
        Give target_from_source (4, 4) at a stamp.

        Between two stamps of a link the position is interpolated linearly and the rotation on
        the shortest arc. Raises a TransformError outside of them: nothing is extrapolated.
        """
        target, source = target.lstrip('/'), source.lstrip('/')
        if target == source:
            return np.eye(4)
        up, down = self._path(target, source)
        gaps = [gap for link in up + down if (gap := link.gap(stamp_ns)) is not None]
        for gap in gaps:
            if gap.kind == 'past':  # waiting for the others would be in vain
                raise gap
        if gaps:
            raise gaps[0]
        return inverse(_product(down, stamp_ns)) @ _product(up, stamp_ns)

    def latest(self, target: str, source: str) -> tuple[np.ndarray, int]:
        """
        Give target_from_source (4, 4) at the newest stamp that all links between have, and it.

        The stamp is 0 where all of them are static.
        """
        target, source = target.lstrip('/'), source.lstrip('/')
        if target == source:
            return np.eye(4), 0
        up, down = self._path(target, source)
        stamp = min((link.stamps[-1] for link in up + down if not link.static), default=0)
        return self.lookup(target, source, stamp), stamp

    def clear(self):
        """Forget every link but the static ones, as after a clock that jumped back."""
        self._links = {child: link for child, link in self._links.items() if link.static}

    def _path(self, target: str, source: str) -> tuple[list['_Link'], list['_Link']]:
        """Give the links from the source, and from the target, up to their nearest ancestor."""
        for frame in (target, source):
            self._check_known(frame)
        up, down = self._ancestry(source), self._ancestry(target)
        if (up[-1].parent if up else source) != (down[-1].parent if down else target):
            raise TransformError(
                'disconnected', f"no chain of transforms joins '{source}' and '{target}': the one "
                f"hangs below '{up[-1].parent if up else source}', the other below "
                f"'{down[-1].parent if down else target}'; publish the link that is missing")
        while up and down and up[-1] is down[-1]:
            del up[-1], down[-1]
        return up, down

    def _ancestry(self, frame: str) -> list['_Link']:
        """Give the links from a frame up to its root."""
        links, seen = [], {frame}
        while (link := self._links.get(frame)) is not None:
            links.append(link)
            frame = link.parent
            if frame in seen:
                names = ' -> '.join(link.child for link in links)
                raise TransformError('disconnected', f'transforms form a loop: {names} -> '
                                     f'{frame}; a tree has none, stop one of their publishers')
            seen.add(frame)
        return links

    def _check_known(self, frame: str):
        if frame in self._links or any(frame == link.parent for link in self._links.values()):
            return
        known = sorted({*self._links, *(link.parent for link in self._links.values())})
        text = ', '.join(known[:FRAMES_NAMED]) + (' ...' if len(known) > FRAMES_NAMED else '')
        raise TransformError('missing', f"frame '{frame}' is in no transform; heard of so far: "
                             f'{text or "none"}; start what publishes it or correct its name')


class _Link:
    """The history of one child in its parent."""

    def __init__(self, parent: str, child: str, static: bool):
        self.parent, self.child, self.static = parent, child, static
        self.stamps: list[int] = []  # strictly increasing
        self.numbers: list[Sequence[float]] = []

    def add(self, stamp_ns: int, numbers: Sequence[float], duration_ns: int) -> bool:
        stamps = self.stamps
        if self.static:
            self.stamps, self.numbers = [stamp_ns], [numbers]
            return True
        if not stamps or stamp_ns > stamps[-1]:
            stamps.append(stamp_ns)
            self.numbers.append(numbers)
            if stamps[0] < stamp_ns - duration_ns - duration_ns // PRUNE_SHARE:
                # One stamp before the limit stays, to interpolate from.
                expired = bisect_right(stamps, stamp_ns - duration_ns) - 1
                del stamps[:expired], self.numbers[:expired]
            return True
        if stamp_ns < stamps[-1] - duration_ns:
            return False
        k = bisect_left(stamps, stamp_ns)
        if stamps[k] == stamp_ns:
            self.numbers[k] = numbers
        else:
            stamps.insert(k, stamp_ns)
            self.numbers.insert(k, numbers)
        return True

    def gap(self, stamp_ns: int) -> TransformError | None:
        """Give the error of looking up outside of the stamps."""
        if self.static or self.stamps[0] <= stamp_ns <= self.stamps[-1]:
            return None
        if stamp_ns > self.stamps[-1]:
            seconds = (stamp_ns - self.stamps[-1]) / SECOND
            return TransformError(
                'future', f"'{self.child}' in '{self.parent}' is asked for at "
                f'{format_stamp(stamp_ns)}, {seconds:.3f} s after its newest transform; wait '
                'longer, or look for what delays or stopped its publisher')
        seconds = (self.stamps[0] - stamp_ns) / SECOND
        return TransformError(
            'past', f"'{self.child}' in '{self.parent}' is asked for at {format_stamp(stamp_ns)}, "
            f'{seconds:.3f} s before its oldest transform that is kept; ask sooner or keep more')

    def at(self, stamp_ns: int) -> np.ndarray:
        """Give parent_from_child (4, 4); the stamp lies inside."""
        if self.static:
            return matrix_from_numbers(self.numbers[0])
        k = bisect_left(self.stamps, stamp_ns)
        if self.stamps[k] == stamp_ns:
            return matrix_from_numbers(self.numbers[k])
        before, after = self.stamps[k - 1], self.stamps[k]
        return matrix_from_numbers(interpolate(
            self.numbers[k - 1], self.numbers[k], (stamp_ns - before) / (after - before)))


def check_link(parent: str, child: str, numbers: Sequence[float]):
    """Raise a DataError for names that make no link and for numbers that are no rigid motion."""
    if not parent or not child:
        raise DataError(f"transform from '{child}' to '{parent}' lacks the name of a frame; "
                        'its publisher has to fill in frame_id and child_frame_id')
    if parent == child:
        raise DataError(f"transform of '{child}' in itself; its publisher has to name two frames")
    x, y, z, qx, qy, qz, qw = numbers
    square = qx * qx + qy * qy + qz * qz + qw * qw
    # One test for seven: any number that is not finite makes the sum so.
    if not math.isfinite(x + y + z + square):
        raise DataError(f"transform of '{child}' in '{parent}' is not finite: {list(numbers)} "
                        '(x y z, quaternion x y z w)')
    if abs(square - 1) > NORM_TOLERANCE:
        raise DataError(
            f"transform of '{child}' in '{parent}' has the quaternion {list(numbers[3:])} "
            f'(x y z w) of length {math.sqrt(square):.4g}; it must be 1'
            + ('; 0 0 0 1 is no rotation' if square == 0 else ''))


def interpolate(
    first: Sequence[float], second: Sequence[float], ratio: float,
) -> tuple[float, ...]:
    """Give x y z, quaternion x y z w between two of them; ratio: 0 at the first, 1 at the second.

    The quaternion may come out a little off unit length, as those that go in.
    """
    a, b = first[3:], second[3:]
    cosine = a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
    sign = -1.0 if cosine < 0 else 1.0  # q and -q turn alike: take the shorter arc
    angle = math.acos(min(1.0, sign * cosine))
    sine = math.sin(angle)
    if sine < 1e-6:  # the arc is its chord
        left, right = 1 - ratio, sign * ratio
    else:
        left = math.sin((1 - ratio) * angle) / sine
        right = sign * math.sin(ratio * angle) / sine
    return (*(p + ratio * (q - p) for p, q in zip(first[:3], second[:3])),
            *(left * p + right * q for p, q in zip(a, b)))


def matrix_from_numbers(numbers: Sequence[float]) -> np.ndarray:
    """Give the matrix (4, 4) of x y z, quaternion x y z w; the quaternion is normalised."""
    px, py, pz, x, y, z, w = numbers
    s = 2.0 / (x * x + y * y + z * z + w * w)
    return np.array((
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w), px),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w), py),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y), pz),
        (0.0, 0.0, 0.0, 1.0)))


def format_stamp(stamp_ns: int) -> str:
    """Write a stamp in seconds, every digit of it."""
    return f'{stamp_ns // SECOND}.{stamp_ns % SECOND:09d}'


def _product(links: list[_Link], stamp_ns: int) -> np.ndarray:
    """Give ancestor_from_frame (4, 4) of the links from a frame up to an ancestor of it."""
    product = np.eye(4)
    for link in links:
        product = link.at(stamp_ns) @ product
    return product
