"""Frames that a registration has lost: they are tried where other frames are.

A photograph whose rough pose is off by a third of a picture and more may end in some other place
that looks a little alike, and no small step leads out of there. Where photographs overlap, another
one was taken near it; the field tells which.
Letters: K frames, L of them lost ones, P pixels of each.
"""

from collections.abc import Callable

from nerfmatch_ros.geometry.pose import inverse, se3_log
from nerfmatch_ros.mapping.motion_errors import SeparateErrors
from nerfmatch_ros.mapping.pose_registration_config import PoseRegistrationConfig
from nerfmatch_ros.mapping.ray_lens import RayLens
from nerfmatch_ros.mapping.registration_pixels import RegistrationPixels
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_rays
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import torch
from torch import Tensor

FARTHEST = 28.0  # squared deviations that a rough pose is not off by (1 in 10 000 of six numbers)
BETTER = 0.75  # share of the error that is left where a frame is said to belong elsewhere
SUSPICIOUS = 1.3  # times the median error that a lost frame shows at least

PIXELS = 64  # of a photograph, by which it is looked for where others are
AT_ONCE = 64  # places rendered at once


class FrameErrors:
    """What a field shows at some pose, compared with a photograph.

    config: says whether photographs have their own exposure, and of bfloat16.
    """

    def __init__(self, field: RadianceField, frame: SceneFrame, pixels: RegistrationPixels,
                 lens: RayLens, blur: float, config: PoseRegistrationConfig):
        self._generator = torch.Generator(device=pixels.device).manual_seed(config.seed)
        self._drawn = pixels.draw(len(pixels), PIXELS, self._generator, blur=blur)
        self._directions = lens(self._drawn.frames, self._drawn.directions)
        self._field, self._frame, self._config = field, frame, config
        self._pixel_angle, self._device = pixels.pixel_angle, pixels.device.type

    @torch.no_grad()
    def __call__(self, frames: Tensor, poses: Tensor) -> Tensor:
        """Give the mean squared errors (N,) of frames (N,) at poses (N, 4, 4), metres."""
        return torch.cat([self._some(*part)
                          for part in zip(frames.split(AT_ONCE), poses.split(AT_ONCE))])

    def _some(self, frames: Tensor, poses: Tensor) -> Tensor:
        poses = poses[:, None].expand(-1, PIXELS, 4, 4).flatten(0, 1)
        index = frames.repeat_interleave(PIXELS) if self._config.exposure else None
        rays = self._frame.rays(poses, self._directions[frames].flatten(0, 1),
                                self._pixel_angle, index)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._config.bfloat16):
            colour = render_rays(self._field, rays, generator=self._generator).colour
        apart = colour.view(len(frames), PIXELS, 3) - self._drawn.colour[frames]
        return apart.square().mean((1, 2))


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
