"""Registration in the plane: patches of one picture are laid over one another while it is learned.

The two-dimensional case of L2G-NeRF (Sec. 4.1 of the paper) and of BARF: a network stands for the
picture, each patch shows a part of it through an unknown rigid motion or homography. Both methods
are those of `pose_registration` with the plane instead of space, so that seconds show what they
do: at their best rates both find patches turned by half a radian; with turns of 0.9 (standard
deviation) both lose some, BARF more. Letters: M patches, N pixels of each of them.
"""

from dataclasses import dataclass

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry import planar_alignment
from nerfmatch_ros.mapping.frame_motions import WarpNetwork
from nerfmatch_ros.radiance_field.encoding import positional_encoding
from nerfmatch_ros.radiance_field.encoding_window import band_weights
import torch
from torch import nn, Tensor
from torch.nn.functional import mse_loss, relu

# Of each kind: how many parameters a motion has, what makes it of them, what fits it to points.
KINDS = {
    'rigid': (3, planar_alignment.rigid_motion, planar_alignment.fit_rigid),
    'homography': (8, planar_alignment.homography, planar_alignment.fit_homography),
}


@dataclass(frozen=True)
class PlanarRegistrationConfig:
    """How patches are registered."""

    method: str = 'l2g'  # 'l2g': a motion per pixel, fitted; 'barf': one per patch
    kind: str = 'rigid'  # 'rigid' or 'homography'
    steps: int = 400
    pixels: int = 150  # of each patch in a step
    octaves: int = 8  # of the picture's encoding
    width: int = 96  # of the picture's network
    warp_width: int = 64  # of the warp network (l2g)
    ramp: tuple[float, float] = (0.1, 0.7)  # progress in which the octaves open
    picture_rate: float = 5e-3  # learning rates
    warp_rate: float = 1e-3  # of the warp network (l2g)
    motion_rate: float = 3e-2  # of the motions (barf)
    final_rate: float = 0.03  # share of all rates at the end
    rigidity: float = 1e2  # weight of the departure of a patch's pixels from one motion (l2g)
    seed: int = 0

    def __post_init__(self):
        """Refuse what does not exist."""
        if self.method not in ('l2g', 'barf') or self.kind not in KINDS:
            raise ConfigError(f"planar registration '{self.method}' of '{self.kind}' motions is "
                              'unknown; use l2g or barf, rigid or homography')


class _Picture(nn.Module):
    """Colour of a place of the plane: a network on a windowed positional encoding."""

    def __init__(self, octaves: int, width: int):
        super().__init__()
        self.octaves = octaves
        self.layers = nn.ModuleList(
            nn.Linear(size, width) for size in (2 + 4 * octaves, width, width))
        self.head = nn.Linear(width, 3)

    def forward(self, places: Tensor, opened: float) -> Tensor:
        """Give colours (..., 3) at places (..., 2) with so many octaves open."""
        window = band_weights(self.octaves, opened).to(places).repeat_interleave(2).repeat(2)
        hidden = torch.cat(
            [places, window * positional_encoding(torch.pi * places, self.octaves)], dim=-1)
        for layer in self.layers:
            hidden = relu(layer(hidden))
        return torch.sigmoid(self.head(hidden))


def register_patches(patches: Tensor, config: PlanarRegistrationConfig) -> Tensor:
    """Find the motions (M, 3, 3) picture_from_patch of patches (M, h, w, 3) in [0, 1].

    Places of a patch and of the picture run from -1 to 1 along a patch's longer side. The first
    patch stays where it is, as nothing else says where the picture lies.
    """
    count, (numbers, make, fit) = len(patches), KINDS[config.kind]
    torch.manual_seed(config.seed)
    picture = _Picture(config.octaves, config.width)
    local = config.method == 'l2g'
    if local:
        warp = WarpNetwork(count - 1, numbers, width=config.warp_width)
        moving = list(warp.parameters())
    else:
        moving = [nn.Parameter(torch.zeros(count - 1, numbers))]
    optimizer = torch.optim.Adam([
        {'params': picture.parameters(), 'lr': config.picture_rate},
        {'params': moving, 'lr': config.warp_rate if local else config.motion_rate}])
    schedule = torch.optim.lr_scheduler.ExponentialLR(
        optimizer, config.final_rate ** (1 / config.steps))
    generator = torch.Generator().manual_seed(config.seed)
    places, colours = patch_places(*patches.shape[1:3]), patches.flatten(1, 2)
    others = torch.arange(count - 1)

    def motions(source: Tensor) -> tuple[Tensor, Tensor]:
        """Give places (M - 1, N, 2) in the picture, and the motions fitted to them."""
        if not local:
            found = make(moving[0])
            return planar_alignment.move(found, source), found
        own = make(warp(others, source))
        moved = planar_alignment.move(own, source[:, :, None])[:, :, 0]
        return moved, fit(source, moved)

    for step in range(config.steps):
        picked = torch.randint(len(places), (count, config.pixels), generator=generator)
        source = places[picked]
        moved, found = motions(source[1:])
        start, end = config.ramp
        opened = config.octaves * min(max((step / config.steps - start) / (end - start), 0), 1)
        shown = picture(torch.cat([source[:1], moved]), opened)
        loss = mse_loss(shown, colours.gather(1, picked[..., None].expand(-1, -1, 3)))
        if local:
            rigid = planar_alignment.move(found, source[1:])
            loss = loss + config.rigidity * (moved - rigid).square().sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        _, found = motions(places.expand(count - 1, -1, -1))
    return torch.cat([torch.eye(3)[None], found])


def patch_places(rows: int, columns: int) -> Tensor:
    """Give the places (rows columns, 2), x and y, of a patch's pixels."""
    longest = max(rows, columns)
    y = (2 * torch.arange(rows) + 1 - rows) / longest
    x = (2 * torch.arange(columns) + 1 - columns) / longest
    return torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1).reshape(-1, 2).float()


def corner_errors(found: Tensor, true: Tensor, rows: int, columns: int) -> Tensor:
    """Mean distance (M,), pixels, of the patches' four corners from where they belong.

    found, true: (M, 3, 3), each in a frame of its own, which the first patch relates.
    """
    longest = max(rows, columns)
    x, y = columns / longest, rows / longest
    corners = torch.tensor([(-x, -y), (x, -y), (-x, y), (x, y)]).to(true)

    def placed(motions: Tensor) -> Tensor:
        return planar_alignment.move(torch.linalg.inv(motions[:1]) @ motions, corners)

    apart = placed(found.to(true)) - placed(true)
    return apart.norm(dim=-1).mean(-1) * longest / 2
