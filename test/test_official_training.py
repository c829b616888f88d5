"""The paper's loss of a field and its gradients against those of the published code."""

from nerfmatch_ros.mapping.field_loss import (
    FieldLoss,
    FieldTrainingConfig,
    paper_loss,
    RayPiece,
)
from nerfmatch_ros.mapping.ray_dataset import RayBatch
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.mip_field import MipField, MipFieldConfig
from nerfmatch_ros.radiance_field.renderer import render_rays, RenderedRays
from nerfmatch_ros.radiance_field.volume_rendering import disparity_positions, distortion
from official_parity import Fixture, needs_fixtures, official_weights, part
import pytest
from test_mip_field import NETWORK_NAMES
import torch
from torch.nn.functional import mse_loss

PASSES = {'nerf_coarse.': 'coarse.', 'nerf_fine.': 'fine.'}


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **{'rtol': 1e-4, 'atol': 1e-6, **tolerance})


def our_name(name):
    for official, ours in {**PASSES, **NETWORK_NAMES, 'embedding_a.': 'appearance.'}.items():
        name = name.replace(official, ours)
    return name


@pytest.fixture(scope='module')
def step():
    """A training step of the published code, and the field and rays it was of."""
    weights, fixture = official_weights('nerf_app'), Fixture('nerf_train')
    appearance = weights['model.embedding_a.weight']
    field = MipField(MipFieldConfig(white_background=True,
                                    appearance_channels=appearance.shape[1]), len(appearance))
    for official, ours in PASSES.items():
        getattr(field, ours[:-1]).load_state_dict(
            part(weights, f'model.{official}', NETWORK_NAMES))
    field.appearance.load_state_dict({'weight': appearance})
    r = fixture['rays']
    rays = Rays(r[:, :3], r[:, 3:6], r[:, 6], r[:, 7], r[:, 11], fixture['ts'])
    return field.train(), rays, fixture


@needs_fixtures
def test_the_loss_is_that_of_the_published_code():
    """From the colours, weights and distances that the published code found."""
    fixture = Fixture('nerf_train')
    # The published code moves the distances by 1e-6 when it first uses them.
    edges, weights = fixture['t_fine'] - 1e-6, fixture['weights_fine']
    near, far = edges.min().item(), edges.max().item()
    # Next to the near end positions are differences of numbers a hundred times as large.
    close(disparity_positions(edges, near, far), fixture['s_fine'], atol=2e-7 / near)
    close(distortion(weights, fixture['s_fine']), fixture['distortion'])
    close(distortion(weights, disparity_positions(edges, near, far)), fixture['distortion'])
    colour = fixture['rgb_gt']
    rendered = RenderedRays(weights, edges, weights.sum(-1), fixture['rgb_fine'], None, weights,
                            fixture['rgb_coarse'])
    close(paper_loss(rendered, colour, near, far, 0.01), fixture['metric_loss'])
    for name in ('coarse', 'fine'):
        error = 0.5 * mse_loss(fixture[f'rgb_{name}'], colour)
        close(error, fixture[f'metric_rgb_{name}_mse'])
        close(-10 * error.log10(), fixture[f'metric_rgb_{name}_psnr'])


@needs_fixtures
def test_rendering_and_gradients_of_a_step_are_those_of_the_published_code(step):
    field, rays, fixture = step
    colour = fixture['rgb_gt']
    with torch.no_grad():
        rendered = render_rays(field, rays)
    if (rendered.proposal_colour - fixture['rgb_coarse']).abs().max() > 0.01:
        pytest.skip('this step was made with other weights than those of the checkpoints')
    close(rendered.proposal_colour, fixture['rgb_coarse'])
    close(rendered.colour, fixture['rgb_fine'])
    close(rendered.weights, fixture['weights_fine'])
    close(rendered.edges + 1e-6, fixture['t_fine'])
    config = FieldTrainingConfig(loss='paper', bfloat16=False)
    unknown = torch.zeros(len(colour))
    edges = fixture['t_fine'] - 1e-6
    piece = RayPiece(RayBatch(rays, colour, unknown, unknown + 1), None,
                     near=edges.min().item(), far=edges.max().item())
    field.zero_grad()
    loss, _ = FieldLoss(field, config)(piece)
    close(loss, fixture['metric_loss'])
    loss.backward()
    names = [name[len('gradnorm/'):] for name in fixture.names if name.startswith('gradnorm/')]
    gradients = {name: p.grad for name, p in field.named_parameters()}
    assert {our_name(name) for name in names} == gradients.keys()
    for name in names:
        gradient, head = gradients[our_name(name)], fixture[f'gradhead/{name}']
        norm = fixture[f'gradnorm/{name}']
        close(gradient.norm(), norm, rtol=1e-3)
        close(gradient.flatten()[:len(head)], head, rtol=1e-3, atol=1e-3 * norm.item())
