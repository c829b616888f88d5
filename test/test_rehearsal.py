"""Views of a map as photographs: which ones, what they hold, what is masked and repainted."""

from dataclasses import replace

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.mapping.changes import Changes
from nerfmatch_ros.mapping.mixed_rays import MixedRays
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.rehearsal import (
    choose_views,
    colours_at,
    masked,
    RehearsalConfig,
    rehearse,
    repainted,
    still_pixels,
    unique_names,
    views_of,
)
from nerfmatch_ros.mapping.sparse_points import no_points
from nerfmatch_ros.mapping.training_pixels import PixelSize
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
import torch


@pytest.fixture(scope='module')
def scene_map(tiny_map):
    return SceneMap.load(tiny_map)


@pytest.fixture(scope='module')
def images(scene_map, tmp_path_factory):
    folder = tmp_path_factory.mktemp('rehearsed')
    return rehearse(scene_map, [0, 5], folder, ['a.jpg', 'b.jpg'])


def patch(generator, middle, count=400):
    return torch.tensor(middle) + 0.2 * torch.rand(count, 3, generator=generator)


def test_views_are_chosen_until_each_surface_is_shown_often_enough(generator):
    left, right, above = (patch(generator, middle) for middle in (
        (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    points = [left, torch.cat((left, right)), right, above, left]
    assert choose_views(points, 1) == [1, 3]
    assert set(choose_views(points, 2)) >= {1, 3} and len(choose_views(points, 2)) == 4
    assert choose_views(points, 9) == [0, 1, 2, 3, 4]  # no more than there are


def test_the_number_of_views_can_be_given(scene_map):
    count = len(scene_map.reference_names)
    assert views_of(scene_map, RehearsalConfig(views=2)) == [0, count - 1]
    assert views_of(scene_map, RehearsalConfig(views=99)) == list(range(count))


def test_a_rehearsed_view_is_what_the_field_shows(scene_map, images):
    image = images[1]
    assert image.name == 'b.jpg' and image.camera.is_pinhole
    np.testing.assert_allclose(image.map_from_camera, scene_map.reference_poses[5])
    view = render_view(scene_map.field, scene_map.frame, image.camera,
                       torch.from_numpy(image.map_from_camera), stride=1, colour=True)
    shown = view.colour.reshape(*image.rgb().shape).numpy() * 255
    assert np.abs(image.rgb() - shown).max() <= 1
    depth, solid = image.depth_map().reshape(-1), view.solid().numpy()
    assert solid.any() and (depth[~solid] == 0).all()
    np.testing.assert_allclose(depth[solid], view.depth.numpy()[solid], rtol=2e-3)


def test_views_that_were_rendered_are_not_rendered_again(scene_map, images, monkeypatch):
    monkeypatch.setattr('nerfmatch_ros.mapping.rehearsal.render_view', None)
    again = rehearse(scene_map, [0, 5], images[0].path.parent, ['a.jpg', 'b.jpg'])
    assert [image.path for image in again] == [image.path for image in images]


@pytest.fixture
def changes(scene_map, images):
    """Contradicted is what the right half of the first picture shows."""
    image, frame = images[0], scene_map.frame
    pixels = torch.tensor([(x, y) for x in range(60, 90, 2) for y in range(10, 60, 2)])
    rays = image.camera.rays(pixels.double()).float()
    depth = torch.from_numpy(image.depth_map())[pixels[:, 1], pixels[:, 0]]
    known = depth > 0
    assert known.any()
    points = (rays * (depth / rays[:, 2])[:, None])[known] @ torch.from_numpy(
        image.map_from_camera[:3, :3]).float().T + torch.from_numpy(
        image.map_from_camera[:3, 3]).float()
    cells = np.zeros((32, 32, 32), bool)
    index = ((frame.to_scene(points) + 1) * 16).floor().long().clamp(0, 31).numpy()
    cells[tuple(index.T)] = True
    return Changes(cells, frame)


def test_what_changed_is_masked_and_painted_anew(scene_map, images, changes, tmp_path):
    each = still_pixels(images[0], changes)
    assert 0 < each.left < 1
    assert each.still[:, :48].mean() > each.still[:, 60:90].mean()
    image = masked(each, tmp_path / 'mask.png')
    np.testing.assert_array_equal(image.valid_mask(), each.still)
    rays = RayDataset([image], scene_map.frame, no_points(), how=PixelSize(999))
    assert (rays.usable.reshape(each.still.shape).numpy() > 0).tolist() == each.still.tolist()

    darker = SceneMap.load(scene_map.references.file.parent).field
    darker.colour_head[-1].bias.data -= 3  # another field than the one that was rehearsed
    new = repainted(each, darker, scene_map.frame, tmp_path / 'new.png')
    old = images[0].rgb().astype(int)
    assert (new.rgb() == old)[each.still].all()
    gone = ~each.still
    np.testing.assert_array_equal(new.rgb()[gone], colours_at(
        darker, scene_map.frame, new.camera, new.map_from_camera, gone))
    assert new.rgb()[gone].mean() < old[gone].mean() - 20


def test_without_changes_views_stay_as_they_are(images, tmp_path):
    each = still_pixels(images[0], None)
    assert each.left == 1.0
    assert masked(each, tmp_path / 'mask.png') is images[0]
    assert repainted(each, None, None, tmp_path / 'new.png') is images[0]
    assert list(tmp_path.iterdir()) == []


def test_fields_that_were_imported_are_refused(scene_map):
    other = replace(scene_map, field_config=replace(scene_map.field_config, kind='nerfacto'))
    with pytest.raises(MapError, match="kind 'nerfacto' .* build the map anew"):
        rehearse(other, [], None, [])


def test_names_are_unique():
    assert unique_names(['a.jpg', 'b', 'a.jpg', 'd/c.png'], ['b', 'a.jpg', 'a~2.jpg']) == [
        'a~3.jpg', 'b~2', 'a~4.jpg', 'd/c.png']


def test_rays_of_two_sets_come_in_fixed_shares_with_rows_of_their_own(scene_map, images):
    def dataset(chosen, brightness):
        flat = [replace(image, path=None, pixels=np.full_like(image.rgb(), brightness))
                for image in chosen]
        return RayDataset(flat, scene_map.frame, no_points(), how=PixelSize(999))

    mixed = MixedRays(dataset(images, 50), dataset(images[:1], 200), 0.25)
    batch = mixed.draw(400, 0, torch.Generator().manual_seed(0))
    bright = batch.colour[:, 0] > 0.5
    assert bright.sum() == 300 and len(batch.rays) == 400
    assert (batch.rays.image_index[bright] == 2).all()
    assert set(batch.rays.image_index[~bright].tolist()) == {0, 1}
    again = mixed.draw(400, 0, torch.Generator().manual_seed(0))
    assert torch.equal(again.rays.directions, batch.rays.directions)
