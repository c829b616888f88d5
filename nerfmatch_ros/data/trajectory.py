"""Poses by their stamps, and between them."""

from collections.abc import Iterable
from dataclasses import dataclass

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import interpolate
import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The way of one frame through another; stamps increase strictly."""

    stamps_ns: np.ndarray  # (N,) int64
    poses: np.ndarray  # (N, 4, 4) float64

    def __post_init__(self):
        """Refuse stamps out of order: a pose between them would have no meaning."""
        if len(self.stamps_ns) != len(self.poses):
            raise ValueError(f'{len(self.stamps_ns)} stamps for {len(self.poses)} poses')
        behind = np.flatnonzero(np.diff(self.stamps_ns) <= 0)
        if len(behind):
            raise DataError(f'stamp {self.stamps_ns[behind[0] + 1]} ns of a trajectory does not '
                            f'come after {self.stamps_ns[behind[0]]} ns; sort the poses')

    @staticmethod
    def of(stamped: Iterable[tuple[int, np.ndarray]]) -> 'Trajectory':
        """Make one of (stamp in ns, pose (4, 4)) in any order; of equal stamps the last counts."""
        by_stamp = dict(stamped)
        stamps = sorted(by_stamp)
        poses = [by_stamp[stamp] for stamp in stamps]
        return Trajectory(np.array(stamps, np.int64),
                          np.array(poses, np.float64).reshape(-1, 4, 4))

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def at(self, stamps_ns: np.ndarray, longest_gap_ns: int | None = None) -> np.ndarray:
        """
        Give the poses (M, 4, 4) at stamps (M,): exact where there is one, else in between.

        NaN outside the trajectory, and where the stamps on both sides are further apart than
        `longest_gap_ns`.
        """
        wanted = np.asarray(stamps_ns, np.int64)
        result = np.full((len(wanted), 4, 4), np.nan)
        if not len(self):
            return result
        after = np.searchsorted(self.stamps_ns, wanted)
        exact = self.stamps_ns[np.minimum(after, len(self) - 1)] == wanted
        result[exact] = self.poses[after[exact]]
        between = ~exact & (after > 0) & (after < len(self))
        start, end = after[between] - 1, after[between]
        length = self.stamps_ns[end] - self.stamps_ns[start]
        part = (wanted[between] - self.stamps_ns[start]) / length
        if len(part):
            poses = interpolate(*(torch.from_numpy(self.poses[i]) for i in (start, end)),
                                torch.from_numpy(part)).numpy()
            if longest_gap_ns is not None:
                poses[length > longest_gap_ns] = np.nan
            result[between] = poses
        return result
