"""Frames, rays, whole views and the pose's gradient, as the published code computes them.

Its pixel coordinates count from the corner of the first pixel, ours from its centre.
"""

import math

from nerfmatch_ros.data.release_annotations import read_annotations
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.importers.official_checkpoint import OfficialCheckpoint
from nerfmatch_ros.importers.official_field import official_field
from nerfmatch_ros.radiance_field.encoding import (
    conical_frustums,
    integrated_positional_encoding,
)
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.mip_field import even_edges, resample_edges
from nerfmatch_ros.radiance_field.renderer import composited_points, render_rays, render_view
from nerfmatch_ros.radiance_field.scene_frame import frustum_frame, SceneFrame
from nerfmatch_ros.radiance_field.volume_rendering import (
    composite,
    interval_weights,
    midpoints,
)
import numpy as np
from official_parity import Fixture, FOLDER, needs_fixtures, official_options, official_weights
import pytest
import torch

FIELD_NAMES = ['nerf_app', 'nerf_noapp']


def close(found, expected, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(found, expected.to(found), rtol=rtol, atol=atol)


def published_field(kind, **options):
    checkpoint = OfficialCheckpoint(FOLDER / kind, official_weights(kind), official_options(kind))
    return official_field(checkpoint, **options)


def pinhole(matrix, width, height):
    fx, fy, cx, cy = (matrix[i].item() for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return Camera('PINHOLE', width, height, fx, fy, cx - 0.5, cy - 0.5)


def frame_of(scene_from_map):
    scale = scene_from_map[0, 0].item()
    return SceneFrame(
        Similarity(scale, np.eye(3), scene_from_map[:3, 3].numpy()), 0.01, 1.0, ball=True)


def unpacked(rays):
    return Rays(rays[:, :3], rays[:, 3:6], rays[:, 6], rays[:, 7], rays[:, 11])


def packed(rays):
    return torch.cat([rays.origins, rays.directions, rays.near[:, None], rays.far[:, None],
                      rays.directions, rays.radius[:, None]], dim=1)


def annotated(split):
    """Read the parity data set."""
    folder = FOLDER / 'dataset'
    file, = (folder / 'annotations').glob(f'transforms_*_{split}.json')
    return read_annotations(file, next((folder / 'data').iterdir()))


def square(rays):
    """Give the side in cells of the square grid of a whole view."""
    side = math.isqrt(len(rays))
    assert side * side == len(rays)
    return side


@needs_fixtures
@pytest.mark.parametrize('depth', [1, 10, 50])
def test_the_scene_is_normalised_as_published(depth):
    images = annotated('train')
    frame = frustum_frame([image.camera for image in images],
                          np.stack([image.map_from_camera for image in images]), depth)
    expected = Fixture('geom')[f'world2nscene_depth{depth}'].double()
    close(torch.tensor(frame.scene_from_map.scale), expected[0, 0])
    close(torch.from_numpy(frame.scene_from_map.translation), expected[:3, 3])
    assert np.array_equal(frame.scene_from_map.rotation, np.eye(3))
    assert frame.ball and (frame.near, frame.far) == (0.01, 1.0)


@needs_fixtures
def test_points_leave_the_scene_frame_as_published():
    """The inputs are those of the projection, all reduced by one factor."""
    fixture = Fixture('geom')
    frame = frame_of(fixture['world2nscene_depth10'].double())
    points, back = fixture['proj_X'].double(), frame.to_scene(fixture['unnorm'].double())
    factor = (points * back).sum() / (points * points).sum()
    close(back, factor * points)


@needs_fixtures
def test_rays_of_a_view_are_the_published_ones():
    fixture = Fixture('geom')
    side = 8 * square(fixture['rays480_ds8'])
    camera = pinhole(fixture['K480'].double(), side, side)
    grid = camera.pixel_grid(8, dtype=torch.float64)
    close(grid + 0.5, fixture['grid480'])
    candidates = [fixture[f'world2nscene_depth{depth}'].double() for depth in (1, 10, 50)]
    frame = frame_of(min(candidates, key=lambda candidate: (
        candidate[:3, :3] @ fixture['c2w'].double()[:3, 3] + candidate[:3, 3]
        - fixture['rays480_ds8'][0, :3]).norm().item()))
    rays = frame.rays(fixture['c2w'].double(), camera.rays(grid), camera.pixel_angles(grid))
    # Differences of single-precision directions are what the published radius is made of.
    close(packed(rays)[:, :11], fixture['rays480_ds8'][:, :11])
    close(rays.radius, fixture['rays480_ds8'][:, 11], rtol=2e-4)


@needs_fixtures
def test_rays_of_a_camera_outside_of_the_ball_end_where_published():
    expected = unpacked(Fixture('geom')['rays_outside'].double())
    assert (expected.origins.norm(dim=-1) > 1).all()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = expected.origins[0]
    frame = SceneFrame(Similarity(1.0, np.eye(3), np.zeros(3)), 0.01, 1.0, ball=True)
    rays = frame.rays(pose, expected.directions, 1e-3)
    close(rays.far, expected.far)


@needs_fixtures
def test_projection_is_the_published_one():
    fixture = Fixture('geom')
    pose = fixture['c2w'].double()
    in_camera = (fixture['proj_X'].double() - pose[:3, 3]) @ pose[:3, :3]
    front = in_camera[:, 2] > 0  # the published one mirrors points behind the camera into view
    assert front.any()
    camera = pinhole(fixture['K480'].double(), 480, 480)
    close(camera.project(in_camera[front]) + 0.5, fixture['proj_uv'][front], atol=1e-3)


@needs_fixtures
@pytest.mark.parametrize('name', FIELD_NAMES)
@torch.no_grad()
def test_random_intervals_are_drawn_as_published(name):
    """The published offset is added twice, so the last intervals of a ray are empty."""
    field, fixture = published_field(name).eval(), Fixture(name)
    rays = unpacked(fixture['rays'])
    generator = torch.Generator().manual_seed(123)
    coarse = even_edges(rays.near, rays.far, field.config.coarse_samples, generator)
    close(coarse, fixture['rnd_t_coarse'])
    generator.manual_seed(123)
    fine = field.propose(rays, generator).edges
    expected = fixture['rnd_t_fine']
    kept = fine.shape[1]
    assert expected.shape[1] // 2 < kept < 0.6 * expected.shape[1]
    # Where a quantile falls beside a bin's border, rounding may decide for the other side.
    apart = (fine - expected[:, :kept]).abs() > 1e-4 * expected[:, :kept] + 1e-5
    assert apart.float().mean() < 1e-3
    assert (expected[:, kept:] == expected[:, kept - 1:kept]).all()
    samples = field.evaluate(rays, expected[:, :kept], feature_layer=3)
    weights = interval_weights(samples.density, expected[:, :kept])
    close(weights, fixture['rnd_weights_fine'][:, :kept - 1])
    assert (fixture['rnd_weights_fine'][:, kept - 1:] == 0).all()


@needs_fixtures
@pytest.mark.parametrize('name', FIELD_NAMES)
@torch.no_grad()
def test_composited_rays_are_the_published_ones(name):
    field, fixture = published_field(name), Fixture(name)
    rays = unpacked(fixture['rays'])
    rendered = render_rays(field, rays, feature_layer=3)
    close(rendered.colour, fixture['det_rgb_fine'])
    close(rendered.feature, fixture['det_feat_fine'])
    close(rendered.summed_distance, fixture['det_depth_fine'])
    points = composited_points(rendered, rays)
    close(points, fixture['det_pts_fine'])
    close(frame_of(fixture['world2nscene']).to_map(points), fixture['det_pts_world'], atol=1e-3)


@needs_fixtures
@pytest.mark.parametrize('name', FIELD_NAMES)
@pytest.mark.parametrize('kind', ['det', 'rnd'])
@torch.no_grad()
def test_every_step_along_the_rays_is_the_published_one(name, kind):
    """Both networks in the published intervals, even or random: all arrays but those above."""
    field, fixture = published_field(name), Fixture(name)
    rays = unpacked(fixture['rays'])
    if field.appearance is not None:
        close(field.appearance(torch.ones(1, dtype=torch.long)), field.appearance.weight[1:2])

    def published(what):
        return fixture[f'{kind}_{what}']

    for part, network, layer in (('coarse', field.coarse, 7), ('fine', field.fine, 3)):
        edges = published(f't_{part}')
        mean, variance = conical_frustums(rays.origins, rays.directions, rays.radius, edges)
        close(mean, published(f'mean_{part}'))
        close(variance, published(f'var_{part}'), rtol=1e-3, atol=1e-9)
        encoded = torch.cat([
            integrated_positional_encoding(mean[0], variance[0], field.config.position_octaves),
            field._view(rays[:1]).expand(len(mean[0]), -1)], dim=-1)
        close(encoded, published(f'mlp_in_{part}_ray0'), rtol=1e-3, atol=2e-3)
        found = field._look(network, rays, edges, colour=True, feature_layer=layer)
        close(found.colour, published(f'raw_{part}')[..., :3])
        close(found.density, published(f'raw_{part}')[..., 3].relu())
        close(found.feature[0], published(f'feat_samples_{part}_ray0'), atol=1e-4)
        weights = interval_weights(found.density, edges)
        close(weights, published(f'weights_{part}'))
        left = 1 - weights.sum(-1, keepdim=True) if field.white_background else 0
        close(composite(weights, found.colour) + left, published(f'rgb_{part}'))
        close((weights * midpoints(edges)).sum(-1), published(f'depth_{part}'))
        points = composite(weights, mean)
        close(points, published(f'pts_{part}'))
        close(composite(weights, found.feature), published(f'feat_{part}'))
    frame = frame_of(fixture['world2nscene'].double())
    close(frame.to_map(points), published('pts_world'), atol=1e-3)


@needs_fixtures
@pytest.mark.parametrize('name', FIELD_NAMES)
@torch.no_grad()
def test_the_feature_of_every_layer_is_the_published_one(name):
    field, fixture = published_field(name), Fixture(name)
    rays, edges = unpacked(fixture['rays']), fixture['det_t_fine']
    mean, variance = conical_frustums(rays.origins, rays.directions, rays.radius, edges)
    position = integrated_positional_encoding(mean, variance, field.config.position_octaves)
    for layer in range(field.config.depth):
        last, kept = field.fine.encode(position, keep=layer)
        close(composite(fixture['det_weights_fine'], kept),
              fixture[f'det_feat_fine_stop{layer}'])
    close(composite(fixture['det_weights_fine'], last), fixture['det_feat_fine_stop-1'])


@needs_fixtures
@torch.no_grad()
def test_a_whole_reference_view_is_the_published_one():
    """The view is that of the rays' own fixture; which of the two fields made it is tried."""
    fixture = Fixture('nerf_view')
    side = 8 * square(fixture['rays'])
    origin = fixture['rays'][0, :3]
    for name in FIELD_NAMES:
        own = Fixture(name)
        frame = frame_of(own['world2nscene'].double())
        pose = own['c2w_world'].double()
        camera = pinhole(own['K'].double(), side, side)
        if (frame.to_scene(pose[:3, 3]) - origin).norm() > 1e-5:
            continue
        view = render_view(published_field(name, random_rendering=False), frame, camera, pose,
                           colour=True, feature_layer=3)
        if (view.colour - fixture['im_pred'].reshape(-1, 3)).abs().max() < 1e-2:
            break
    else:
        pytest.fail('neither field shows what nerf_view.npz holds')
    close(view.points, fixture['pt3d'], atol=2e-3)
    close(view.features.sum(-1), fixture['pt_feat_rowsum'], rtol=1e-3, atol=1e-3)
    first = fixture['pt_feat_first64']
    close(view.features[:len(first)], first, atol=1e-4)
    close(view.features, fixture['pt_feat'].float(), rtol=1e-3, atol=1e-3)
    close(view.colour, fixture['im_pred'].reshape(-1, 3))
    assert view.solid().all()


def rays_of_matrix(pose, directions, below):
    """Cast rays from a pose (4, 4) of the scene frame whose rotation block carries its scale.

    directions, below: (R, 3) of pixels and of those below them, camera frame. No rotation keeps
    the matrix from shearing, so the radius of the cones changes with it as well.
    """
    turned, lower = (
        (part @ pose[:3, :3].T) / (part @ pose[:3, :3].T).norm(dim=-1, keepdim=True)
        for part in (directions, below))
    radius = (lower - turned).norm(dim=-1) * 2 / math.sqrt(12)
    origins = pose[:3, 3].expand_as(turned)
    along = (origins * turned).sum(-1)
    far = (along ** 2 - (origins ** 2).sum(-1) + 1).sqrt() - along
    return Rays(origins, turned, torch.full_like(far, 0.01), far, radius)


@needs_fixtures
def test_the_published_optimisation_of_a_pose_follows_the_same_gradient():
    """Adam on the 16 numbers of the pose matrix, towards ImageNet-normalised colours (sic).

    Our own step `inerf` moves six numbers towards the true colours; the gradient is the field's.
    """
    fixture = Fixture('inerf')
    side = 8 * square(fixture['image'])
    camera = pinhole(fixture['K'].double(), side, side)
    grid = camera.pixel_grid(8, dtype=torch.float64)
    directions = camera.rays(grid).float()
    below = camera.rays(grid + grid.new_tensor((0, 1))).float()
    frame = frame_of(torch.linalg.inv(fixture['unnorm_scene'].double()))
    field = published_field('nerf_app', random_rendering=False)
    start = frame.scene_from_map.scale * fixture['c2w_init'].double()
    start[:3, 3] = frame.to_scene(fixture['c2w_init'].double()[:3, 3])
    start[3] = torch.tensor([0, 0, 0, 1])
    close(start.float(), fixture['pose_before_0'])
    for step in range(2):
        pose = fixture[f'pose_before_{step}'].clone().requires_grad_()
        gradient, loss, colours, points, features = 0, 0, [], [], []
        for part in torch.arange(len(directions)).split(512):
            rays = rays_of_matrix(pose, directions[part], below[part])
            rendered = render_rays(field, rays, feature_layer=3)
            share = ((rendered.colour - fixture['image'][part]) ** 2).sum() / (3 * len(directions))
            gradient = gradient + torch.autograd.grad(share, pose)[0]
            loss = loss + share.detach()
            colours.append(rendered.colour.detach())
            points.append(frame.to_map(composited_points(rendered, rays)).detach())
            features.append(rendered.feature.detach())
        close(torch.cat(colours), fixture[f'rgb_{step}'])
        close(loss, fixture[f'loss_{step}'])
        scale = fixture[f'grad_{step}'].abs().max().item()
        # Octaves of 2^14 magnify rounding: double precision is 1 % away from single here.
        close(gradient, fixture[f'grad_{step}'], rtol=0, atol=4e-2 * scale)
        cosine = torch.cosine_similarity(gradient.ravel(), fixture[f'grad_{step}'].ravel(), 0)
        assert cosine > 0.998
        rate = 0.5 * 1e-3 * (1 + math.cos(math.pi * step / 2))
        assert rate == pytest.approx(fixture[f'lr_{step}'].item())
    close(torch.cat(points), fixture['pt3d'], rtol=1e-3, atol=5e-3)
    first = fixture['pt_feat_first64']
    close(torch.cat(features)[:len(first)], first, rtol=1e-3, atol=1e-3)
    close(torch.cat(features).sum(-1), fixture['pt_feat_rowsum'], rtol=1e-3, atol=1e-2)
    # Adam: both published gradients lead from the first pose to the last.
    pose = fixture['pose_before_0'].clone().requires_grad_()
    optimiser = torch.optim.Adam([pose], lr=1e-3)
    for step in range(2):
        optimiser.param_groups[0]['lr'] = fixture[f'lr_{step}'].item()
        pose.grad = fixture[f'grad_{step}'].clone()
        optimiser.step()
        close(pose.detach(), fixture[f'pose_after_{step}'])


def test_our_own_random_intervals_cover_the_ray_once():
    edges = torch.linspace(0, 1, 9).expand(50, -1)
    drawn = resample_edges(edges, torch.ones(50, 8), 15, torch.Generator().manual_seed(0))
    published = resample_edges(
        edges, torch.ones(50, 8), 15, torch.Generator().manual_seed(0), official=True)
    assert drawn.shape == (50, 16) and published.shape == (50, 9)
    assert (drawn[:, 8] < 0.6).all() and (published[:, 8] > 0.99).all()
