"""Registration by the field: rough poses are mended while a radiance field is learned.

    photographs, rough poses -> field and motions of the frames, learned together -> poses

`l2g` is L2G-NeRF (Chen et al., CVPR 2023): a network warps each ray by itself, and the pose of a
frame is the closed-form rigid fit of its rays. `barf` is BARF (Lin et al., ICCV 2021): one twist
per frame. Field, coarse-to-fine schedule, blur, rays of a step and what is known of the rough
poses are the same for both.

Where this departs from the papers: warps are for finding the way, and once they have, frames move
as a whole from the fits on (`rigid_from`), which is more exact. Motions are counted in deviations
of the rough poses' errors, those of odometry along its way, and weighed against them. A shift goes
around what lies ahead (`circling`), so that it is told from a turn. A turn that all cameras have
in common is left to the rough poses.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
import math
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.field_loss import exposure_loss
from nerfmatch_ros.mapping.frame_motions import (
    FrameMotions,
    FrameTwists,
    LocalWarps,
    WarpsThenTwists,
)
from nerfmatch_ros.mapping.lost_frames import FrameErrors, places_of_lost
from nerfmatch_ros.mapping.motion_errors import (
    CommonTurn,
    errors_of,
    MotionErrors,
    SeparateErrors,
)
from nerfmatch_ros.mapping.pose_prior import PosePrior
from nerfmatch_ros.mapping.pose_registration_config import detail_at, PoseRegistrationConfig
from nerfmatch_ros.mapping.ray_lens import RayLens
from nerfmatch_ros.mapping.registration_pixels import RegistrationPixels
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.mapping.training_pixels import PixelSize
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.grid_field import GridField
from nerfmatch_ros.radiance_field.renderer import render_rays
from nerfmatch_ros.radiance_field.scene_frame import fit_scene_frame, frustum_frame, SceneFrame
import numpy as np
import torch
from torch import nn, Tensor
from torch.nn.functional import mse_loss

CHECKPOINT_STEPS = 250
FIT_GRID = (12, 16)  # rows and columns of the rays that a frame's pose is fitted to
FIELD_WARMUP = 50  # steps in which the field's learning rates rise
POSE_WARMUP = 0.02  # progress in which those of the poses do
FIT_PIXELS = 2.0  # that the fits of warps are off by when frames become rigid, at a depth of 1
RETRY_AFTER = (0.0, 0.1, 0.2)  # progress since frames became rigid
MOST_BLUR = 6.0  # pixels; more of it leaves nothing to see in a photograph of 160
ROUGH = (0.05, math.radians(3))  # metres, radians; deviations where nothing else is known
# Without known depths: scene units, of which one is three times the spread of the cameras.
GUESSED_NEAR, GUESSED_FAR = 0.1, 4.0


@dataclass(frozen=True, eq=False)
class FieldRegistration:
    """Registered poses with the field that they were learned with."""

    poses: np.ndarray  # (K, 4, 4) float64 map_from_camera, metres of the given frame
    given_from_registered: Similarity  # what was undone: how the whole had moved and scaled
    field: RadianceField
    frame: SceneFrame  # in which the field shows what `poses` see
    numbers: dict  # steps, psnr (dB), moved_m and turned_deg (means), drift_scale, lens: k1, k2


class _Registration(nn.Module):
    """Field, motions and lenses: what is learned together, and what a checkpoint holds."""

    def __init__(self, field: RadianceField, motions: FrameMotions, lens: RayLens,
                 common_turn: CommonTurn):
        super().__init__()
        self.field, self.motions, self.lens = field, motions, lens
        self.common_turn = common_turn
        self.register_buffer('retries', torch.tensor(0))


def register_by_field(
    images: list[PosedImage], rough: np.ndarray, config: PoseRegistrationConfig, *,
    checkpoint: Path, device: torch.device | str = 'cpu', minutes: float | None = None,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
    frame: SceneFrame | None = None, prior: PosePrior | None = None,
) -> FieldRegistration:
    """Mend the poses of photographs while a field learns what they show.

    rough: (K, 4, 4) map_from_camera, metres, in the order of the images; poses of the images
    themselves are not looked at. minutes: of wall clock, at most. checkpoint: an interrupted
    registration goes on from there; it stays for the caller to delete. report: called with the
    progress in [0, 1] and {'psnr': dB of recent steps}. frame: the part of space to fill, in the
    rough poses' frame; without it one is guessed from the cameras' places. prior: how wrong the
    rough poses may be; its own poses are looked at for the way of odometry only. Without it they
    are taken for off by 5 cm and 3 degrees along and about each axis.

    The photographs say nothing about where the whole lies and how large it is. So the result is
    put back to where the rough poses were, by the robust similarity between the centres.
    """
    rough = np.array(rough, np.float64)
    if len(images) < 3 or rough.shape != (len(images), 4, 4):
        raise DataError(f'{len(images)} images and rough poses {rough.shape} cannot be '
                        'registered; give at least three images and a pose (4, 4) of each')
    torch.manual_seed(config.seed)
    frame = guess_frame(images, rough, config) if frame is None else frame
    errors = errors_of(prior or PosePrior(rough, *ROUGH), frame.scene_from_map.scale)
    if config.blur is None:
        off = math.degrees(errors.deviations[1].item())
        config = replace(config, blur=min(max(off, config.final_blur), MOST_BLUR))
    pixels = RegistrationPixels(images, PixelSize(config.longest_side), device)
    both = _Registration(config.field.make(len(images)), _motions(len(images), errors, config),
                         RayLens(pixels.cameras),
                         CommonTurn(rough, frame.scene_from_map.scale)).to(device)
    optimizer = _optimizer(both, config)
    clock = TrainingClock(steps=config.steps, minutes=minutes)
    load_checkpoint(checkpoint, both, optimizer, clock)
    psnr = _learn(both, optimizer, clock, pixels, torch.from_numpy(rough).float().to(device),
                  frame, config, checkpoint, report)
    registered = registered_poses(both, pixels, rough, frame)
    return _put_back(registered, rough, both.field, frame,
                     {'method': config.method, 'steps': clock.step, 'psnr': psnr,
                      'lens': both.lens.terms.tolist()})


def _motions(frames: int, errors: MotionErrors, config: PoseRegistrationConfig) -> FrameMotions:
    if config.method == 'barf':
        return FrameTwists(frames, errors)
    return WarpsThenTwists(LocalWarps(frames, errors, bfloat16=config.bfloat16),
                           FrameTwists(frames, errors))


def guess_frame(
    images: list[PosedImage], rough: np.ndarray, config: PoseRegistrationConfig,
) -> SceneFrame:
    """Guess the part of space that the photographs show, by where they were taken.

    A Mip-NeRF's is the unit ball around what the cameras see, a grid field's a box around them.
    """
    frame = fit_scene_frame(rough, np.zeros((0, 3)), np.zeros(0))
    scale = frame.scene_from_map.scale
    near, far = (GUESSED_NEAR, GUESSED_FAR) if config.depth_range is None \
        else (scale * metres for metres in config.depth_range)
    if config.field.kind == 'grid':
        return replace(frame, near=near, far=far)
    return frustum_frame([image.camera for image in images], rough,
                         far / scale if config.depth_range is not None else 1 / scale)


def _optimizer(both: _Registration, config: PoseRegistrationConfig) -> torch.optim.Optimizer:
    field = list(both.field.named_parameters())
    tables = [value for name, value in field if name.endswith('table')]
    others = [value for name, value in field if not name.endswith('table')]
    slow = {'betas': (0.9, 0.999), 'eps': 1e-8}
    motions = list(both.motions.named_parameters())
    groups = [
        {'params': [value for name, value in motions if not name.endswith('moves')],
         'lr': config.warp_rate, 'kind': 'warps', **slow},
        {'params': [value for name, value in motions if name.endswith('moves')],
         'lr': config.twist_rate, 'kind': 'twists', **slow},
        {'params': list(both.lens.parameters()), 'lr': config.lens_rate, 'kind': 'lens', **slow},
        {'params': others, 'lr': config.network_rate, 'kind': 'field'},
        {'params': tables, 'lr': config.table_rate, 'kind': 'field'}]
    groups = [group for group in groups if group['params']]
    for group in groups:
        group['first_rate'] = group['lr']
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def _set_rates(optimizer: torch.optim.Optimizer, config, clock: TrainingClock) -> None:
    """Set the learning rates of this step."""
    progress = clock.progress
    for group in optimizer.param_groups:
        if group['kind'] == 'field':
            share = min(1.0, (clock.step + 1) / FIELD_WARMUP)
            share *= config.field_final_rate ** progress
        else:
            begun = config.still
            if group['kind'] == 'twists' and config.method == 'l2g':
                begun = max(begun, config.rigid_from)
            share = min(1.0, max(0.0, (progress - begun) / POSE_WARMUP))
            share *= config.pose_final_rate ** progress
        group['lr'] = share * group['first_rate']


def _learn(
    both: _Registration, optimizer: torch.optim.Optimizer, clock: TrainingClock,
    pixels: RegistrationPixels, rough: Tensor, frame: SceneFrame, config: PoseRegistrationConfig,
    checkpoint: Path, report: Callable[[float, dict], None],
) -> float:
    """Learn field and motions until the clock ends; gives the PSNR of the last steps, dB."""
    field, generator = both.field.train(), torch.Generator(device=pixels.device)
    smoothed = None
    while clock.running:
        _set_rates(optimizer, config, clock)
        if config.method == 'l2g' and clock.progress >= config.rigid_from:
            noise = torch.full((2,), FIT_PIXELS * pixels.pixel_angle, device=pixels.device)
            both.motions.settle(*_fit_grid(both, pixels), noise)
        if both.retries < len(RETRY_AFTER) \
                and clock.progress >= config.rigid_from + RETRY_AFTER[both.retries]:
            both.retries += 1
            _retry_lost(both, clock, pixels, rough, frame, config)
        generator.manual_seed(config.seed * 1_000_003 + clock.step)
        loss, error = _step_loss(both, clock, pixels, rough, frame, config, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if isinstance(field, GridField) and clock.step % 16 == 0:
            field.refresh_guide(16384, generator)
        smoothed = error if smoothed is None else 0.98 * smoothed + 0.02 * error
        clock.tick()
        if clock.step % 20 == 0:
            report(clock.progress, {'psnr': _decibels(smoothed), 'step': clock.step})
        if clock.step % CHECKPOINT_STEPS == 0 or not clock.running:
            save_checkpoint(checkpoint, both, optimizer, clock)
            clock.pause()
    field.detail = 1.0
    field.eval().requires_grad_(False)
    return math.nan if smoothed is None else _decibels(smoothed)


@torch.no_grad()
def _retry_lost(
    both: _Registration, clock: TrainingClock, pixels: RegistrationPixels, rough: Tensor,
    frame: SceneFrame, config: PoseRegistrationConfig,
) -> None:
    """Put frames that were lost where others show that they belong."""
    motions, errors = both.motions, both.motions.errors
    if not isinstance(errors, SeparateErrors):
        return  # poses of odometry are never lost one by one
    both.field.detail, blur = detail_at(clock.progress, config)
    shown = FrameErrors(both.field, frame, pixels, both.lens, blur, config)
    moved = _moved(rough, motions.frame_motions(*_fit_grid(both, pixels)), frame)
    lost, numbers = places_of_lost(rough, moved, errors, frame.scene_from_map.scale, config.lost,
                                   config.prior_weight, shown)
    (motions.twists if config.method == 'l2g' else motions).place(lost, numbers)


def _step_loss(
    both: _Registration, clock: TrainingClock, pixels: RegistrationPixels, rough: Tensor,
    frame: SceneFrame, config: PoseRegistrationConfig, generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Give the loss of the rays of this step, and their mean squared error of colour."""
    field = both.field
    field.detail, blur = detail_at(clock.progress, config)
    frames = min(config.frames, len(pixels))
    drawn = pixels.draw(frames, max(config.rays // frames, 4), generator, blur=blur)
    directions = both.lens(drawn.frames, drawn.directions)
    motion, departure, numbers, twists = both.motions.ray_motions(
        drawn.frames, drawn.plane, directions)
    poses = _moved(rough[drawn.frames][:, None], motion, frame).flatten(0, 1)
    index = drawn.frames.repeat_interleave(drawn.plane.shape[1]) if config.exposure else None
    rays = frame.rays(poses, directions.flatten(0, 1), pixels.pixel_angle, index)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=config.bfloat16):
        rendered = render_rays(field, rays, generator=generator)
    if isinstance(field, GridField) and clock.step % 2 == 0:
        field.update_guide(*field.guide_entries(rays, rendered.edges, rendered.density), 0.05)
    colour = drawn.colour.flatten(0, 1)
    photometric = mse_loss(rendered.colour, colour)
    weight = config.prior_weight if isinstance(both.motions.errors, SeparateErrors) \
        else config.odometry_weight
    turn = both.common_turn(drawn.frames, twists) / both.motions.errors.deviations[1]
    loss = photometric + config.rigidity * departure \
        + config.common_weight * turn.square().sum() \
        + weight * numbers.square().sum(-1).mean() + config.lens_weight * both.lens.prior_loss()
    if rendered.proposal_colour is not None:
        loss = loss + mse_loss(rendered.proposal_colour, colour)
    # No distortion loss: it is less where all is near, and nothing holds the scale of the whole.
    if isinstance(field, GridField):
        loss = loss + exposure_loss(field.exposure)
    loss = loss + config.opacity_weight * ((1 - rendered.opacity) ** 2).mean()
    return loss, photometric.item()


def _moved(poses: Tensor, motions: Tensor, frame: SceneFrame) -> Tensor:
    """Move poses (..., 4, 4), metres, by motions (..., 4, 4) in the camera, scene units."""
    metres = motions.new_ones(4, 4)
    metres[:3, 3] = 1 / frame.scene_from_map.scale
    return poses @ (motions * metres)


@torch.no_grad()
def registered_poses(
    both: _Registration, pixels: RegistrationPixels, rough: np.ndarray, frame: SceneFrame,
) -> np.ndarray:
    """Give the poses (K, 4, 4) float64 that the motions make of the rough ones."""
    found = both.motions.frame_motions(*_fit_grid(both, pixels)).cpu().double()
    return _moved(torch.from_numpy(rough), found, frame).numpy()


@torch.no_grad()
def _fit_grid(both: _Registration, pixels: RegistrationPixels) -> tuple[Tensor, Tensor]:
    """Give the pixels that poses are fitted to: plane (K, P, 2), directions (K, P, 3)."""
    plane, directions = pixels.grid(*FIT_GRID)
    frames = torch.arange(len(pixels), device=pixels.device)
    return plane, both.lens(frames, directions)


def _put_back(
    registered: np.ndarray, rough: np.ndarray, field: RadianceField, frame: SceneFrame,
    numbers: dict,
) -> FieldRegistration:
    """Bring poses and field back to where the rough poses were."""
    if not np.isfinite(registered).all():
        raise DataError('the registration of poses diverged; lower registration.warp_rate or '
                        'twist_rate, or give better rough poses')
    back = align_trajectories(registered, rough, robust=True)
    poses = back.apply_to_pose(registered)
    moved, turned = pose_distance(torch.from_numpy(poses), torch.from_numpy(rough))
    given_frame = replace(frame, scene_from_map=_after(frame.scene_from_map, back.inverse()))
    return FieldRegistration(poses, back, field, given_frame, {
        **numbers, 'drift_scale': 1 / back.scale, 'moved_m': moved.mean().item(),
        'turned_deg': math.degrees(turned.mean().item())})


def _after(second: Similarity, first: Similarity) -> Similarity:
    """Give the similarity that moves by `first` and then by `second`."""
    return Similarity(second.scale * first.scale, second.rotation @ first.rotation,
                      second.apply(first.translation))


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, 1e-10))
