"""What a picture offers to alignment: colours and slopes anywhere, and its steepest pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import torch
from torch import Tensor
from torch.nn import functional

_SHARP = 0.3  # pixels of blur that change nothing
_MARGIN = 2  # pixels at the border whose slope or interpolation would look beyond it


@dataclass(frozen=True)
class Texture:
    """A picture with its slopes, laid out for interpolation."""

    values: Tensor  # (h * w, 9) colour, its slope along u, its slope along v
    height: int
    width: int

    def holds(self, pixels: Tensor) -> Tensor:
        """Tell which pixels (..., 2) lie far enough inside the picture -> (...) bool."""
        u, v = pixels.unbind(-1)
        return ((u >= _MARGIN) & (v >= _MARGIN)
                & (u < self.width - 1 - _MARGIN) & (v < self.height - 1 - _MARGIN))

    def at(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate at pixels (..., 2) that it holds: colours (..., 3), slopes (..., 2, 3).

        Slopes are those along u and along v, of colour per pixel.
        """
        corner = pixels.floor()
        right, down = (pixels - corner).to(self.values).reshape(-1, 2, 1).unbind(1)
        index = (corner[..., 1] * self.width + corner[..., 0]).long().flatten()
        values = [self.values.index_select(0, index + step)
                  for step in (0, 1, self.width, self.width + 1)]
        found = torch.lerp(torch.lerp(values[0], values[1], right),
                           torch.lerp(values[2], values[3], right), down)
        found = found.to(pixels).reshape(*pixels.shape[:-1], 9)
        return found[..., :3], found[..., 3:].unflatten(-1, (2, 3))


def texture_of(picture: Tensor) -> Texture:
    """Lay out a picture (3, h, w)."""
    _, height, width = picture.shape
    values = torch.cat((picture, slopes_of(picture).transpose(0, 1).flatten(0, 1)))
    return Texture(values.flatten(1).T.contiguous(), height, width)


def slopes_of(picture: Tensor) -> Tensor:
    """Give the slopes (C, 2, h, w) of a picture (C, h, w) along u and v, per pixel (Scharr)."""
    wide = functional.pad(picture[None], (1, 1, 1, 1), mode='replicate')[0]
    smooth, difference = (3 / 16, 10 / 16, 3 / 16), (-0.5, 0.0, 0.5)
    return torch.stack((
        _correlated(_correlated(wide, difference, 2), smooth, 1),
        _correlated(_correlated(wide, difference, 1), smooth, 2)), dim=1)


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """Blur a picture (C, h, w) by a Gaussian of `sigma` pixels; its border goes on beyond it."""
    if sigma < _SHARP:
        return picture
    reach = math.ceil(3 * sigma)
    kernel = [math.exp(-k ** 2 / (2 * sigma ** 2)) for k in range(-reach, reach + 1)]
    kernel = [value / sum(kernel) for value in kernel]
    wide = functional.pad(picture[None], (reach,) * 4, mode='replicate')[0]
    return _correlated(_correlated(wide, kernel, 2), kernel, 1)


def _correlated(picture: Tensor, kernel: Sequence[float], dim: int) -> Tensor:
    """Correlate along one dimension, which gets shorter by the kernel's length less one.

    Sums of shifted pictures are several times faster than a convolution of three channels.
    """
    length = picture.shape[dim] - len(kernel) + 1
    total = kernel[0] * picture.narrow(dim, 0, length)
    for k, value in enumerate(kernel[1:], 1):
        if value:
            total.add_(picture.narrow(dim, k, length), alpha=value)
    return total


def choose_pixels(
    picture: Tensor, count: int, *, blur: float = 1.0, usable: Tensor | None = None,
) -> Tensor:
    """Choose about `count` pixels (M, 2), M <= count, float64: the steepest one of every cell.

    picture: (3, h, w) in [0, 1]; blur: pixels, of noise that should not be chosen
    usable: (h, w) bool, pixels to choose from
    Cells are squares that cover the picture evenly, but for a rest at the right and the bottom.
    """
    _, height, width = picture.shape
    steepness = slopes_of(blurred(picture.mean(0, keepdim=True), blur)).square().sum((0, 1))
    if usable is not None:
        steepness = torch.where(usable, steepness, -1)
    cell = max(1, math.ceil(math.sqrt(height * width / count)))
    cell = min(cell, height, width)
    steepest, index = functional.max_pool2d(steepness[None], cell, return_indices=True)
    index = index.flatten()[steepest.flatten() >= 0]
    return torch.stack((index % width, index // width), dim=-1).double()
