"""Whether one publisher said where a frame is, or two that contradict one another.

Of two, samples go there and back again between two ways. Noise does so too, but not ten times as
far as its own size; a relocalization jumps once; a fast robot does not come back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.transform_log import TransformLink
import numpy as np
from scipy.ndimage import percentile_filter
from scipy.spatial.transform import Rotation

_FARTHER = 10.0  # times the distance between neighbours nearby in time
_WINDOW, _PERCENT = 31, 70  # samples around, and which of their distances
_NEIGHBOURS = 3  # the nearest of so many samples that follow is of the same publisher
_LEAST = 0.1, 0.2  # metres, radians; less is no contradiction that matters
_FASTER = 2.0, 5.0  # metres, radians a second, there and back
_BACK = 0.5  # what is left of a jump after the next, as a share of it
_FEW, _SHARE = 4, 0.01  # so many, or this share of the samples, are worth a word, not an error
_STATIC_RETURNS = 3  # times that a static transform has again the value before the last


@dataclass(frozen=True)
class Contradictions:
    """Jumps there and back again."""

    count: int
    samples: int
    size: str  # of a jump, the median, in words
    first_ns: int  # stamp


def check_links(links: Sequence[TransformLink], remedy: str, topic: str = '') -> list[str]:
    """
    Give what is worth a word about links, or raise a DataError for two publishers of one.

    remedy: what else poses can be taken from; topic: the only one that the links are from.
    """
    notes = []
    for link in links:
        name = f"{topic}: '{link.child}' in '{link.parent}'".removeprefix(': ')
        stamps, numbers = link.samples()
        if link.static:
            notes += _of_static(name, numbers, remedy)
            continue
        found = contradictions(stamps, numbers)
        if found is None:
            continue
        text = (f'{name} jumps {found.size} there and back again, {found.count} times in '
                f'{found.samples} samples, first at {found.first_ns / 1e9:.3f} s')
        if found.count > max(_FEW, _SHARE * found.samples):
            raise DataError(f'{text}: two publishers contradict one another. Stop one of them and '
                            f'record again, or {remedy}')
        notes.append(f'{text}; poses of images around these stamps may be wrong')
    return notes


def contradictions(stamps_ns: np.ndarray, numbers: np.ndarray) -> Contradictions | None:
    """Find jumps there and back in samples: stamps (N,), x y z and quaternion x y z w (N, 7)."""
    order = np.argsort(stamps_ns, kind='stable')
    stamps, numbers = stamps_ns[order], numbers[order]
    # The same sample twice, as relays send it, says nothing.
    new = np.append(True, (np.diff(stamps) != 0) | (np.diff(numbers, axis=0) != 0).any(axis=1))
    stamps, numbers = stamps[new], numbers[new]
    if len(stamps) < _NEIGHBOURS + 2:
        return None
    places, turns = numbers[:, :3], Rotation.from_quat(numbers[:, 3:])

    def apart(step: int) -> np.ndarray:
        return np.stack((np.linalg.norm(places[step:] - places[:-step], axis=1),
                         (turns[step:] * turns[:-step].inv()).magnitude()))

    def left(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        moved = places[first + 1] - places[first] + places[second + 1] - places[second]
        turned = (turns[second + 1] * turns[second].inv()) * (turns[first + 1]
                                                              * turns[first].inv())
        return np.stack((np.linalg.norm(moved, axis=1), turned.magnitude()))

    steps = apart(1)
    nearest = steps.copy()
    for further in range(2, _NEIGHBOURS + 1):
        end = len(stamps) - further
        nearest[:, :end] = np.minimum(nearest[:, :end], apart(further))
    nearest[:, 1 - _NEIGHBOURS:] = nearest[:, [-_NEIGHBOURS]]  # too few follow the last ones
    for kind, unit in ((0, '{:.2f} m'), (1, '{:.0f} deg')):
        usual = percentile_filter(nearest[kind], _PERCENT, _WINDOW, mode='nearest')
        jumps = np.flatnonzero(steps[kind] > np.maximum(_LEAST[kind], _FARTHER * usual))
        if len(jumps) < 2:
            continue
        first, second = jumps[:-1], jumps[1:]
        size = steps[kind]
        seconds = np.maximum((stamps[second + 1] - stamps[first]) / 1e9, 1e-3)
        back = (left(first, second)[kind] < _BACK * np.minimum(size[first], size[second])) \
            & ((size[first] + size[second]) / seconds > _FASTER[kind])
        if back.any():
            jump = float(np.median(size[first[back]]))
            return Contradictions(int(back.sum()), len(stamps),
                                  unit.format(np.degrees(jump) if kind else jump),
                                  int(stamps[first[back][0]]))
    return None


def _of_static(name: str, numbers: np.ndarray, remedy: str) -> list[str]:
    """Say that a static transform changed; numbers (N, 7): what it was, one after the other."""
    if len(numbers) < 2:
        return []
    metres = np.linalg.norm(numbers[1:, :3] - numbers[0, :3], axis=1).max()
    turns = Rotation.from_quat(numbers[:, 3:])
    degrees = np.degrees((turns[1:] * turns[0].inv()).magnitude().max())
    text = (f'{name} is static, but changes {len(numbers) - 1} times, by up to {metres:.3f} m and '
            f'{degrees:.1f} deg')
    returns = sum(np.allclose(one, other, atol=1e-6)
                  for one, other in zip(numbers[2:], numbers[:-2]))
    if returns >= _STATIC_RETURNS:
        raise DataError(f'{text}, there and back again: two publishers contradict one another. '
                        f'Stop one of them and record again, or {remedy}')
    return [f'{text}; each image has the one of its time']
