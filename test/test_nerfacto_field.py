from dataclasses import replace

from nerfmatch_ros.config import from_dict, to_dict
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.nerfacto_field import (
    direction_encoding,
    HashNetworkConfig,
    NerfactoField,
    NerfactoFieldConfig,
    spherical_harmonics,
)
from nerfmatch_ros.radiance_field.nerfacto_grid import NerfactoGridConfig
from nerfmatch_ros.radiance_field.nerfstudio_mip_field import NerfstudioMipConfig
from nerfmatch_ros.radiance_field.renderer import render_rays
import pytest
import torch

SMALL = HashNetworkConfig(NerfactoGridConfig(3, 4, 16, 8), 8)
CONFIG = NerfactoFieldConfig(
    trunk=SMALL, proposals=(SMALL, SMALL), proposal_samples=(16, 12), samples=10,
    colour_width=8, appearance_channels=4)


def field_and_rays(generator, **changes):
    """Make a field with features that differ from place to place, and rays into it."""
    field = NerfactoField(replace(CONFIG, **changes), images=3).requires_grad_(False)
    for network in (field.trunk, *field.proposals):
        network.grid.table.copy_(torch.randn(network.grid.table.shape, generator=generator))
    ones = torch.ones(20)
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=1)
    origins = 0.5 * torch.randn(20, 3, generator=generator)
    return field.eval(), Rays(origins, directions, 1e-6 * ones, 100 * ones, 0 * ones)


def test_harmonics_are_orthonormal_on_the_sphere(generator):
    directions = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    values = spherical_harmonics(torch.nn.functional.normalize(directions, dim=1))
    products = 4 * torch.pi * values.T @ values / len(values)
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), atol=0.03, rtol=0)
    assert direction_encoding(directions[:5], 'torch').shape == (5, 16)


def test_intervals_follow_a_generator_and_repeat_without_one(generator):
    field, rays = field_and_rays(generator)
    first, again = field.propose(rays).edges, field.propose(rays).edges
    assert torch.equal(first, again) and first.shape == (20, 11)
    drawn = field.propose(rays, generator).edges
    assert not torch.equal(drawn, field.propose(rays, generator).edges)
    assert (drawn.diff(dim=1) >= 0).all() and (drawn > 0).all() and (drawn <= 101).all()


def test_each_photograph_has_its_appearance_and_a_new_one_the_mean(generator):
    field, rays = field_and_rays(generator)
    field.appearance.weight.copy_(torch.randn(3, 4, generator=generator))
    colours = [render_rays(field, replace(rays, image_index=index)).colour
               for index in (None, torch.zeros(20).long(), torch.ones(20).long())]
    assert all((one - other).abs().max() > 1e-3
               for one, other in zip(colours, [*colours[1:], colours[0]]))
    field.appearance.weight.copy_(field.appearance.weight.mean(dim=0).expand(3, -1))
    single = render_rays(field, replace(rays, image_index=torch.ones(20).long())).colour
    torch.testing.assert_close(single, colours[0])
    plain, _ = field_and_rays(generator, mean_appearance=False)
    plain.load_state_dict(field.state_dict())
    other = render_rays(plain, rays).colour
    plain.appearance.weight.zero_()
    torch.testing.assert_close(render_rays(plain, rays).colour, other)


def test_space_beyond_a_bounded_field_is_empty(generator):
    field, _ = field_and_rays(generator, contracted=False)
    ones = torch.ones(1)
    rays = Rays(torch.tensor([[0.0, 0, -3]]), torch.tensor([[0.0, 0, 1]]), 0 * ones, 6 * ones,
                0 * ones)
    edges = torch.linspace(0, 6, 13)[None]
    density = field.evaluate(rays, edges, colour=False).density[0]
    inside = (edges[0, :-1] >= 2) & (edges[0, 1:] <= 4)
    assert (density[inside] > 0).all() and (density[~inside] == 0).all()


def test_background_is_the_last_interval_white_or_black(generator):
    black, rays = field_and_rays(generator, background='black')
    black.trunk.layers[-1].bias[0] -= 4.0  # thin, so that rays pass through
    found = render_rays(black, rays)
    left = 1 - found.opacity[:, None]
    last = black.evaluate(rays, found.edges).colour[:, -1]
    assert left.max() > 0.05
    for background, behind in (('white', torch.ones(3)), ('last', last)):
        field = NerfactoField(replace(black.config, background=background), images=3).eval()
        field.load_state_dict(black.state_dict())
        seen = render_rays(field.requires_grad_(False), rays).colour
        torch.testing.assert_close(seen - found.colour, left * behind)


def test_configuration_survives_a_file():
    assert from_dict(NerfactoFieldConfig, to_dict(CONFIG)) == CONFIG


def test_nonsense_is_refused(generator):
    with pytest.raises(ConfigError, match='2 proposal networks look 1 times'):
        replace(CONFIG, proposal_samples=(16,))
    with pytest.raises(ConfigError, match='a look has 0 intervals'):
        replace(CONFIG, samples=0)
    with pytest.raises(ConfigError, match="spacing is 'log'"):
        replace(CONFIG, spacing='log')
    with pytest.raises(ConfigError, match='a trunk of one layer'):
        replace(CONFIG, trunk=replace(SMALL, layers=1))
    with pytest.raises(ConfigError, match='a network of 0 layers'):
        replace(SMALL, layers=0)
    with pytest.raises(ConfigError, match='coarse_samples is 0'):
        NerfstudioMipConfig(coarse_samples=0)
    with pytest.raises(ConfigError, match="background is 'red'"):
        NerfstudioMipConfig(background='red')
    field, rays = field_and_rays(generator)
    with pytest.raises(ConfigError, match='layer 2 does not exist.*1 to 1'):
        field.point_features(rays.origins, 2)
