"""How poses of frames move while a field is learned: by a local warp of rays, or each as a whole.

Local-to-global registration (L2G-NeRF, CVPR 2023) warps every ray by itself and ties the rays of a
frame to the rigid motion that fits them best; bundle-adjusting fields (BARF, ICCV 2021) move each
frame by one twist. Both give rough_from_camera: what to multiply a rough pose by from the right.
Letters: K frames, B of them at once, P pixels of each. Translations are in scene units.
"""

from nerfmatch_ros.geometry.pose import se3_exp, transform, transform_points
from nerfmatch_ros.geometry.rigid_alignment import align
import torch
from torch import nn, Tensor
import torch.nn.functional as F


class FrameMotions(nn.Module):
    """Interface of `LocalWarps` and `FrameTwists`.

    translation_share: how far a unit of a parameter translates, scene units, where another one
    turns by a radian; so what both explain alike is shared out as rough poses err.
    """

    def __init__(self, translation_share: float):
        super().__init__()
        self.register_buffer(
            'units', torch.tensor([translation_share] * 3 + [1.0] * 3), persistent=False)

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give rough_from_ray (B, P, 4, 4), their departure () and the frames' twists (B, 6).

        frames: (B,) indices; plane: (B, P, 2) in [-1, 1]; directions: (B, P, 3) unit, camera
        frame. The departure from rigid motion is the mean square over the rays' points; the
        twist of a frame is the mean of its rays'.
        """
        raise NotImplementedError

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Give rough_from_camera (K, 4, 4) by a grid of each frame's pixels.

        plane: (K, P, 2); directions: (K, P, 3).
        """
        raise NotImplementedError


class FrameTwists(FrameMotions):
    """One twist a frame (BARF)."""

    def __init__(self, frames: int, *, translation_share: float = 1.0):
        super().__init__(translation_share)
        self.twist = nn.Parameter(torch.zeros(frames, 6))

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give every ray of a frame the frame's own motion, which is rigid."""
        twists = self.units * self.twist[frames]
        motion = se3_exp(twists)[:, None].expand(-1, plane.shape[1], 4, 4)
        return motion, twists.new_zeros(()), twists

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Give the motion of each frame."""
        return se3_exp(self.units * self.twist)


class WarpNetwork(nn.Module):
    """Parameters of a pixel's motion by its place in the picture and an embedding of its frame.

    As published: six hidden layers, the input joined again at the fourth. It begins at no motion.
    """

    def __init__(self, frames: int, parameters: int, *, embedding: int = 128, width: int = 256,
                 depth: int = 6, skip: int = 4):
        super().__init__()
        channels = 2 + embedding
        self.embedding = nn.Embedding(frames, embedding)
        inputs = [channels] + [width] * (depth - 1)
        inputs[skip] += channels
        self.skip = skip
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in inputs)
        self.head = nn.Linear(width, parameters)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, frames: Tensor, plane: Tensor) -> Tensor:
        """Give the parameters (B, P, n) of pixels at `plane` (B, P, 2) of frames (B,)."""
        codes = self.embedding(frames)[:, None].expand(-1, plane.shape[1], -1)
        inputs = hidden = torch.cat([plane, codes], dim=-1)
        for index, layer in enumerate(self.layers):
            if index == self.skip:
                hidden = torch.cat([hidden, inputs], dim=-1)
            hidden = F.relu(layer(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float())


class LocalWarps(FrameMotions):
    """A twist per ray by a shared network; a frame's motion is the closed-form fit (L2G-NeRF)."""

    def __init__(self, frames: int, *, translation_share: float = 1.0, bfloat16: bool = False):
        super().__init__(translation_share)
        self.network, self.bfloat16 = WarpNetwork(frames, 6), bfloat16

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Warp each ray; the departure is that of the rays' points from the best rigid motion."""
        twists = self._twists(frames, plane)
        motion = se3_exp(twists)
        rigid, source, warped = _fit(motion, directions)
        departure = (warped - transform_points(rigid, source)).square().sum(-1).mean()
        return motion, departure, twists.mean(1)

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Fit the rigid motion of each frame to the warp of its rays."""
        frames = torch.arange(len(plane), device=plane.device)
        return _fit(se3_exp(self._twists(frames, plane)), directions)[0]

    def _twists(self, frames: Tensor, plane: Tensor) -> Tensor:
        with torch.autocast(plane.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.units * self.network(frames, plane)


def _fit(motion: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit one rigid motion (B, 4, 4) to those of a frame's rays (B, P, 4, 4).

    Also gives the points (B, 2 P, 3) it is fitted to, before and after: the camera's centre and
    the point at one scene unit along each ray.
    """
    centres = motion[..., :3, 3]
    ends = (motion[..., :3, :3] @ directions[..., None])[..., 0]
    source = torch.cat([torch.zeros_like(directions), directions], dim=1)
    warped = torch.cat([centres, centres + ends], dim=1)
    fitted = align(source, warped)
    return transform(fitted.rotation, fitted.translation), source, warped
