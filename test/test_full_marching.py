"""Marching every ray through the whole field, against counts and a scene in closed form."""

from analytic_field import distance_to_sphere, SphereField
from nerfmatch_ros.evaluation.full_marching import FullMarching
from nerfmatch_ros.radiance_field.mip_field import MipField, MipFieldConfig
from nerfmatch_ros.radiance_field.renderer import render_view
import pytest
from sphere_scene import CAMERA, FRAME, pose_at
import torch

POSE = torch.from_numpy(pose_at(0.2, -0.1, 0.3, 0.3, 0.1))


class Watched(SphereField):
    """Notes what it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def propose(self, rays, generator=None):
        raise AssertionError('the shortcuts of the field are not for full marching')

    def evaluate(self, rays, edges, *, colour=True, feature_layer=None, generator=None):
        self.asked.append((len(rays), edges.shape[1] - 1, colour))
        return super().evaluate(rays, edges.expand(len(rays), -1), colour=colour,
                                feature_layer=feature_layer, generator=generator)


def test_every_ray_has_128_and_128_samples_through_the_whole_field():
    field = Watched()
    render_view(FullMarching(field), FRAME, CAMERA, POSE, stride=8, colour=False, chunk=50)
    rays = (CAMERA.width // 8) * (CAMERA.height // 8)
    assert all(colour and samples == 128 for _, samples, colour in field.asked)
    assert sum(count * samples for count, samples, _ in field.asked) == rays * 256


def test_it_sees_the_same_surface():
    rendered = render_view(FullMarching(SphereField()), FRAME, CAMERA, POSE, stride=8,
                           feature_layer=2)
    origin = POSE[:3, 3].float().expand(len(rendered.points), -1)
    directions = torch.nn.functional.normalize(rendered.points - origin, dim=-1)
    true = distance_to_sphere(origin, directions, SphereField().radius * 2)
    assert (rendered.opacity > 0.99).all()
    distance = (rendered.points - origin).norm(dim=-1)
    assert (distance - true).abs().max() < 0.02
    torch.testing.assert_close(rendered.features[:, :3], FRAME.to_scene(rendered.points))


@pytest.mark.parametrize('official', [False, True])
def test_a_published_field_is_sampled_by_both_of_its_networks(monkeypatch, generator, official):
    torch.manual_seed(0)
    field = MipField(MipFieldConfig(
        width=16, depth=4, skip=1, position_octaves=4, direction_octaves=2, coarse_samples=12,
        fine_samples=20, official=official, random_rendering=official)).eval()
    looked, look = [], MipField._look
    monkeypatch.setattr(MipField, '_look', lambda self, network, rays, edges, **options: (
        looked.append((network is field.coarse, edges.shape[1] - 1, options['colour'])),
        look(self, network, rays, edges, **options))[1])
    full = render_view(FullMarching(field), FRAME, CAMERA, POSE, stride=16, feature_layer=2)
    assert looked == [(True, 12, True), (False, 20, True)]
    # What it computes in vain changes nothing.
    usual = render_view(field, FRAME, CAMERA, POSE, stride=16, feature_layer=2)
    torch.testing.assert_close(full.points, usual.points)
    torch.testing.assert_close(full.features, usual.features)
