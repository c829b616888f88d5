"""Making surface caches: what views agree on, with normals, in bounded memory, in the map."""

from dataclasses import replace
import shutil

from nerfmatch_ros.errors import ConfigError, MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping import build_surface_cache as module
from nerfmatch_ros.mapping.assemble_map import assemble_map
from nerfmatch_ros.mapping.build_surface_cache import (
    agreed_points,
    build_surface_cache,
    grid_normals,
    seen_through,
    spacing,
    surface_cache_of,
    SurfaceCacheOptions,
    thinned_views,
)
from nerfmatch_ros.mapping.reference_views import render_references
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.splatting import splat
from nerfmatch_ros.scene_map import SceneMap, store_surface_cache, SURFACE_CACHE
import numpy as np
import pytest
from sphere_scene import CAMERA, FRAME, pose_at, POSES, SphereField
from tiny_build import TINY, tiny_images
import torch

CAMERAS = [CAMERA] * len(POSES)


def depths_of(poses, field=None):
    views = [render_view(field or SphereField(), FRAME, CAMERA, torch.from_numpy(pose), stride=4)
             for pose in poses]
    return [view.depth.view(view.rows, view.columns) for view in views]


@pytest.fixture(scope='module')
def cache():
    done = []
    made = build_surface_cache(SphereField(), FRAME, CAMERAS, np.stack(POSES),
                               SurfaceCacheOptions(points=600), done.append)
    assert done == sorted(done) and done[-1] == 1.0
    return made


def test_the_points_lie_on_the_surface_with_their_colours_and_normals(cache):
    assert 300 < len(cache) <= 600 and cache.features is None
    radius = cache.points.norm(dim=-1)
    torch.testing.assert_close(radius, torch.full_like(radius, 2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(cache.colour / 255.0, (0.5 * cache.points + 2) / 4, atol=0.02,
                               rtol=0)
    inwards = -(cache.normals / 127.0 * cache.points / 2).sum(-1)
    assert inwards.median() > 0.99 and inwards.min() > 0.85


def test_neighbouring_points_are_about_a_voxel_apart(cache):
    assert 0.5 * cache.voxel < spacing(cache.points) < 2 * cache.voxel


def test_a_camera_between_the_views_sees_what_is_rendered_there():
    cache = build_surface_cache(SphereField(), FRAME, CAMERAS, np.stack(POSES))
    pose = torch.from_numpy(pose_at(0.02, 0.1, 0.05, 0.1, 0.1))
    view, rendered = splat(cache, CAMERA, pose), render_view(SphereField(), FRAME, CAMERA, pose)
    assert view.coverage > 0.95
    torch.testing.assert_close(view.depth, rendered.depth[view.cell], atol=0.1, rtol=0)


def test_memory_is_bounded_by_the_points_asked_for(monkeypatch):
    held = []
    joined = module._joined

    def watched(first, second):
        held.append(0 if first is None else len(first.points))
        return joined(first, second)

    monkeypatch.setattr(module, '_joined', watched)
    build_surface_cache(SphereField(), FRAME, CAMERAS * 4, np.stack(POSES * 4),
                        SurfaceCacheOptions(points=100))
    assert max(held) <= 2 * module.CANDIDATES * 100 < 20 * 320 / 2


def test_a_scene_without_surfaces_gives_an_empty_cache():
    made = build_surface_cache(SphereField(density=0.0), FRAME, CAMERAS, np.stack(POSES))
    assert len(made) == 0 and splat(made, CAMERA, torch.eye(4)).coverage == 0.0


@pytest.mark.parametrize('name', ['points', 'stride', 'least_views'])
def test_options_that_give_no_cache_are_refused(name):
    with pytest.raises(ConfigError, match=f'{name} .* is 0'):
        SurfaceCacheOptions(**{name: 0})


def test_points_that_too_few_views_see_are_not_agreed_on():
    depths, poses = depths_of(POSES), torch.from_numpy(np.stack(POSES))
    on = render_view(SphereField(), FRAME, CAMERA, poses[2], stride=4).points
    points = torch.cat((on, 0.6 * on, -on))  # seen; before the surface; behind every camera
    chosen = agreed_points(points, CAMERAS, poses, depths, 2)
    assert (chosen < len(on)).all() and len(chosen) > 0.95 * len(on)
    assert len(agreed_points(points, CAMERAS, poses, depths, 5)) < len(chosen)
    alone = agreed_points(points, CAMERAS[:1], poses[2:3], depths[2:3], 2)
    assert len(alone) == len(on)  # a single view has nobody to agree with


def test_points_that_more_views_look_through_than_see_hang_in_the_air():
    poses = [pose_at(0, 0, 0, 0.02 * k) for k in range(5)]
    # Two of the five views show a wall in the air, as a flawed field does.
    depths = [(0.7 if k in (1, 2) else 1.0) * depth for k, depth in enumerate(depths_of(poses))]
    poses = torch.from_numpy(np.stack(poses))
    on = render_view(SphereField(), FRAME, CAMERA, poses[2]).points.view(8, 10, 3)
    on = on[:, 1:-1].reshape(-1, 3)  # which all five see
    assert not seen_through(on, CAMERAS, poses, depths).any()
    assert seen_through(0.7 * on, CAMERAS, poses, depths).all()
    two = slice(1, 3)
    assert not seen_through(0.7 * on, CAMERAS[two], poses[two], depths[two]).any()


def test_normals_of_a_plane_are_exact_and_face_the_camera():
    camera, normal = Camera('PINHOLE', 64, 48, 60.0, 60.0, 31.5, 23.5), torch.tensor(
        [0.5, -0.3, -1.0], dtype=torch.float64)
    rays = camera.rays(camera.pixel_grid(4).double())
    points = rays * (2 * normal[2] / (rays @ normal))[:, None]
    normals = grid_normals(points.view(12, 16, 3), torch.zeros(3, dtype=torch.float64))
    expected = (normal / normal.norm()).expand(12, 16, 3)
    torch.testing.assert_close(normals, expected)


def test_normals_on_both_sides_of_an_edge_are_of_their_own_surface():
    x, y = torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing='xy')
    near = x < 8  # a board before a slanted wall
    points = torch.stack((0.1 * x, 0.1 * y, torch.where(near, 2.0, 6.0 + 0.1 * x)), dim=-1)
    normals = grid_normals(points, torch.tensor([0.8, 0.6, 0.0]))
    slanted = torch.tensor([1.0, 0.0, -1.0]) / 2 ** 0.5
    torch.testing.assert_close(normals[:, :7], torch.tensor([0.0, 0.0, -1.0]).expand(12, 7, 3))
    torch.testing.assert_close(normals[:, 9:], slanted.expand(12, 7, 3))


@pytest.mark.parametrize('shape', [(1, 1), (1, 5), (2, 2)])
def test_the_smallest_grids_have_normals_or_none(shape):
    points = torch.rand(*shape, 3, generator=torch.Generator().manual_seed(1))
    normals = grid_normals(points, torch.zeros(3))
    lengths = normals.norm(dim=-1)
    assert ((lengths < 1e-6) | ((lengths - 1).abs() < 1e-5)).all()


def test_views_are_thinned_with_their_own_features():
    field = SphereField()
    views = [render_view(field, FRAME, CAMERA, torch.from_numpy(pose), feature_layer=2)
             for pose in POSES]
    asked = []

    def view(k):
        asked.append(k)
        return views[k].points, views[k].features.half()

    made = thinned_views(view, len(views), 150)
    assert 75 < len(made) <= 150 and asked == [0, 1, 2, 3, 4] * 2
    assert torch.equal(made.features[:, :3], (0.5 * made.points).half())
    assert (made.normals == 0).all() and made.voxel > 0.1
    whole = thinned_views(view, len(views), 10 ** 6)
    assert len(whole) == sum(len(view.points) for view in views) and whole.voxel > 0
    assert thinned_views(lambda k: (views[k].points, None), 5, 150).features is None


def test_the_cache_of_a_finished_map_is_stored_and_read_again(tiny_map, tmp_path):
    folder = shutil.copytree(tiny_map, tmp_path / 'map')
    (folder / 'field.png').write_bytes(b'kept')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    scene_map = SceneMap.load(folder)
    assert scene_map.summary()['surface_cache_points'] == len(scene_map.surface_cache) > 300
    cache = surface_cache_of(scene_map, SurfaceCacheOptions(points=300))
    store_surface_cache(folder, cache)
    again = SceneMap.load(folder)
    assert 0 < len(again.surface_cache) <= 300 and again.sha256 != scene_map.sha256
    for name, value in cache.to_tensors().items():
        assert torch.equal(value, again.surface_cache.to_tensors()[name]), name
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {'map.yaml', SURFACE_CACHE} and set(after) == set(before)
    assert [path.name for path in tmp_path.iterdir()] == ['map']


def test_the_caches_of_a_build_and_of_its_map_are_the_same(tiny_map):
    # The map's weights are those of the build in half precision, so not to the last bit.
    scene_map = SceneMap.load(tiny_map)
    cache, built = surface_cache_of(scene_map), scene_map.surface_cache
    assert abs(len(cache) - len(built)) < 0.03 * len(built)
    camera = scene_map.working_view(scene_map.cameras[3]).camera
    views = [splat(one, camera, scene_map.reference_poses[3]) for one in (cache, built)]
    assert abs(views[0].coverage - views[1].coverage) < 0.05
    assert views[0].coverage > 0.5


def test_a_composited_field_takes_points_and_features_of_the_views(tiny_map):
    scene_map = SceneMap.load(tiny_map)
    scene_map.field.official = True
    cache = surface_cache_of(scene_map, SurfaceCacheOptions(points=200))
    assert cache.features.shape == (len(cache), scene_map.field.feature_channels)
    stored = torch.cat([scene_map.references.view(k)[0] for k in range(12)])
    assert set(map(tuple, cache.points.tolist())) < set(map(tuple, stored.tolist()))
    assert replace(scene_map, surface_cache=cache).summary()['surface_cache_points'] == len(cache)
    with pytest.raises(ConfigError, match='leave the images out'):
        surface_cache_of(scene_map, images=[])


def test_a_composited_field_without_features_in_its_views_gives_no_cache(tiny_map):
    scene_map = SceneMap.load(tiny_map)
    scene_map.field.official = True
    references = scene_map.references
    points = torch.zeros(int(references.starts[-1]), 3)
    nothing = {'points': points, 'features': None, 'file': None}
    for changes in (nothing, {'holds': 'tokens'}):
        with pytest.raises(MapError, match='hold no features'):
            surface_cache_of(replace(scene_map, references=replace(references, **changes)))


def test_a_map_of_few_views_is_looked_at_from_where_photographs_were_taken(tiny_map, room):
    scene_map = SceneMap.load(tiny_map)
    images = tiny_images(room)
    few = replace(scene_map, references=replace(
        scene_map.references, cameras=scene_map.cameras[:2],
        map_from_camera=scene_map.reference_poses[:2]))
    counts = [len(surface_cache_of(one, images=chosen).points) for one, chosen in (
        (few, None), (few, images), (scene_map, None))]
    assert counts[0] < counts[1] == counts[2]


def test_a_build_of_no_surface_cache_makes_none(tiny_map, room):
    with pytest.raises(ConfigError, match='surface_cache_points is -1'):
        replace(TINY, surface_cache_points=-1)
    scene_map = SceneMap.load(tiny_map)
    images = tiny_images(room, 4)
    references = render_references(scene_map.field, scene_map.frame, images, feature_layer=3,
                                   longest_side=TINY.longest_side)
    for points in (0, 50):
        progress = []
        made = assemble_map(images, references, scene_map.field, scene_map.matcher,
                            scene_map.frame, replace(TINY, surface_cache_points=points),
                            report=progress.append)
        assert progress == sorted(progress) and progress[-1] == 1.0
        assert (made.surface_cache is None) == (points == 0)
    assert len(made.surface_cache) <= 50
