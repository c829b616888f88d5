"""Rays of two sets of photographs in fixed shares, such as new ones and rehearsed ones."""

from dataclasses import replace

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.ray_dataset import RayBatch, RayDataset
from nerfmatch_ros.radiance_field.field import Rays
import torch
from torch import Tensor


class MixedRays:
    """Draws from two data sets; the rows of the second one's images follow the first one's."""

    def __init__(self, first: RayDataset, second: RayDataset, share: float):
        """Share: of the random pixels of a step, that are of the first set."""
        if not 0 < share < 1:
            raise ConfigError(f'the share of rays of the new photographs is {share:g}; '
                              'it must lie between 0 and 1, both sets are needed')
        self.first, self.second, self.share = first, second, share

    def draw(self, count: int, sparse_count: int, generator: torch.Generator) -> RayBatch:
        """Draw `count` pixels of both, then up to `sparse_count` of known depth of the first."""
        new = min(max(round(self.share * count), 1), count - 1)
        first = self.first.draw(new, sparse_count, generator)
        second = self.second.draw(count - new, 0, generator)
        rows = len(self.first.image_starts)
        rays = second.rays
        second = replace(second, rays=replace(rays, image_index=rays.image_index + rows))
        # The random ones come first, those of known depth last, as in one set.
        return _joined(second, first)


def _joined(first: RayBatch, second: RayBatch) -> RayBatch:
    rays = Rays(**{name: torch.cat((value, getattr(second.rays, name)))
                   for name, value in vars(first.rays).items()})

    def both(name: str) -> Tensor:
        return torch.cat((getattr(first, name), getattr(second, name)))

    return RayBatch(rays, both('colour'), both('distance'), both('tolerance'))
