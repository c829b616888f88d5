"""Refinement by gradient descent through the frozen field (iNeRF; the paper's optimisation).

Adam moves the pose until the colours that the field shows at random pixels are the picture's.
Letters: R rays; q, c = colours of picture and field, (R, 3); r = q - gain c - bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import nearest_rotation, perturb, pose_distance
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.normal_matrix import inverse_normal
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_rays
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor

_GAIN_LIMITS = (0.25, 4.0)  # two stops of exposure either way
_GAIN_RIDGE = 1e-4  # variance of colour below which the gain stays near 1
_NOISE_FLOOR = 0.005  # colour; no difference is trusted to be smaller than this


@dataclass(frozen=True)
class GradientConfig:
    """How a pose descends and when the result is believed."""

    steps: int = 60
    rays: int = 256  # random pixels of a step
    learning_rate: float = 1e-3  # scene units and radians; falls along a cosine to 0
    judged_rays: int = 1024  # pixels, evenly spread, that judge the first and the last pose
    min_opacity: float = 0.7  # of a ray that counts
    min_points: int = 200  # of the judged rays that count
    min_overlap: float = 0.5  # share of the judged rays that count
    min_correlation: float = 0.2  # of picture and field in the end

    def __post_init__(self):
        """Refuse values that no descent can work with."""
        for name, least in (('steps', 1), ('rays', 1), ('judged_rays', 1), ('min_points', 12)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name} is {getattr(self, name)}; it must be at least {least}')
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f'learning_rate is {self.learning_rate:g}; it must be positive')
        for name in ('min_opacity', 'min_overlap', 'min_correlation'):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f'{name} is {getattr(self, name):g}; '
                                  'it must lie between 0 and 1')


@dataclass(frozen=True)
class _Scene:
    """A picture of a field, and what of it is compared."""

    field: RadianceField
    frame: SceneFrame
    camera: Camera
    picture: Tensor  # (3, h, w)
    config: GradientConfig

    def seen(self, pixels: Tensor) -> Tensor:
        """Give q of whole pixels (R, 2)."""
        u, v = pixels.long().to(self.picture.device).unbind(-1)
        return self.picture[:, v, u].T

    def shown(self, map_from_camera: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Render c and whether it counts (R,) bool; poses (4, 4) or (R, 4, 4)."""
        directions = self.camera.rays(pixels).float().to(self.picture.device)
        rays = self.frame.rays(map_from_camera.to(directions), directions, 1 / self.camera.fx)
        rendered = render_rays(self.field, rays)
        return rendered.colour, rendered.opacity.detach() > self.config.min_opacity


@dataclass(frozen=True)
class _Judged:
    """Picture and field at one pose, at the pixels that judge it."""

    solid: Tensor  # (R,) bool, rays that count
    residual: Tensor  # (R, 3) r, 0 where a ray does not count
    gain: Tensor  # (3,)
    correlation: float  # mean of the channels

    @property
    def count(self) -> int:
        """Give the number of rays that count."""
        return int(self.solid.sum())

    @property
    def rms_error(self) -> float:
        """Root of what the descent lowers, the mean of r^2."""
        return math.sqrt((self.residual ** 2).sum().item() / max(3 * self.count, 1))

    @property
    def median_error(self) -> float:
        """Median length of r as an error of one channel; nan where no ray counts."""
        if not self.count:
            return math.nan
        return self.residual[self.solid].norm(dim=-1).median().item() / math.sqrt(3)


def refine_by_gradient(
    field: RadianceField, frame: SceneFrame, camera: Camera, picture: Tensor,
    map_from_camera: np.ndarray, config: GradientConfig | None = None,
    generator: torch.Generator | None = None, chunk: int = 4096,
) -> Alignment:
    """Refine the pose (4, 4) of a picture (3, h, w) in [0, 1]; a failure has a reason.

    camera: the pinhole camera of the picture; generator: draws the pixels of the steps, None draws
    the same ones in every call; chunk: rays rendered at once, more of them are taken in parts
    """
    config = config or GradientConfig()
    if not camera.is_pinhole or tuple(picture.shape) != (3, camera.height, camera.width):
        raise DataError(f'a picture {tuple(picture.shape)} of a {camera.model} camera of '
                        f'{camera.width} x {camera.height} cannot be refined; give the '
                        'undistorted working picture (3, height, width) and its pinhole camera')
    # Gradients are wanted even where the caller does without; what was made there is copied.
    with torch.inference_mode(False):
        picture = picture.to(next(field.parameters()).device).clone()
        start = torch.tensor(np.asarray(map_from_camera), dtype=torch.float64)
        scene = _Scene(field, frame, camera, picture, config)
        pixels = _even_pixels(camera, config.judged_rays)
        before = _judge(scene, start, pixels, chunk)
        if reason := _too_few(before, config):
            return Alignment(None, reason, overlap=before.count / len(pixels), points=before.count)
        generator = generator or torch.Generator().manual_seed(0)
        pose = _descend(scene, start, generator, chunk)
        return _conclude(scene, start, pose, before, pixels, chunk)


def _descend(scene: _Scene, start: Tensor, generator: torch.Generator, chunk: int) -> Tensor:
    """Follow the gradient of the mean of r^2 from a pose (4, 4)."""
    config = scene.config
    # In scene units and radians one learning rate suits both, whatever the size of the map.
    unit = start.new_tensor([1 / scene.frame.scene_from_map.scale] * 3 + [1.0] * 3)
    moved = torch.zeros_like(unit).requires_grad_()
    optimiser = torch.optim.Adam([moved], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    sides = torch.tensor([scene.camera.width, scene.camera.height])
    for _ in range(config.steps):
        shares = torch.rand(config.rays, 2, generator=generator, device=generator.device)
        pixels = (shares.cpu() * sides).floor().minimum(sides - 1)
        total = torch.zeros_like(moved)
        for part in pixels.split(chunk):
            with torch.enable_grad():
                colour, solid = scene.shown(perturb(start, unit * moved), part)
                residual, _ = _residual(colour, scene.seen(part), solid)
                loss = (residual ** 2).sum() / (3 * config.rays)
                total += torch.autograd.grad(loss, moved)[0]
        moved.grad = total
        optimiser.step()
        schedule.step()
    return perturb(start, unit * moved.detach())


def _residual(colour: Tensor, seen: Tensor, solid: Tensor) -> tuple[Tensor, Tensor]:
    """Give r (R, 3), 0 where rays do not count, and the gain (3,) with the smallest r.

    Gain and bias are constants to the gradient: at their best value the loss does not change
    with them.
    """
    weight = (solid / solid.sum().clamp(min=1))[:, None].to(colour)
    fixed = colour.detach()
    mean, mean_seen = (weight * fixed).sum(0), (weight * seen).sum(0)
    variance = (weight * (fixed - mean) ** 2).sum(0)
    covariance = (weight * (fixed - mean) * (seen - mean_seen)).sum(0)
    gain = ((covariance + _GAIN_RIDGE) / (variance + _GAIN_RIDGE)).clamp(*_GAIN_LIMITS)
    return (seen - mean_seen - gain * (colour - mean)) * solid[:, None], gain


def _even_pixels(camera: Camera, count: int) -> Tensor:
    """Spread at least `count` whole pixels evenly, or take all there are: (N, 2)."""
    step = max(1, math.floor(math.sqrt(camera.width * camera.height / count)))
    return camera.pixel_grid(step).floor()


@torch.no_grad()
def _judge(scene: _Scene, pose: Tensor, pixels: Tensor, chunk: int) -> _Judged:
    """Compare picture and field at a pose (4, 4)."""
    parts = [scene.shown(pose, part) for part in pixels.split(chunk)]
    colour, solid = (torch.cat(values) for values in zip(*parts))
    seen = scene.seen(pixels)
    residual, gain = _residual(colour, seen, solid)
    centred, centred_seen = ((values - values[solid].mean(0)) * solid[:, None]
                             for values in (colour, seen))
    strength = ((centred ** 2).sum(0) * (centred_seen ** 2).sum(0) + 1e-12).sqrt()
    correlation = ((centred * centred_seen).sum(0) / strength).mean().item()
    return _Judged(solid, residual, gain, correlation)


def _slopes(scene: _Scene, pose: Tensor, pixels: Tensor, chunk: int) -> Iterator[Tensor]:
    """Give c (R, 3, 1) and dc / d(position, rotation) (R, 3, 6) side by side, (R, 3, 7), in parts.

    Every ray gets a perturbation of its own, so one backward pass a channel serves all rays.
    """
    for part in pixels.split(max(1, chunk // 4)):
        with torch.enable_grad():
            delta = pose.new_zeros(len(part), 6).requires_grad_()
            colour, _ = scene.shown(perturb(pose.expand(len(part), 4, 4), delta), part)
            slopes = [torch.autograd.grad(channel.sum(), delta, retain_graph=True)[0]
                      for channel in colour.unbind(-1)]
        yield torch.cat((colour.detach()[..., None].cpu().double(),
                         torch.stack(slopes, dim=1).cpu()), dim=-1)


def _normal(scene: _Scene, pose: Tensor, pixels: Tensor, judged: _Judged, chunk: int) -> Tensor:
    """Give H = J^T J (6, 6) of r, less what gain and bias explain of it."""
    linear = torch.cat(list(_slopes(scene, pose, pixels, chunk)))[judged.solid.cpu()]
    normal = torch.zeros(6, 6, dtype=torch.float64)
    for channel, gain in zip(linear.unbind(1), judged.gain.tolist()):
        colour, jacobian = channel[:, :1], gain * channel[:, 1:]
        # Least squares by orthogonalising: what a change of exposure does, tells nothing of poses.
        colour, jacobian = colour - colour.mean(0), jacobian - jacobian.mean(0)
        length = (colour ** 2).sum() + len(colour) * _GAIN_RIDGE
        jacobian = jacobian - colour * (colour.T @ jacobian) / length
        normal += jacobian.T @ jacobian
    return normal


def _conclude(
    scene: _Scene, start: Tensor, pose: Tensor, before: _Judged, pixels: Tensor, chunk: int,
) -> Alignment:
    """Judge the pose (4, 4) that the descent ended at."""
    config = scene.config
    after = _judge(scene, pose, pixels, chunk)
    covariance, reason = None, _too_few(after, config)
    if not reason:
        inverse, condition = inverse_normal(_normal(scene, pose, pixels, after, chunk))
        if inverse is None:
            reason = (f'the colours of {after.count} rays do not fix the pose (condition '
                      f'{condition:.1e}); the picture is flat or striped')
        elif not after.correlation >= config.min_correlation:
            reason = (f'colours of picture and map correlate by {after.correlation:.2f}; '
                      f'{config.min_correlation:g} is needed')
        elif after.rms_error > before.rms_error:
            reason = (f'the colours differ by {after.rms_error:.3f} after the descent and by '
                      f'{before.rms_error:.3f} before')
        else:
            # 3 values a ray; the pose, gains and biases took up 12 of them.
            variance = after.rms_error ** 2 * 3 * after.count / (3 * after.count - 12)
            covariance = max(variance, _NOISE_FLOOR ** 2) * inverse.numpy()
    metres, radians = pose_distance(start, pose)
    result = pose.numpy().copy()
    result[:3, :3] = nearest_rotation(pose[:3, :3]).numpy()
    return Alignment(
        None if reason else result, reason, covariance, before.median_error, after.median_error,
        after.correlation, after.count / len(pixels), tuple(after.gain.tolist()), after.count,
        config.steps, (metres.item(), radians.item()))


def _too_few(judged: _Judged, config: GradientConfig) -> str:
    """Tell why the rays that meet a surface do not suffice; '' where they do."""
    rays = len(judged.solid)
    if judged.count < config.min_points:
        return (f'{judged.count} of {rays} rays meet a surface of the map; {config.min_points} '
                'are needed')
    if judged.count < config.min_overlap * rays:
        return (f'{100 * judged.count / rays:.0f} % of the rays meet a surface of the map; '
                f'{100 * config.min_overlap:g} % are needed')
    return ''
