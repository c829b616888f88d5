"""How errors of rough poses hang together: motions that mend them, told by numbers of deviation 1.

Errors of poses that were found one by one have nothing to do with one another. Those of odometry
sum up along the way: neighbours are wrong alike, and what is unlikely is a bend between them.
Either is a linear map of independent numbers, so that a step of a number is as likely as one of
any other, and the sum of their squares is what the rough poses have against a motion.
Twists are those of cameras (translation in scene units, then rotation in radians), K of them.
"""

from nerfmatch_ros.geometry.pose import hat
from nerfmatch_ros.mapping.pose_prior import PosePrior
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve
import torch
from torch import nn, Tensor

ALIKE = 10  # neighbours along a way, in what a field says of their poses


class MotionErrors(nn.Module):
    """Interface of `SeparateErrors` and `OdometryErrors`.

    deviations: (2,), scene units and radians; by how much a pose is off along and about each axis.
    """

    def __init__(self, deviations: tuple[float, float]):
        super().__init__()
        self.register_buffer('deviations', torch.tensor(deviations).float(), persistent=False)
        self.register_buffer('units', self.deviations.repeat_interleave(3), persistent=False)

    def twists(self, numbers: Tensor) -> Tensor:
        """Give the twists (K, 6) that numbers (K, 6) of mean 0 and deviation 1 stand for."""
        raise NotImplementedError

    def numbers(self, twists: Tensor) -> Tensor:
        """Give the numbers (K, 6) that stand for twists (K, 6)."""
        raise NotImplementedError

    def likeliest(self, twists: Tensor, deviations: Tensor) -> Tensor:
        """Give the likeliest numbers (K, 6), twists (K, 6) seen with `deviations` (2,)."""
        raise NotImplementedError


class SeparateErrors(MotionErrors):
    """Errors of different poses have nothing to do with one another."""

    def twists(self, numbers: Tensor) -> Tensor:
        """Scale by the deviations."""
        return numbers * self.units

    def numbers(self, twists: Tensor) -> Tensor:
        """Count in deviations."""
        return twists / self.units

    def likeliest(self, twists: Tensor, deviations: Tensor) -> Tensor:
        """Shrink each of them."""
        noise = deviations.repeat_interleave(3).to(self.units)
        return twists * self.units / (self.units.square() + noise.square())


class OdometryErrors(MotionErrors):
    """Errors of motions along the way, each of which carries all that comes later with it.

    poses: (K, 4, 4) float64 map_from_camera, scene units. sequence: (K,) int64, their order along
    the way. sigmas: (K - 1, 2), scene units along and radians about the axes of the camera that a
    motion leads to. first: (2,), the same of the pose where the way begins.
    """

    def __init__(self, poses: np.ndarray, sequence: np.ndarray, sigmas: np.ndarray,
                 first: tuple[float, float]):
        # A random walk is off its own mean by 1 / sqrt(6) of what its end is off its beginning.
        super().__init__(tuple(np.sqrt((sigmas ** 2).sum(0) / 6).tolist()))
        way = np.array(poses[sequence], np.float64)
        way[:, :3, 3] -= way[:, :3, 3].mean(0)  # so that no twist has a long lever
        map_from_camera = _adjoints(torch.from_numpy(way))
        steps = torch.from_numpy(np.repeat(np.concatenate([[first], sigmas]), 3, axis=1))
        self._register('map_from_camera', map_from_camera)
        self._register('camera_from_map', torch.linalg.inv(map_from_camera))
        self._register('steps', steps)
        self.register_buffer('sequence', torch.from_numpy(sequence), persistent=False)
        self.register_buffer('rank', torch.from_numpy(np.argsort(sequence)), persistent=False)

    def _register(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.float(), persistent=False)

    def twists(self, numbers: Tensor) -> Tensor:
        """Sum up the errors of all motions up to each camera."""
        added = self.map_from_camera @ (numbers[self.sequence] * self.steps)[..., None]
        return (self.camera_from_map @ added.cumsum(0))[self.rank, :, 0]

    def numbers(self, twists: Tensor) -> Tensor:
        """Take what each motion adds to the one before, in its deviations."""
        whole = self.map_from_camera @ twists[self.sequence][..., None]
        added = torch.cat([whole[:1], whole[1:] - whole[:-1]])
        return ((self.camera_from_map @ added)[..., 0] / self.steps)[self.rank]

    def likeliest(self, twists: Tensor, deviations: Tensor) -> Tensor:
        """Weigh the way's errors against those of the twists; the system is block tridiagonal.

        What was seen of neighbours errs alike, as they see the same: ALIKE of them count as one.
        """
        camera_from_map = self.camera_from_map.cpu().double().numpy()
        backward = camera_from_map[1:] @ np.linalg.inv(camera_from_map[:-1])
        count, weights = len(backward) + 1, 1 / self.steps.cpu().double().numpy()
        blocks = np.concatenate([np.eye(6)[None].repeat(count, axis=0), -backward])
        blocks *= np.concatenate([weights, weights[1:]])[..., None]
        rows = np.concatenate([np.arange(count), np.arange(1, count)])
        columns = np.concatenate([np.arange(count), np.arange(count - 1)])
        order = np.argsort(rows, kind='stable')
        numbers_from_twists = sparse.bsr_matrix(
            (blocks[order], columns[order], np.searchsorted(rows[order], np.arange(count + 1))),
            shape=(6 * count, 6 * count)).tocsc()
        trust = np.tile(deviations.cpu().double().numpy().repeat(3) ** -2.0, count) / ALIKE
        seen = twists[self.sequence].cpu().double().numpy().ravel()
        found = spsolve(numbers_from_twists.T @ numbers_from_twists + sparse.diags(trust).tocsc(),
                        trust * seen)
        numbers = (numbers_from_twists @ found).reshape(-1, 6)
        return torch.from_numpy(numbers).to(twists)[self.rank]


class CommonTurn(nn.Module):
    """What all cameras have turned alike, about their own axes, against the way of their centres.

    poses: (K, 4, 4) float64 map_from_camera, metres; scale: scene units of a metre. A turn of the
    whole, which moves the centres, too, is none.
    """

    def __init__(self, poses: np.ndarray, scale: float):
        super().__init__()
        centres = scale * (poses[:, :3, 3] - poses[:, :3, 3].mean(0))
        self.register_buffer('rotations', torch.from_numpy(poses[:, :3, :3].copy()).float(),
                             persistent=False)
        self.register_buffer('centres', torch.from_numpy(centres).float(), persistent=False)

    def forward(self, frames: Tensor, twists: Tensor) -> Tensor:
        """Give the turn (3,), radians, of twists (B, 6) of frames (B,)."""
        rotations, centres = self.rotations[frames], self.centres[frames]
        centres = centres - centres.mean(0)
        moved = (rotations @ twists[:, :3, None])[..., 0]
        # The turn of the whole that explains best how the centres moved (scale has no part in it).
        inertia = centres.square().sum() * torch.eye(3).to(centres) - centres.T @ centres
        inertia = inertia + 1e-3 * centres.square().sum() * torch.eye(3).to(centres)
        whole = torch.linalg.solve(inertia, torch.linalg.cross(centres, moved).sum(0))
        return (twists[:, 3:] - whole @ rotations).mean(0)


def errors_of(prior: PosePrior, scale: float) -> MotionErrors:
    """Make the errors of a prior; scale: scene units of a metre."""
    absolute = (scale * prior.translation, prior.rotation)
    if prior.odometry is None:
        return SeparateErrors(absolute)
    poses = prior.poses.copy()
    poses[:, :3, 3] *= scale
    return OdometryErrors(poses, prior.sequence, prior.motions()[1] * (scale, 1.0), absolute)


def _adjoints(poses: Tensor) -> Tensor:
    """Give what brings twists of cameras (..., 6) into the frame of their poses: (..., 6, 6)."""
    rotation = poses[..., :3, :3]
    lever = hat(poses[..., :3, 3]) @ rotation
    return torch.cat([torch.cat([rotation, lever], -1),
                      torch.cat([torch.zeros_like(rotation), rotation], -1)], -2)
