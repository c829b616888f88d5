"""How poses of frames move while a field is learned: by a local warp of rays, or each as a whole.

Local-to-global registration (L2G-NeRF, CVPR 2023) warps every ray by itself and ties the rays of a
frame to the rigid motion that fits them best; bundle-adjusting fields (BARF, ICCV 2021) move each
frame by one twist. Both give rough_from_camera: what to multiply a rough pose by from the right.
Letters: K frames, B of them at once, P pixels of each. Translations are in scene units.
"""

from nerfmatch_ros.geometry.pose import se3_exp, se3_log, transform, transform_points
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.mapping.motion_errors import MotionErrors
import torch
from torch import nn, Tensor
import torch.nn.functional as F

HEAD_UNIT = 20.0  # deviations of rough poses that a 1 of the warp network moves by

PIVOT = 1.0  # scene units ahead of a camera, around which it moves sideways


def circling(moves: Tensor, errors: MotionErrors, way: float = 1.0) -> Tensor:
    """Let shifts (..., 6) go around what lies ahead at a depth of PIVOT; way -1: undo that.

    A shift across the view and a turn do nearly the same to a photograph. As parameters of Adam
    they would share one gradient and its noise, and what tells them apart would be lost in it.
    """
    shift = moves[..., :2] * (way * errors.deviations[0] / (errors.deviations[1] * PIVOT))
    turns = torch.stack([shift[..., 1], -shift[..., 0], torch.zeros_like(shift[..., 0])], dim=-1)
    return torch.cat([moves[..., :3], moves[..., 3:] + turns], dim=-1)


class FrameMotions(nn.Module):
    """Interface of `LocalWarps`, `FrameTwists`, and the one that becomes the other."""

    def __init__(self, errors: MotionErrors):
        super().__init__()
        self.errors = errors

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give rough_from_ray (B, P, 4, 4), their departure () and how frames moved.

        frames: (B,) indices; plane: (B, P, 2) in [-1, 1]; directions: (B, P, 3) unit, camera
        frame. The departure from rigid motion is the mean square over the rays' points. How frames
        moved: numbers (N, 6) for the prior, in deviations of the errors of rough poses, and twists
        (B, 6).
        """
        raise NotImplementedError

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Give rough_from_camera (K, 4, 4) by a grid of each frame's pixels.

        plane: (K, P, 2); directions: (K, P, 3).
        """
        raise NotImplementedError


class FrameTwists(FrameMotions):
    """One twist a frame (BARF), told by what rough poses may be wrong in."""

    def __init__(self, frames: int, errors: MotionErrors):
        super().__init__(errors)
        self.moves = nn.Parameter(torch.zeros(frames, 6))

    @property
    def numbers(self) -> Tensor:
        """The motions (K, 6) in deviations of the rough poses' errors."""
        return circling(self.moves, self.errors)

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give every ray of a frame the frame's own motion, which is rigid."""
        numbers = self.numbers
        twists = self.errors.twists(numbers)[frames]
        motion = se3_exp(twists)[:, None].expand(-1, plane.shape[1], 4, 4)
        return motion, motion.new_zeros(()), numbers, twists

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Give the motion of each frame."""
        return se3_exp(self.errors.twists(self.numbers))

    @torch.no_grad()
    def place(self, frames: Tensor, numbers: Tensor) -> None:
        """Put frames (L,) where numbers (L, 6) say."""
        self.moves[frames] = circling(numbers, self.errors, -1.0)

    @torch.no_grad()
    def begin_at(self, motions: Tensor, noise: Tensor) -> None:
        """Begin near motions (K, 4, 4), which are off by `noise` (2,), scene units and radians."""
        twists = se3_log(motions.double()).to(self.moves)
        self.moves.copy_(circling(self.errors.likeliest(twists, noise), self.errors, -1.0))


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

    def __init__(self, frames: int, errors: MotionErrors, *, bfloat16: bool = False):
        super().__init__(errors)
        self.network, self.bfloat16 = WarpNetwork(frames, 6), bfloat16

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Warp each ray; the departure is that of the rays' points from the best rigid motion."""
        twists = self._twists(frames, plane)
        motion = se3_exp(twists)
        rigid, source, warped = _fit(motion, directions)
        departure = (warped - transform_points(rigid, source)).square().sum(-1).mean()
        whole = twists.mean(1)
        return motion, departure, whole / self.errors.units, whole

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Fit the rigid motion of each frame to the warp of its rays."""
        frames = torch.arange(len(plane), device=plane.device)
        return _fit(se3_exp(self._twists(frames, plane)), directions)[0]

    def _twists(self, frames: Tensor, plane: Tensor) -> Tensor:
        with torch.autocast(plane.device.type, torch.bfloat16, enabled=self.bfloat16):
            moves = self.network(frames, plane)
        return self.errors.units * circling(HEAD_UNIT * moves, self.errors)


class WarpsThenTwists(FrameMotions):
    """Warps until `settle` is called; from then on frames move by twists that begin at the fits.

    As if the weight of rigidity grew without bound. The published method keeps its warps.
    """

    def __init__(self, warps: LocalWarps, twists: FrameTwists):
        super().__init__(warps.errors)
        self.warps, self.twists = warps, twists
        self.register_buffer('settled', torch.tensor(False))

    @property
    def current(self) -> FrameMotions:
        """What moves the frames now."""
        return self.twists if self.settled else self.warps

    def ray_motions(
        self, frames: Tensor, plane: Tensor, directions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Move rays as the current motions do."""
        return self.current.ray_motions(frames, plane, directions)

    def frame_motions(self, plane: Tensor, directions: Tensor) -> Tensor:
        """Move frames as the current motions do."""
        return self.current.frame_motions(plane, directions)

    @torch.no_grad()
    def settle(self, plane: Tensor, directions: Tensor, noise: Tensor) -> None:
        """Hand over to twists, by a grid of each frame's pixels as `frame_motions` takes it.

        noise: (2,), of the fits, scene units and radians: rough poses are weighed against it.
        """
        if not self.settled:
            self.twists.begin_at(self.warps.frame_motions(plane, directions), noise)
            self.settled.fill_(True)


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
