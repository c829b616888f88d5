"""Every transform of a bag: the way of a frame through another at many stamps at once."""

from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.bag_messages import read_stamp
from nerfmatch_ros.ros.transform_buffer import check_link, SECOND, TransformBuffer, TransformError
import numpy as np
from scipy.spatial.transform import Rotation

_ROUNDING = 1e-6  # metres, or parts of a quaternion; a static transform that differs less is one


class TransformLink:
    """All that was said of one child in one parent; 64 bytes a transform."""

    def __init__(self, parent: str, child: str, static: bool):
        self.parent, self.child, self.static = parent, child, static
        self._stamps, self._numbers = array('q'), array('d')

    def __len__(self) -> int:
        return len(self._stamps)

    def add(self, stamp_ns: int, numbers: Sequence[float], received_ns: int = 0) -> None:
        """Keep x y z, quaternion x y z w; of a static link only what changes.

        received_ns: since when that holds, if its stamp is not later than that of the one before.
        """
        if self.static and self._stamps:
            if _same(self._numbers[-7:], numbers):
                return
            if stamp_ns <= self._stamps[-1]:
                stamp_ns = max(received_ns, self._stamps[-1])
        self._stamps.append(stamp_ns)
        self._numbers.extend(numbers)

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Give stamps (N,) in ns and numbers (N, 7) as they came."""
        return (np.array(self._stamps, np.int64),
                np.array(self._numbers, np.float64).reshape(-1, 7))

    @property
    def span_ns(self) -> tuple[int, int]:
        """First and last stamp."""
        return min(self._stamps), max(self._stamps)

    def first(self) -> tuple[int, list[float]]:
        """Give stamp and numbers of the first one."""
        return self._stamps[0], self._numbers[:7].tolist()

    def at(
        self, stamps_ns: np.ndarray, longest_gap_ns: int,
    ) -> tuple[np.ndarray, list[str]]:
        """
        Give parent_from_child (M, 4, 4) at stamps (M,), and why it is not known, '' if it is.

        Poses that are not known are NaN: before the first transform, after the last, and between
        two that are further apart than `longest_gap_ns`. A static link holds until it changes,
        and before.
        """
        numbers = np.frombuffer(self._numbers, np.float64).reshape(-1, 7)
        if self.static:
            valid = np.searchsorted(np.frombuffer(self._stamps, np.int64), stamps_ns, 'right') - 1
            return _poses(numbers)[np.maximum(valid, 0)], [''] * len(stamps_ns)
        # Of equal stamps the last counts, as a listener would have it.
        stamps, last = np.unique(np.frombuffer(self._stamps, np.int64)[::-1], return_index=True)
        last = len(numbers) - 1 - last
        after = np.searchsorted(stamps, stamps_ns)
        needed = np.unique(np.clip(np.concatenate((after - 1, after)), 0, len(stamps) - 1))
        way = Trajectory(stamps[needed], _poses(numbers[last[needed]]))
        poses = way.at(stamps_ns, longest_gap_ns)
        known = np.isfinite(poses).all(axis=(1, 2))
        return poses, ['' if here else self._gap(stamp, k, stamps) for here, stamp, k in
                       zip(known.tolist(), np.asarray(stamps_ns).tolist(), after.tolist())]

    def _gap(self, stamp: int, k: int, stamps: np.ndarray) -> str:
        name = f"'{self.child}' in '{self.parent}'"
        if k == 0:
            return f'{(int(stamps[0]) - stamp) / SECOND:.3f} s before the first of {name}'
        if k == len(stamps):
            return f'{(stamp - int(stamps[-1])) / SECOND:.3f} s after the last of {name}'
        return f'in a gap of {int(stamps[k] - stamps[k - 1]) / SECOND:.3f} s of {name}'


class TransformLog:
    """
    What was heard on topics of transforms, to be looked up afterwards.

    Other than a TransformBuffer it keeps everything in little memory, and a child that two
    publishers hang below different parents is looked up along the shorter chain.
    """

    def __init__(self):
        self._links: dict[tuple[str, str, bool], TransformLink] = {}
        self.refused: Counter[str] = Counter()  # why transforms were not taken, without numbers

    def add(self, message: Any, static: bool, received_ns: int = 0) -> None:
        """Keep the transforms of a tf2_msgs/TFMessage."""
        for stamped in message.transforms:
            t, q = stamped.transform.translation, stamped.transform.rotation
            self.add_numbers(stamped.header.frame_id, stamped.child_frame_id,
                             read_stamp(stamped.header),
                             (t.x, t.y, t.z, q.x, q.y, q.z, q.w), static, received_ns)

    def add_numbers(
        self, parent: str, child: str, stamp_ns: int, numbers: Sequence[float], static: bool,
        received_ns: int = 0,
    ) -> None:
        """Keep x y z, quaternion x y z w of a child in its parent, or count why not."""
        parent, child = parent.lstrip('/'), child.lstrip('/')
        try:
            check_link(parent, child, numbers)
        except DataError:
            self.refused[f"'{child}' in '{parent}'"] += 1
            return
        key = parent, child, static
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = TransformLink(parent, child, static)
        link.add(stamp_ns, numbers, received_ns)

    @property
    def frames(self) -> list[str]:
        """The names of all frames."""
        return sorted({name for link in self._links.values()
                       for name in (link.parent, link.child)})

    def path(self, target: str, source: str) -> list[TransformLink]:
        """
        Give the links from the source to the target, the shortest way.

        Raises a TransformError where there is none.
        """
        came: dict[str, tuple[str, TransformLink] | None] = {source: None}
        waiting = deque([source])
        while waiting and target not in came:
            here = waiting.popleft()
            for link, other in self._around(here):
                if other not in came:
                    came[other] = here, link
                    waiting.append(other)
        if target not in came:
            self._explain(target, source)
        path = []
        step = came[target]
        while step is not None:
            path.append(step[1])
            step = came[step[0]]
        return path[::-1]

    def at(
        self, target: str, source: str, stamps_ns: np.ndarray, longest_gap_ns: int,
    ) -> tuple[np.ndarray, list[str]]:
        """
        Give target_from_source (M, 4, 4) at stamps (M,), and why it is not known, as a link does.

        Raises a TransformError where no chain of links joins the two.
        """
        product = np.broadcast_to(np.eye(4), (len(stamps_ns), 4, 4))
        reasons = [''] * len(stamps_ns)
        here = source
        for link in self.path(target, source):
            poses, gaps = link.at(stamps_ns, longest_gap_ns)
            if link.child == here:
                here = link.parent
            else:
                here, poses = link.child, _inverse(poses)
            product = poses @ product
            reasons = [first or gap for first, gap in zip(reasons, gaps)]
        return product, reasons

    def parents(self, child: str) -> list[str]:
        """Give the parents that a child was given; more than one is a fault of the robot."""
        return sorted({link.parent for link in self._links.values() if link.child == child})

    def _around(self, frame: str) -> Iterator[tuple[TransformLink, str]]:
        """Give the links of a frame, and what is at their other ends; of two alike the better."""
        by_end: dict[str, TransformLink] = {}
        for link in self._links.values():
            if frame not in (link.parent, link.child):
                continue
            other = link.parent if link.child == frame else link.child
            known = by_end.get(other)
            # What moves says more than what is fixed; a single transform does not move.
            if known is None or _tells(link) > _tells(known):
                by_end[other] = link
        for other, link in by_end.items():
            yield link, other

    def _explain(self, target: str, source: str) -> None:
        """Raise the error of two frames that nothing joins."""
        buffer = TransformBuffer()
        for link in self._links.values():
            buffer.set_numbers(link.parent, link.child, *link.first(), static=True)
        buffer.lookup(target, source, 0)
        raise TransformError('disconnected', f"nothing joins '{source}' and '{target}'")


def _tells(link: TransformLink) -> tuple[int, bool]:
    """Give what orders links of the same frames by how much they say."""
    return 1 if link.static else len(link), not link.static


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tell whether poses differ by rounding at most; of a quaternion both signs mean the same."""
    sign = 1.0 if sum(a * b for a, b in zip(one[3:], other[3:])) > 0 else -1.0
    return all(abs(a - b) < _ROUNDING for a, b in zip(one[:3], other[:3])) \
        and all(abs(a - sign * b) < _ROUNDING for a, b in zip(one[3:], other[3:]))


def _poses(numbers: np.ndarray) -> np.ndarray:
    """Give poses (N, 4, 4) of x y z, quaternion x y z w (N, 7)."""
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(numbers[:, 3:]).as_matrix()
    poses[:, :3, 3] = numbers[:, :3]
    return poses


def _inverse(poses: np.ndarray) -> np.ndarray:
    """Invert poses (N, 4, 4)."""
    inverse = np.array(poses)
    inverse[:, :3, :3] = poses[:, :3, :3].transpose(0, 2, 1)
    inverse[:, :3, 3] = -np.einsum('nij,nj->ni', inverse[:, :3, :3], poses[:, :3, 3])
    return inverse
