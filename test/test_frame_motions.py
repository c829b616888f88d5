"""Motions of frames: they begin at none, warps are fitted by one rigid motion, gradients flow."""

from nerfmatch_ros.geometry.pose import se3_exp
from nerfmatch_ros.mapping.frame_motions import FrameTwists, LocalWarps
import pytest
import torch
import torch.nn.functional as F

KINDS = {'l2g': LocalWarps, 'barf': FrameTwists}


def pixels(generator, frames=4, count=10):
    plane = 2 * torch.rand(frames, count, 2, generator=generator) - 1
    return plane, F.normalize(torch.cat([plane, torch.ones(frames, count, 1)], -1), dim=-1)


@pytest.mark.parametrize('kind', KINDS)
def test_motions_begin_at_none(kind, generator):
    plane, directions = pixels(generator)
    motions = KINDS[kind](4)
    rays, departure, _ = motions.ray_motions(torch.arange(4), plane, directions)
    torch.testing.assert_close(rays, torch.eye(4).expand(4, 10, 4, 4))
    frames = motions.frame_motions(plane, directions)
    torch.testing.assert_close(frames, torch.eye(4).expand(4, 4, 4), atol=1e-5, rtol=0)
    assert departure.item() < 1e-10


def test_a_warp_that_is_rigid_is_found_without_departure(generator):
    plane, directions = pixels(generator)
    warps, twist = LocalWarps(4), torch.tensor([0.1, -0.2, 0.05, 0.3, 0.1, -0.2])
    with torch.no_grad():
        warps.network.head.bias.copy_(twist)
    _, departure, twists = warps.ray_motions(torch.arange(4), plane, directions)
    frames = warps.frame_motions(plane, directions)
    torch.testing.assert_close(frames, se3_exp(twist).expand(4, 4, 4), atol=1e-5, rtol=1e-5)
    assert departure.item() < 1e-10
    torch.testing.assert_close(twists, twist.expand(4, 6))


def test_no_rigid_motion_is_nearer_to_the_warp_than_the_fitted_one(generator):
    plane, directions = pixels(generator)
    warps = LocalWarps(4)
    with torch.no_grad():
        warps.network.head.weight.copy_(
            0.3 * torch.randn(warps.network.head.weight.shape, generator=generator))
    rays, departure, _ = warps.ray_motions(torch.arange(4), plane, directions)
    frames = warps.frame_motions(plane, directions)

    def departure_from(frames):
        ends = (rays[..., :3, :3] @ directions[..., None])[..., 0] + rays[..., :3, 3]
        rigid = frames[:, None]
        centres = rigid[..., :3, 3].expand_as(ends)
        moved = (rigid[..., :3, :3] @ directions[..., None])[..., 0] + rigid[..., :3, 3]
        return 0.5 * ((ends - moved).square() + (rays[..., :3, 3] - centres).square()).sum(-1)

    best = departure_from(frames).mean((-1))
    torch.testing.assert_close(best.mean(), departure, rtol=1e-4, atol=1e-7)
    assert (best > 1e-5).all()
    for _ in range(20):
        step = se3_exp(0.02 * torch.randn(4, 6, generator=generator))
        assert (departure_from(frames @ step).mean(-1) > best).all()


@pytest.mark.parametrize('kind', KINDS)
def test_only_frames_of_the_step_are_pulled(kind, generator):
    plane, directions = pixels(generator)
    motions = KINDS[kind](4)
    chosen = torch.tensor([2, 0])
    if kind == 'l2g':  # its first gradient is the head's alone, which all frames share
        with torch.no_grad():
            motions.network.head.weight.copy_(
                0.1 * torch.randn(motions.network.head.weight.shape, generator=generator))
    rays, departure, _ = motions.ray_motions(chosen, plane[chosen], directions[chosen])
    (rays[..., :3, 3].sum() + departure).backward()
    rows = motions.twist.grad if kind == 'barf' else motions.network.embedding.weight.grad
    assert (rows.abs().amax(-1) > 0).tolist() == [True, False, True, False]
