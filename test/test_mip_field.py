"""The Mip-NeRF field: sampling, gradients, determinism, and the published code's numbers."""

import dataclasses

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.encoding import conical_frustums
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.mip_field import (
    blur_weights,
    even_edges,
    MipField,
    MipFieldConfig,
    resample_edges,
)
from nerfmatch_ros.radiance_field.volume_rendering import composite, interval_weights
from official_parity import Fixture, needs_fixtures, official_weights, part
import pytest
import torch

TINY = MipFieldConfig(width=16, depth=4, skip=1, position_octaves=4, direction_octaves=2,
                      appearance_channels=3, coarse_samples=12, fine_samples=10)


def tiny_field(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    return MipField(dataclasses.replace(TINY, **changes), images=5).to(dtype).eval()


def some_rays(count=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(count, 3, generator=generator, dtype=dtype)
    return Rays(
        origins=0.3 * torch.randn(count, 3, generator=generator, dtype=dtype),
        directions=directions / directions.norm(dim=-1, keepdim=True),
        near=torch.full((count,), 0.05, dtype=dtype),
        far=torch.linspace(0.6, 1.5, count, dtype=dtype),
        radius=torch.full((count,), 2e-3, dtype=dtype))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_even_edges_cut_the_ray_into_equal_intervals():
    near, far = torch.tensor([0.1, 0.2]), torch.tensor([1.0, 3.0])
    edges = even_edges(near, far, 8)
    assert edges.shape == (2, 9)
    torch.testing.assert_close(edges[:, 0], near)
    torch.testing.assert_close(edges[:, -1], far)
    torch.testing.assert_close(edges.diff(dim=1), ((far - near) / 8)[:, None].expand(-1, 8))


def test_jittered_edges_stay_in_order_and_in_the_ray():
    near, far = torch.full((500,), 0.1), torch.full((500,), 1.1)
    edges = even_edges(near, far, 8, seeded(0))
    assert (edges.diff(dim=1) >= 0).all()
    assert (edges >= near[:, None]).all() and (edges <= far[:, None]).all()
    assert ((edges - even_edges(near, far, 8)).abs() <= 0.5 / 8 + 1e-6).all()


def test_blurring_never_lowers_a_peak_and_reaches_its_neighbours():
    weights = torch.zeros(1, 7)
    weights[0, 3] = 1
    expected = torch.tensor([[0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0]]) + 0.01
    torch.testing.assert_close(blur_weights(weights, 0.01), expected)


@pytest.mark.parametrize('generator', [None, seeded(1)])
def test_resampled_edges_follow_the_histogram(generator):
    """The share of new edges in a bin is the bin's share of the weight."""
    edges = torch.linspace(0, 1, 6).expand(200, -1)
    weights = torch.tensor([1.0, 0.0, 5.0, 3.0, 1.0]).expand(200, -1)
    drawn = resample_edges(edges, weights, 99, generator)
    assert drawn.shape == (200, 100)
    assert (drawn.diff(dim=1) >= 0).all()
    assert (drawn >= 0).all() and (drawn <= 1).all()
    share = torch.histc(drawn, 5, 0, 1) / drawn.numel()
    torch.testing.assert_close(share, weights[0] / weights[0].sum(), atol=0.011, rtol=0)


def test_random_resampling_reaches_the_whole_ray_once():
    """Each stratum holds one draw; the published code doubles the offset and leaves half empty."""
    edges = torch.linspace(0, 1, 2).expand(300, -1)
    drawn = resample_edges(edges, torch.ones(300, 1), 31, seeded(2))
    stratum = (drawn * 32).floor().long()
    torch.testing.assert_close(stratum, torch.arange(32).expand(300, -1))


def test_interval_counts_and_shapes():
    field, rays = tiny_field(), some_rays()
    proposal = field.propose(rays)
    assert proposal.edges.shape == (6, 11)
    assert proposal.colour is None
    assert (proposal.edges.diff(dim=1) >= 0).all()
    assert (proposal.edges >= rays.near[:, None]).all()
    assert (proposal.edges <= rays.far[:, None] + 1e-6).all()
    samples = field.evaluate(rays, proposal.edges, feature_layer=2)
    assert samples.density.shape == (6, 10)
    assert samples.colour.shape == (6, 10, 3)
    assert samples.feature.shape == (6, 10, 16)
    assert (samples.density >= 0).all() and (samples.feature >= 0).all()
    bare = field.evaluate(rays, proposal.edges, colour=False)
    assert bare.colour is None and bare.feature is None
    torch.testing.assert_close(bare.density, samples.density)


def test_without_a_generator_the_field_is_deterministic_even_in_training():
    rays = some_rays()
    for training in (False, True):
        field = tiny_field().train(training)
        first, second = field.propose(rays), field.propose(rays)
        assert torch.equal(first.edges, second.edges)
        once, again = (field.evaluate(rays, p.edges) for p in (first, second))
        assert torch.equal(once.density, again.density)
        assert torch.equal(once.colour, again.colour)


def test_equal_seeds_give_equal_noise_and_others_do_not():
    field, rays = tiny_field().train(), some_rays()
    edges = field.propose(rays, seeded(3)).edges
    assert torch.equal(edges, field.propose(rays, seeded(3)).edges)
    assert not torch.equal(edges, field.propose(rays, seeded(4)).edges)
    noisy = field.evaluate(rays, edges, generator=seeded(3)).density
    assert not torch.equal(noisy, field.evaluate(rays, edges).density)
    field.eval()
    assert torch.equal(field.evaluate(rays, edges, generator=seeded(3)).density,
                       field.evaluate(rays, edges).density)


def test_training_supervises_the_coarse_network_but_not_through_the_edges():
    field, rays = tiny_field().train(), some_rays()
    proposal = field.propose(rays, seeded(5))
    assert not proposal.edges.requires_grad
    assert proposal.colour.shape == (6, 3)
    proposal.colour.sum().backward()
    assert all(p.grad is not None for p in field.coarse.parameters())
    assert all(p.grad is None for p in field.fine.parameters())


def test_a_white_background_fills_what_the_coarse_density_leaves():
    rays = some_rays()
    black = tiny_field().train().propose(rays).colour
    white = tiny_field(white_background=True).train().propose(rays).colour
    assert (white > black).all()
    torch.testing.assert_close((white - black).std(dim=1), torch.zeros(6), atol=1e-6, rtol=0)


def test_features_and_density_do_not_depend_on_the_image_but_colour_does():
    field, rays = tiny_field(), some_rays()
    edges = field.propose(rays).edges
    first, second, mean = (
        field.evaluate(dataclasses.replace(rays, image_index=index), edges, feature_layer=1)
        for index in (torch.zeros(6, dtype=torch.long), torch.full((6,), 4), None))
    for other in (second, mean):
        assert torch.equal(first.density, other.density)
        assert torch.equal(first.feature, other.feature)
        assert not torch.equal(first.colour, other.colour)


def test_each_feature_layer_is_its_own_and_wrong_ones_are_refused():
    field, rays = tiny_field(), some_rays()
    edges = field.propose(rays).edges
    features = [field.evaluate(rays, edges, colour=False, feature_layer=j).feature
                for j in range(1, field.feature_layers + 1)]
    assert len(features) == 3
    assert not torch.equal(features[0], features[1])
    for j in (0, 4):
        with pytest.raises(ConfigError, match=f'layer {j}'):
            field.evaluate(rays, edges, feature_layer=j)


def test_point_features_are_those_of_a_thin_interval():
    field, rays = tiny_field(), some_rays()
    middle = torch.full((6, 1), 0.4)
    edges = torch.cat([middle - 1e-4, middle + 1e-4], dim=1)
    points = rays.origins + 0.4 * rays.directions
    for j in (1, 2, 3):
        thin = field.evaluate(rays, edges, colour=False, feature_layer=j).feature[:, 0]
        torch.testing.assert_close(field.point_features(points, j), thin, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('skip', [1, 7])
def test_the_skip_connection_is_optional(skip):
    field = tiny_field(skip=skip)
    joined = [layer.in_features for layer in field.fine.encoder].count(16 + 24)
    assert joined == (1 if skip == 1 else 0)
    rays = some_rays()
    assert torch.isfinite(field.evaluate(rays, field.propose(rays).edges).density).all()


def test_gradient_with_respect_to_the_pose_agrees_with_finite_differences():
    field, rays = tiny_field(torch.float64), some_rays(dtype=torch.float64)
    edges = field.propose(rays).edges

    def rendered(origins, directions):
        moved = dataclasses.replace(rays, origins=origins, directions=directions)
        samples = field.evaluate(moved, edges, feature_layer=2)
        weights = interval_weights(samples.density, edges)
        return composite(weights, samples.colour), composite(weights, samples.feature)

    pose = [tensor.clone().requires_grad_() for tensor in (rays.origins, rays.directions)]
    assert torch.autograd.gradcheck(rendered, pose, eps=1e-7, atol=1e-5)


def test_impossible_sizes_are_refused_by_name():
    with pytest.raises(ConfigError, match='fine_samples is 0'):
        MipFieldConfig(fine_samples=0)


NETWORK_NAMES = {'pts_linears.': 'encoder.', 'alpha_linear.': 'density_head.',
                 'feature_linear.': 'bottleneck.', 'views_linears.0.': 'view_layer.',
                 'rgb_linear.': 'colour_head.'}


def published(name):
    """Load the field with the published code's random weights, and what that code computed."""
    weights = official_weights(name)
    appearance = weights.get('model.embedding_a.weight')
    config = MipFieldConfig(appearance_channels=0 if appearance is None else 16,
                            white_background=name == 'nerf_app')
    field = MipField(config, images=1 if appearance is None else len(appearance))
    field.coarse.load_state_dict(part(weights, 'model.nerf_coarse.', NETWORK_NAMES))
    field.fine.load_state_dict(part(weights, 'model.nerf_fine.', NETWORK_NAMES))
    index = None
    if appearance is not None:
        field.appearance.load_state_dict({'weight': appearance})
        index = torch.ones(64, dtype=torch.long)
    fixture = Fixture(name)
    r = fixture['rays']
    rays = Rays(r[:, :3], r[:, 3:6], near=r[:, 6], far=r[:, 7], radius=r[:, 11], image_index=index)
    return field.eval(), rays, fixture


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def rendered_colour(weights, samples, white):
    colour = composite(weights, samples.colour)
    return colour + (1 - weights.sum(dim=-1, keepdim=True)) if white else colour


@needs_fixtures
@pytest.mark.parametrize('name', ['nerf_app', 'nerf_noapp'])
@torch.no_grad()
def test_both_passes_equal_the_published_ones(name):
    field, rays, fixture = published(name)
    proposal = field.train().propose(rays)
    field.eval()
    close(proposal.colour, fixture['det_rgb_coarse'])
    close(proposal.edges, fixture['det_t_fine'])
    edges = proposal.edges
    for layer in range(1, 8):
        samples = field.evaluate(rays, edges, colour=layer == 3, feature_layer=layer)
        weights = interval_weights(samples.density, edges)
        close(composite(weights, samples.feature), fixture[f'det_feat_fine_stop{layer}'])
        if layer == 3:
            close(weights, fixture['det_weights_fine'])
            close(samples.density, fixture['det_raw_fine'][..., 3].relu())
            close(samples.colour, fixture['det_raw_fine'][..., :3])
            close(rendered_colour(weights, samples, name == 'nerf_app'), fixture['det_rgb_fine'])
            close(samples.feature[0], fixture['det_feat_samples_fine_ray0'])
            mean, _ = conical_frustums(rays.origins, rays.directions, rays.radius, edges)
            points = composite(weights, mean)
            close(points, fixture['det_pts_fine'])


@needs_fixtures
@torch.no_grad()
def test_appearance_rows_colour_as_published():
    field, rays, fixture = published('nerf_app')
    edges = fixture['det_t_fine']
    for row in (0, 5):
        coloured = dataclasses.replace(rays, image_index=torch.full((64,), row))
        samples = field.evaluate(coloured, edges)
        weights = interval_weights(samples.density, edges)
        close(rendered_colour(weights, samples, True), fixture[f'det_rgb_fine_app{row}'])


@needs_fixtures
@torch.no_grad()
def test_random_intervals_with_empty_ones_evaluate_as_published():
    """Intervals drawn by the published code, the half of them that is empty included."""
    field, rays, fixture = published('nerf_noapp')
    edges = fixture['rnd_t_fine']
    samples = field.evaluate(rays, edges, feature_layer=3)
    weights = interval_weights(samples.density, edges)
    close(weights, fixture['rnd_weights_fine'])
    close(composite(weights, samples.feature), fixture['rnd_feat_fine'])
