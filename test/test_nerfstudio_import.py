"""Fields imported from nerfstudio render what nerfstudio's own code rendered.

The fixture is written by tools/make_nerfstudio_fixture.py where nerfstudio is installed.
"""

from dataclasses import replace
import json
from pathlib import Path
import shutil
import zlib

import cv2
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.field_file import FieldFile
from nerfmatch_ros.importers.nerfstudio import import_field, read_field, scene_from_data
from nerfmatch_ros.importers.nerfstudio_run import read_run, read_tagged_yaml
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.renderer import render_rays
import numpy as np
import pytest
import torch

FIXTURE = Path(__file__).with_name('data') / 'nerfstudio'


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Read the cameras of the data set the models were made for; its pictures are black."""
    folder = tmp_path_factory.mktemp('photographs')
    shutil.copy(FIXTURE / 'transforms.json', folder)
    content = json.loads((folder / 'transforms.json').read_text())
    (folder / 'images').mkdir()
    for frame in content['frames']:
        cv2.imwrite(str(folder / frame['file_path']),
                    np.zeros((content['h'], content['w'], 3), np.uint8))
    return read_posed_images(folder, None)


def seeded_weights(shapes):
    """Repeat what the fixture's tool draws for a model without a checkpoint."""
    weights = {}
    for name, shape in shapes.items():
        name = name.removeprefix('_model.')
        draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        size = -4 if 'density' in name else 1
        if name.endswith('density.net.bias'):
            draw = np.full(shape, 7.5 / 4 / np.sqrt(2))
        weights[f'_model.{name}'] = (
            size * draw / np.sqrt(max(np.prod(shape[1:]), 1) / 2)).astype(np.float32)
    return weights


def rendered_by_nerfstudio(name):
    with np.load(FIXTURE / name / 'rendered.npz') as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def rays_of(expected, far):
    """Make the rays that nerfstudio cast, in the scene frame; it renders from distance 0."""
    ones = torch.ones(len(expected['origins']))
    return Rays(expected['origins'], expected['directions'], 0 * ones, far * ones, 0 * ones)


def median_as_nerfstudio_gives_it(rendered):
    """Middle of the interval in which half of the light is absorbed, else of the last one."""
    passed = (torch.cumsum(rendered.weights, dim=-1) < 0.5).sum(dim=-1, keepdim=True)
    middles = 0.5 * (rendered.edges[:, 1:] + rendered.edges[:, :-1])
    return middles.gather(1, passed.clamp(max=middles.shape[1] - 1))


@pytest.mark.parametrize('name', ['nerfacto', 'bounded'])
def test_depth_and_colour_are_those_of_nerfstudio(name):
    expected = rendered_by_nerfstudio(name)
    imported = read_field(read_run(FIXTURE / name / 'config.yml'), FIXTURE)
    rendered = render_rays(imported.field, rays_of(expected, imported.frame.far))
    assert expected['opacity'].std() > 0.02 and expected['median'].std() > 0.1
    torch.testing.assert_close(rendered.edges, expected['edges'], rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(rendered.colour, expected['colour'], rtol=0, atol=1e-4)
    torch.testing.assert_close(rendered.opacity[:, None], expected['opacity'], rtol=0, atol=1e-4)
    torch.testing.assert_close(rendered.mean_distance[:, None], expected['mean'],
                               rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(median_as_nerfstudio_gives_it(rendered), expected['median'],
                               rtol=2e-4, atol=1e-5)
    # Ours is interpolated within the same interval.
    width = (expected['edges'][:, 1:] - expected['edges'][:, :-1]).amax(dim=-1)
    half = rendered.opacity > 0.99
    assert half.any()
    assert ((rendered.median_distance - expected['median'][:, 0]).abs() <= width)[half].all()


@pytest.fixture(scope='module')
def mip_run(tmp_path_factory):
    """Give the mip-NeRF's run, with the weights that the fixture's were drawn like."""
    folder = tmp_path_factory.mktemp('runs') / 'mipnerf'
    shutil.copytree(FIXTURE / 'mipnerf', folder)
    weights = seeded_weights(json.loads((folder / 'shapes.json').read_text()))
    (folder / 'nerfstudio_models').mkdir()
    torch.save({'step': 7, 'pipeline': {
        name: torch.from_numpy(value) for name, value in weights.items()}},
        folder / 'nerfstudio_models' / 'step-000000007.ckpt')
    return read_run(folder / 'config.yml')


def test_mip_nerf_renders_what_nerfstudio_renders(mip_run):
    expected = rendered_by_nerfstudio('mipnerf')
    imported = read_field(mip_run, FIXTURE)
    # A ray of ours is as wide at distance 1 as 1 / sqrt(3) of its pixel.
    rays = replace(rays_of(expected, imported.frame.far),
                   radius=(expected['pixel_area'] / 3).sqrt())
    rendered = render_rays(imported.field, rays)
    assert imported.frame.far == 6 and expected['median'].std() > 0.05
    torch.testing.assert_close(rendered.edges, expected['edges'], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rendered.colour, expected['colour'], rtol=0, atol=5e-5)
    torch.testing.assert_close(rendered.opacity[:, None], expected['opacity'], rtol=0, atol=5e-5)
    torch.testing.assert_close(median_as_nerfstudio_gives_it(rendered), expected['median'],
                               rtol=1e-4, atol=1e-5)


def test_features_of_the_mip_nerf_are_those_of_thin_intervals(mip_run):
    field = read_field(mip_run, FIXTURE).field
    expected = rendered_by_nerfstudio('mipnerf')
    rays = replace(rays_of(expected, 6.0), radius=expected['pixel_area'] * 0 + 3e-4)
    edges = torch.tensor([[1.0, 1.0001]]).expand(len(rays), -1)
    thin = field.evaluate(rays, edges, colour=False, feature_layer=3).feature[:, 0]
    points = rays.origins + 1.00005 * rays.directions
    features = field.point_features(points, 3)
    assert features.shape == (len(points), 256)
    closeness = torch.cosine_similarity(thin, features, dim=1)
    assert closeness.min() > 0.95
    others = torch.cosine_similarity(thin, features.roll(1, dims=0), dim=1)
    assert closeness.median() > others.median()


@pytest.mark.parametrize('name', ['nerfacto', 'bounded'])
def test_features_are_the_hidden_layer_of_the_trunk(name):
    expected = rendered_by_nerfstudio(name)
    imported = read_field(read_run(FIXTURE / name / 'config.yml'), FIXTURE)
    features = imported.field.point_features(expected['points'], 1)
    torch.testing.assert_close(features, expected['features'], rtol=1e-4, atol=1e-4)


def test_rays_of_the_photographs_are_those_of_nerfstudio(photographs):
    expected = rendered_by_nerfstudio('nerfacto')
    frame = read_field(read_run(FIXTURE / 'nerfacto' / 'config.yml'), FIXTURE).frame
    # nerfstudio sorts the photographs by name and keeps every tenth for evaluation.
    kept = photographs[:7] if expected['camera'].max() == 6 else photographs
    assert len(kept) == expected['camera'].max() + 1
    for index, image in enumerate(kept):
        chosen = expected['camera'] == index
        directions = image.camera.rays(expected['pixel'][chosen].double())
        rays = frame.rays(torch.from_numpy(image.map_from_camera), directions, 0.01)
        torch.testing.assert_close(rays.origins.float(), expected['origins'][chosen],
                                   rtol=0, atol=1e-5)
        torch.testing.assert_close(rays.directions.float(), expected['directions'][chosen],
                                   rtol=0, atol=1e-4)


def test_saved_field_renders_the_same(tmp_path):
    expected = rendered_by_nerfstudio('nerfacto')
    source = import_field(FIXTURE / 'nerfacto' / 'config.yml', tmp_path / 'field', data=FIXTURE)
    assert source['model'] == 'nerfacto' and source['step'] == 9 and source['images'] == 8
    # The fixture's camera optimizer moved every pose by 0.05 scene units and 0.1 radians.
    assert source['poses_moved_m'] == pytest.approx(0.05 / source['scene_units_per_metre'])
    assert source['poses_moved_deg'] == pytest.approx(np.degrees(0.1))
    loaded = FieldFile.load(tmp_path / 'field')
    made = read_field(read_run(FIXTURE / 'nerfacto' / 'config.yml'), FIXTURE)
    assert loaded.config == made.config and loaded.source == source
    assert loaded.frame.scene_from_map.to_dict() == made.frame.scene_from_map.to_dict()
    rays = rays_of(expected, loaded.frame.far)
    assert torch.equal(
        render_rays(loaded.field, rays).colour, render_rays(made.field, rays).colour)


def run_folder(tmp_path, name='nerfacto', **changes):
    """Copy a run, with texts of its config.yml replaced."""
    folder = tmp_path / name
    shutil.copytree(FIXTURE / name, folder)
    config = folder / 'config.yml'
    text = config.read_text()
    for old, new in changes.items():
        assert f'{old}: ' in text
        text = '\n'.join(f'{line.partition(old)[0]}{old}: {new}' if line.strip().startswith(
            f'{old}: ') else line for line in text.splitlines())
    config.write_text(text)
    return folder


class Malice:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_model_that_did_without_tiny_cuda_nn_is_known_by_its_weights(tmp_path):
    folder = run_folder(tmp_path, implementation='tcnn')
    imported = read_field(read_run(folder / 'config.yml'), FIXTURE)
    assert imported.config.nerfacto.layout == 'torch'
    assert imported.mark() == read_field(
        read_run(FIXTURE / 'nerfacto' / 'config.yml'), FIXTURE).mark()


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    folder, mark = run_folder(tmp_path), tmp_path / 'mark'
    torch.save({'pipeline': {}, 'step': Malice(mark)}, folder / 'bad.ckpt')
    with pytest.raises(DataError, match='bad.ckpt was refused.*asks to run code'):
        read_run(folder / 'config.yml', folder / 'bad.ckpt')
    assert not mark.exists()


def test_configuration_makes_no_object(tmp_path):
    mark, file = tmp_path / 'mark', tmp_path / 'config.yml'
    file.write_text(f'a: !!python/object/apply:os.mkdir [{mark}]\n'
                    'b: !!python/object:some.Class {c: !!python/name:some.Other "", d: 1}\n'
                    'e: !!python/object/new:some.Class [1, [2]]\nf: !!python/tuple [1, 2]\n')
    assert read_tagged_yaml(file) == {
        'a': [str(mark)], 'b': {'c': 'some.Other', 'd': 1}, 'e': [1, [2]], 'f': [1, 2]}
    assert not mark.exists()


def test_other_models_and_options_are_refused(tmp_path):
    folder = run_folder(tmp_path / 'a', background_color='mauve')
    with pytest.raises(DataError, match="background_color is 'mauve'"):
        read_field(read_run(folder / 'config.yml'), FIXTURE)
    folder = run_folder(tmp_path / 'b', num_levels='many')
    with pytest.raises(DataError, match="num_levels of the model is 'many'"):
        read_field(read_run(folder / 'config.yml'), FIXTURE)
    folder = run_folder(tmp_path / 'c', hidden_dim='16')
    with pytest.raises(DataError, match='does not fit to'):
        read_field(read_run(folder / 'config.yml'), FIXTURE)
    folder = run_folder(tmp_path / 'd', proposal_initial_sampler='log')
    with pytest.raises(DataError, match="spacing is 'log'"):
        read_field(read_run(folder / 'config.yml'), FIXTURE)
    folder = run_folder(tmp_path / 'e')
    config = folder / 'config.yml'
    config.write_text(config.read_text().replace('NerfactoModel ', 'SplatfactoModel '))
    with pytest.raises(DataError, match='the model is .*SplatfactoModel; only NerfactoModel'):
        read_field(read_run(config), FIXTURE)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match='cannot read .*none.yml'):
        read_run(tmp_path / 'none.yml')
    (tmp_path / 'plain.yml').write_text('a: 1\n')
    with pytest.raises(DataError, match="has no 'pipeline'"):
        read_run(tmp_path / 'plain.yml')
    folder = run_folder(tmp_path)
    with pytest.raises(DataError, match='not at data; name its folder with --data'):
        read_field(read_run(folder / 'config.yml'))
    (folder / 'dataparser_transforms.json').unlink()
    with pytest.raises(DataError, match='the frame of the model is unknown'):
        read_run(folder / 'config.yml')
    shutil.rmtree(folder / 'nerfstudio_models')
    with pytest.raises(DataError, match=r'holds no step-\*.ckpt'):
        read_run(folder / 'config.yml')
    with pytest.raises(DataError, match='no.ckpt does not exist'):
        read_run(folder / 'config.yml', folder / 'no.ckpt')


def test_data_is_found_where_the_model_was_trained(tmp_path):
    folder = run_folder(tmp_path / 'outputs')
    (tmp_path / 'data').mkdir()
    shutil.copy(FIXTURE / 'transforms.json', tmp_path / 'data')
    found, named = (scene_from_data(read_run(folder / 'config.yml'), data)
                    for data in (None, FIXTURE))
    assert found.to_dict() == named.to_dict()


def test_scaled_data_are_undone(tmp_path):
    run = read_run(FIXTURE / 'nerfacto' / 'config.yml')
    content = json.loads((FIXTURE / 'transforms.json').read_text())
    (tmp_path / 'transforms.json').write_text(json.dumps({**content, 'applied_scale': 4.0}))
    plain, scaled = scene_from_data(run, FIXTURE), scene_from_data(run, tmp_path)
    assert scaled.scale == pytest.approx(plain.scale / 4)
    np.testing.assert_allclose(scaled.translation, plain.translation / 4)
    # A COLMAP model is read as it lies there.
    run.config['pipeline']['datamanager']['dataparser']['_target'] = 'some.ColmapDataParser'
    colmap = scene_from_data(run)
    assert colmap.scale == pytest.approx(run.scale)
    np.testing.assert_allclose(colmap.apply(np.eye(3)), run.scale * (
        run.transform[:3, :3] @ np.eye(3) + run.transform[:3, 3:]).T, atol=1e-6)
    run.config['pipeline']['datamanager']['dataparser']['_target'] = 'some.Blender'
    with pytest.raises(DataError, match='read by some.Blender, whose frame is not known'):
        scene_from_data(run, FIXTURE)
    run.config['pipeline']['datamanager']['dataparser']['_target'] = 'some.Nerfstudio'
    (tmp_path / 'transforms.json').write_text(json.dumps({'applied_transform': [[0] * 4] * 3}))
    with pytest.raises(DataError, match='cannot be undone'):
        scene_from_data(run, tmp_path)


def test_field_folder_is_checked(tmp_path):
    folder = tmp_path / 'field'
    with pytest.raises(DataError, match='holds no field.yaml'):
        FieldFile.load(folder)
    import_field(FIXTURE / 'bounded' / 'config.yml', folder, data=FIXTURE)
    import_field(FIXTURE / 'nerfacto' / 'config.yml', folder, data=FIXTURE)
    assert FieldFile.load(folder).config.nerfacto.contracted
    weights = folder / 'field.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'x')
    with pytest.raises(DataError, match='field.safetensors is damaged'):
        FieldFile.load(folder)
    (folder / 'field.yaml').write_text('format: other\n')
    with pytest.raises(DataError, match='does not describe a field'):
        FieldFile.load(folder)
    (folder / 'field.yaml').unlink()
    with pytest.raises(DataError, match='is not empty and holds no field'):
        import_field(FIXTURE / 'nerfacto' / 'config.yml', folder, data=FIXTURE)


def test_gradient_reaches_the_rays():
    expected = rendered_by_nerfstudio('nerfacto')
    expected = {key: value.double() for key, value in expected.items()}
    field = read_field(read_run(FIXTURE / 'nerfacto' / 'config.yml'), FIXTURE).field.double()
    rays = rays_of(expected, 1000.0)
    edges = field.propose(rays).edges
    shift, step = torch.zeros((), dtype=torch.float64, requires_grad=True), 1e-7
    turn = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)

    def seen(shift):
        moved = replace(rays, origins=rays.origins + shift * turn)
        samples = field.evaluate(moved, edges)
        return samples.colour.mean(dim=(1, 2)) + samples.density.log().mean(dim=1)

    slopes = torch.stack([torch.autograd.grad(value, shift, retain_graph=True)[0]
                          for value in seen(shift)])
    differences = (seen(shift + step) - seen(shift - step)).detach() / (2 * step)
    # Where a sample passes from one cell of a grid to the next, the slope jumps.
    agree = torch.isclose(slopes, differences, rtol=1e-4, atol=1e-4)
    assert slopes.abs().median() > 0.1 and agree.double().mean() > 0.95
