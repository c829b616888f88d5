"""Building maps end to end: stages, interruption, other options, unfit input, both fields."""

from dataclasses import replace

from nerfmatch_ros.config import from_dict, to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping import build_map as build_module
from nerfmatch_ros.mapping import train_field, train_matcher
from nerfmatch_ros.mapping.build_folder import describe_image
from nerfmatch_ros.mapping.build_map import build_map, BuildConfig
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig
from nerfmatch_ros.radiance_field import renderer
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
from tiny_build import CAMERA, TINY, tiny_images, TINY_MIP
import torch


class Killed(BaseException):
    """Ends a build from within, as a kill would: nothing may catch it."""


@pytest.fixture(scope='module')
def images(room):
    return tiny_images(room)


def parameters(scene_map):
    return {**scene_map.field.state_dict(), **scene_map.matcher.state_dict()}


def test_a_map_holds_what_localization_needs(tiny_map, images):
    scene_map = SceneMap.load(tiny_map)
    assert scene_map.reference_names == [image.name for image in images]
    np.testing.assert_allclose(scene_map.reference_poses,
                               np.stack([image.map_from_camera for image in images]))
    assert scene_map.cameras == [CAMERA] * len(images)
    assert len(scene_map.surface.points) > 50 and len(scene_map.words) == TINY.words
    summary = scene_map.summary()
    assert summary['images'] == len(images) and len(summary['held_out']) == 1
    assert summary['held_out_psnr_db'] > 8
    assert not tiny_map.with_name(tiny_map.name + '.build').exists()
    inside = (np.abs(scene_map.surface.points.numpy() - [0, 0, 1.25]) < [3.3, 2.3, 1.5]).all(1)
    assert inside.mean() > 0.5  # of a room of 6 x 4 x 2.5 metres


def test_a_map_is_rendered_in_the_light_of_its_photographs(tiny_map, images):
    localizer = Localizer.load(tiny_map)
    small = CAMERA.scaled_to(40, 30)
    picture = localizer.render(small, images[0].map_from_camera)
    assert picture.shape == (30, 40, 3) and picture.dtype == np.uint8
    # After a second of training only the light of the room is right.
    assert np.abs(picture.mean((0, 1)) - images[0].rgb().mean((0, 1))).max() < 50


def assert_answered(estimate):
    """A barely trained map gives either a whole pose or a reason, never half of both."""
    if estimate.map_from_camera is None:
        assert estimate.reason and estimate.covariance is None
    else:
        assert not estimate.reason and estimate.inliers <= estimate.matches
        assert np.isfinite(estimate.map_from_camera).all()
        assert np.linalg.eigvalsh(estimate.covariance).min() > 0


# Where the build is ended: the function that raises, and how often it is passed before.
STOPS = {
    'field': (train_field, 'save_checkpoint', 2),
    'after field': (build_module, 'compare_with_photographs', 0),
    'references': (build_module, 'open_references', 0),
    'matcher': (train_matcher, 'save_checkpoint', 1),
    'assembly': (build_module, 'assemble_map', 0),
    'saving': (SceneMap, 'save', 0),
}


@pytest.mark.parametrize('stop', STOPS)
def test_a_killed_build_goes_on_and_ends_like_a_whole_one(
        stop, tmp_path, images, monkeypatch):
    config = replace(
        TINY, field_training=replace(TINY.field_training, steps=8, rays=128),
        matcher_training=replace(TINY.matcher_training, steps=3))
    monkeypatch.setattr(renderer, 'OPAQUE', -1.0)  # nothing is opaque after 8 steps
    monkeypatch.setattr(train_field, 'CHECKPOINT_STEPS', 3)
    monkeypatch.setattr(train_matcher, 'CHECKPOINT_STEPS', 2)
    module, name, passed = STOPS[stop]
    original, calls = getattr(module, name), []

    def stopping(*args, **options):
        result = original(*args, **options) if len(calls) < passed else None
        calls.append(1)
        if len(calls) > passed or passed and len(calls) == passed:
            raise Killed
        return result

    output = tmp_path / 'map'
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, stopping)
        build_map(images, output, config)
    assert not output.exists()

    # Nothing that was finished is done again.
    work = tmp_path / 'map.build'
    done = {path.name for path in work.iterdir()}
    steps = []
    report = train_field.TrainingClock.tick

    def counting(clock):
        steps.append(1)
        report(clock)

    monkeypatch.setattr(train_field.TrainingClock, 'tick', counting)
    scene_map = build_map(images, output, config)
    expected = (0 if 'field.safetensors' in done else 8 - 6 if stop == 'field' else 8) + (
        0 if 'matcher.safetensors' in done else 3 - 2 if stop == 'matcher' else 3)
    assert len(steps) == expected
    assert scene_map.summary()['images'] == len(images) and not work.exists()


def test_depth_is_measured_once_and_reaches_the_rays(tmp_path, images, monkeypatch):
    measured, known = [], []
    original = build_module.multi_view_depth

    def measuring(given, *args, **options):
        measured.append([image.name for image in given])
        return original(given, *args, **options)

    def training(field, dataset, *args, **options):
        batch = dataset.draw(2000, 0, torch.Generator().manual_seed(0))
        known.append((batch.distance > 0).float().mean().item())
        raise Killed

    monkeypatch.setattr(build_module, 'multi_view_depth', measuring)
    monkeypatch.setattr(build_module, 'train_field', training)
    bare = [replace(image, depth=None) for image in images]
    config = replace(TINY, depth=replace(TINY.depth, longest_side=64, depths=24))
    for _ in range(2):
        with pytest.raises(Killed):
            build_map(bare, tmp_path / 'map', config)
    # Of the photographs that the field is trained on, and not again when the build goes on.
    names = [image.name for image in images]
    assert len(measured) == 1 and set(measured[0]) < set(names)
    assert known[0] == known[1] > 0.02


def test_an_unfinished_build_is_refused_with_other_options(tmp_path, images, monkeypatch):
    def stop(*args, **options):
        raise Killed

    output = tmp_path / 'map'
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(build_module, 'train_field', stop)
        build_map(images, output, TINY)
    moved = images[0].map_from_camera.copy()
    moved[0, 3] += 0.1
    (tmp_path / 'm.png').touch()
    masked = [[replace(images[0], **{kind: tmp_path / 'm.png'}), *images[1:]]
              for kind in ('mask_path', 'sky_path', 'transient_path', 'depth_path')]
    for other in ((images, replace(TINY, words=13)), (images[:-1], TINY),
                  *((others, TINY) for others in masked),
                  ([replace(images[0], map_from_camera=moved), *images[1:]], TINY)):
        with pytest.raises(DataError, match='unfinished build of other'):
            build_map(other[0], output, other[1])
    with pytest.raises(DataError, match='unfinished build of other'):
        build_map(images, output, TINY, minutes=3)


def test_photographs_of_the_same_names_are_told_apart_by_their_files(tmp_path, images):
    described = []
    for folder, content in (('one', b'a'), ('two', b'a'), ('two', b'longer')):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / 'a.png'
        path.write_bytes(content)
        described.append(describe_image(replace(images[0], path=path)))
    assert described[0] != described[1] != described[2]
    assert described[2] == describe_image(replace(images[0], path=tmp_path / 'two' / 'a.png'))


def test_photographs_that_make_no_map_are_refused(tmp_path, images):
    with pytest.raises(DataError, match='at least 4 photographs, 3 given'):
        build_map(images[:3], tmp_path / 'map', TINY)
    bare = PosedImage('bare.png', CAMERA, pixels=images[0].pixels)
    with pytest.raises(DataError, match='bare.png has no pose'):
        build_map([*images, bare], tmp_path / 'map', TINY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('options', [
    {'point_feature': 'f9'}, {'point_feature': 'f0'}, {'point_feature': 'depth'},
    {'backbone': 'no_such_net'}])
def test_a_matcher_that_cannot_be_made_is_refused_before_the_field_is_trained(
        tmp_path, images, options):
    with pytest.raises(ConfigError, match=next(iter(options.values()))):
        build_map(images, tmp_path / 'map',
                  replace(TINY, matcher=replace(TINY.matcher, **options)))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_shared_is_refused_before_the_field_is_trained(
        tmp_path, images, monkeypatch):
    class Crowd:
        """An engine of three processes."""

        world_size = 3

    monkeypatch.setattr(build_module, 'make_engine', lambda device: Crowd())
    with pytest.raises(ConfigError, match='a batch of 2 images cannot be shared by 3'):
        build_map(images, tmp_path / 'map', TINY)
    assert list(tmp_path.iterdir()) == []


def test_cameras_in_one_place_without_texture_are_refused(tmp_path):
    grey = np.full((120, 160, 3), 128, np.uint8)
    images = [PosedImage(f'{k}', CAMERA, np.eye(4), pixels=grey) for k in range(5)]
    with pytest.raises(DataError, match='no size'):
        build_map(images, tmp_path / 'map', TINY)


def test_outputs_that_cannot_become_a_map_are_refused_at_once(tmp_path, images, monkeypatch):
    monkeypatch.setattr(build_module, 'triangulate', None)
    (tmp_path / 'file').write_text('text')
    with pytest.raises(DataError, match='is a file'):
        build_map(images, tmp_path / 'file', TINY)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'thesis.tex').write_text('text')
    with pytest.raises(DataError, match='holds no map'):
        build_map(images, tmp_path / 'folder', TINY)
    with pytest.raises(DataError, match='positive'):
        build_map(images, tmp_path / 'map', TINY, minutes=0)
    assert (tmp_path / 'folder' / 'thesis.tex').read_text() == 'text'


def test_minutes_end_the_training(tmp_path, images, monkeypatch):
    monkeypatch.setattr(renderer, 'OPAQUE', -1.0)  # nothing is opaque so soon
    config = replace(
        TINY, matcher=replace(TINY.matcher, fine=False, point_feature='encoded_xyz'),
        field_training=replace(TINY.field_training, steps=10 ** 6, rays=128, bfloat16=False),
        matcher_training=MatcherTrainingConfig(steps=10 ** 6, batch=1, points=40))
    scene_map = build_map(images, tmp_path / 'map', config, minutes=0.02)
    assert scene_map.references.view(0)[1] is None  # coordinates alone need no features
    assert_answered(Localizer(scene_map).localize(images[0]))


def test_the_mip_field_builds_a_map(tmp_path, images):
    scene_map = build_map(images, tmp_path / 'map', TINY_MIP)
    assert scene_map.summary()['field'] == 'mip'
    assert all(value.isfinite().all() for value in parameters(scene_map).values())
    assert scene_map.references.view(0)[1].shape[1] == 16
    assert_answered(Localizer(scene_map).localize(images[0]))


def test_configurations_return_from_plain_values():
    for config in (BuildConfig(), TINY, TINY_MIP):
        assert from_dict(BuildConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match='start'):
        LocalizerConfig(start='guess')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_a_map_is_built_on_cuda(tmp_path, images):
    scene_map = build_map(images, tmp_path / 'map', TINY, device='cuda:0')
    assert_answered(Localizer(scene_map.to('cuda:0')).localize(images[0]))
