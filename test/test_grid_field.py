"""The grid field: contraction, encodings, where it samples, what it evaluates."""

from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.grid_field import (
    contract,
    direction_encoding,
    GridField,
    GridFieldConfig,
    positional_encoding,
)
from nerfmatch_ros.radiance_field.volume_rendering import midpoints
import pytest
import torch
import torch.nn.functional as F

TINY = GridFieldConfig(levels=3, coarsest=4, finest=32, log2_entries=10, octaves=3, width=16,
                       depth=3, samples=12, guide_samples=48, guide_cells=32)


def tiny_field(generator, images=3):
    torch.manual_seed(0)
    field = GridField(TINY, images).eval()
    with torch.no_grad():
        field.hash_grid.table.copy_(
            0.5 * torch.randn(field.hash_grid.table.shape, generator=generator))
    return field


def some_rays(generator, count=40):
    directions = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    return Rays(0.2 * torch.randn(count, 3, generator=generator), directions,
                torch.full((count,), 0.05), torch.full((count,), 3.0), torch.full((count,), 1e-3))


def test_contraction_leaves_the_unit_box_alone(generator):
    points = 2 * torch.rand(200, 3, generator=generator) - 1
    torch.testing.assert_close(contract(points), points)


def test_contraction_maps_all_of_space_into_the_box_of_two(generator):
    points = torch.randn(500, 3, generator=generator) * torch.logspace(-2, 8, 500)[:, None]
    assert contract(points).abs().max() <= 2


def test_contraction_is_continuous_and_keeps_order_along_rays(generator):
    directions = F.normalize(torch.randn(50, 3, generator=generator), dim=-1)
    distance = torch.linspace(0.01, 30, 4000)
    moved = contract((directions[:, None] * distance[:, None]).reshape(-1, 3)).view(50, -1, 3)
    steps = moved.diff(dim=1).norm(dim=-1)
    assert steps.max() < 2.5 * 30 / 4000
    assert (moved.norm(dim=-1).diff(dim=1) > 0).all()


def test_positional_encoding_holds_point_sines_and_cosines():
    points = torch.tensor([[0.5, -1.0, 0.25]])
    encoded = positional_encoding(points, 2)[0]
    assert encoded.shape == (15,)
    torch.testing.assert_close(encoded[:3], points[0])
    angles = (points[0, :, None] * torch.tensor([1.0, 2.0]) * torch.pi / 2).flatten()
    torch.testing.assert_close(encoded[3:], torch.cat([angles.sin(), angles.cos()]))


def test_direction_encoding_is_orthogonal_over_the_sphere(generator):
    directions = F.normalize(torch.randn(200000, 3, generator=generator), dim=-1)
    encoded = direction_encoding(directions)
    products = encoded.T @ encoded / len(encoded)
    assert encoded.mean(0).abs().max() < 0.01
    assert (products - products.diag().diag()).abs().max() < 0.01


def test_proposed_edges_increase_from_near_to_far(generator):
    field, rays = tiny_field(generator), some_rays(generator)
    edges = field.propose(rays).edges
    assert edges.shape == (len(rays), TINY.samples + 1)
    assert (edges.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(edges[:, 0], rays.near)
    torch.testing.assert_close(edges[:, -1], rays.far)
    assert torch.equal(edges, field.propose(rays).edges)


def test_intervals_gather_at_the_surface_of_the_guide(generator):
    field = tiny_field(generator)
    centre = (torch.arange(TINY.guide_cells) + 0.5) * 4 / TINY.guide_cells - 2
    field.guide.view(*[TINY.guide_cells] * 3)[:] = torch.where(
        centre > 0.9, 100.0, 0.0)[:, None, None]  # a wall at x = 0.9
    directions = torch.tensor([[1.0, 0, 0]])
    edges = field.propose(Rays(torch.zeros(1, 3), directions, *torch.tensor(
        [[0.05], [3.0], [1e-3]]))).edges
    near_wall = ((midpoints(edges) - 0.9).abs() < 0.25).float().mean()
    assert near_wall > 0.5


def test_the_guide_follows_densities_that_were_evaluated(generator):
    field, rays = tiny_field(generator), some_rays(generator)
    edges = field.propose(rays).edges
    density = torch.full((len(rays), TINY.samples), 20.0)
    for _ in range(12):
        field.update_guide(*field.guide_entries(rays, edges, density), decay=0.05)
    points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
    touched = field.guide[field._guide_index(contract(points))]
    torch.testing.assert_close(touched, torch.full_like(touched, 20.0), rtol=0.01, atol=0)
    untouched = torch.ones_like(field.guide, dtype=torch.bool)
    untouched[field._guide_index(contract(points)).flatten()] = False
    assert (field.guide[untouched] == 0.5).all()


def test_refreshing_brings_the_guide_to_the_field(generator):
    field = tiny_field(generator)
    field.guide.fill_(1000.0)
    for _ in range(30):
        field.refresh_guide(60000, generator)
    assert field.guide.median() < 20


@pytest.mark.parametrize('layer', [1, 2, 3])
def test_features_of_a_thin_interval_are_those_of_its_point(generator, layer):
    field, rays = tiny_field(generator), some_rays(generator)
    edges = torch.linspace(0.05, 3, 9).expand(len(rays), -1)
    samples = field.evaluate(rays, edges, feature_layer=layer)
    points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
    torch.testing.assert_close(
        samples.feature.reshape(-1, TINY.width),
        field.point_features(points.reshape(-1, 3), layer), atol=1e-5, rtol=1e-4)


def test_without_an_image_the_mean_exposure_is_shown(generator):
    field, rays = tiny_field(generator), some_rays(generator)
    edges = field.propose(rays).edges
    with torch.no_grad():
        field.exposure[1, :3] = 0.4
        field.exposure[1, 3:] = 0.05
    plain = field.evaluate(rays, edges).colour
    assert plain.min() >= 0 and plain.max() <= 1
    index = torch.ones(len(rays), dtype=torch.int64)
    lit = field.evaluate(Rays(**{**vars(rays), 'image_index': index}), edges).colour
    torch.testing.assert_close(lit, plain * torch.e ** 0.4 + 0.05)
    same = field.evaluate(Rays(**{**vars(rays), 'image_index': 0 * index}), edges).colour
    torch.testing.assert_close(same, plain)


def test_every_parameter_of_the_network_is_trained(generator):
    field, rays = tiny_field(generator), some_rays(generator)
    rays = Rays(**{**vars(rays), 'image_index': torch.arange(len(rays)) % 3})
    samples = field.evaluate(rays, field.propose(rays).edges)
    (samples.colour.sum() + samples.density.sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
