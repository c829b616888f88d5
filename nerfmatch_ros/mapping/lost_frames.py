"""Frames that a registration has lost: they are tried where other frames are.

A photograph whose rough pose is off by a third of a picture and more may end in some other place
that looks a little alike, and no small step leads out of there. Where photographs overlap, another
one was taken near it; the field tells which.
Letters: K frames, L of them lost ones, P pixels of each.
"""

from collections.abc import Callable

from nerfmatch_ros.geometry.pose import inverse, se3_log
from nerfmatch_ros.mapping.motion_errors import SeparateErrors
import torch
from torch import Tensor

FARTHEST = 28.0  # squared deviations that a rough pose is not off by (1 in 10 000 of six numbers)
BETTER = 0.75  # share of the error that is left where a frame is said to belong elsewhere
SUSPICIOUS = 1.3  # times the median error that a lost frame shows at least


@torch.no_grad()
def places_of_lost(
    rough: Tensor, moved: Tensor, errors: SeparateErrors, scale: float, share: float,
    weight: float, shown: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Find frames that others' places explain better: indices (L,) and their numbers (L, 6).

    rough, moved: (K, 4, 4) poses, metres, given and by now. scale: scene units of a metre. share:
    of the frames, those shown worst, that are tried. weight: of a squared deviation of the errors
    of rough poses, against a squared error of colour. shown: gives the mean squared errors (N,)
    of colour of frames (N,) at poses (N, 4, 4).
    """
    every = torch.arange(len(moved), device=moved.device)
    own = shown(every, moved)
    worst = own.argsort(descending=True)[:int(share * len(moved))]
    found = [], []
    for frame in worst[own[worst] > SUSPICIOUS * own.median()]:
        twists = se3_log((inverse(rough[frame]) @ moved).double()).to(moved)
        twists[:, :3] *= scale
        numbers = errors.numbers(twists)
        charge = numbers.square().sum(-1)
        others = every[(charge < FARTHEST) & (every != frame)]
        if not len(others):
            continue
        error = shown(frame.expand(len(others)), moved[others])
        best = (error + weight * charge[others]).argmin()
        if error[best] < BETTER * own[frame]:
            found[0].append(frame)
            found[1].append(numbers[others[best]])
    if not found[0]:
        return every[:0], moved.new_zeros(0, 6)
    return torch.stack(found[0]), torch.stack(found[1])
