"""Map files: what was saved is loaded, and nothing else is taken for a map."""

from dataclasses import replace
import errno
import hashlib
import math
import os
import pickle
import shutil

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.radiance_field.surface_cache import sorted_cache
from nerfmatch_ros.scene_map import FILES, SceneMap, store_surface_cache, SURFACE_CACHE
from nerfmatch_ros.tensor_file import read_header
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_build import tiny_images
import torch
import yaml


@pytest.fixture
def folder(tiny_map, tmp_path):
    """A copy of a whole map, to be spoilt."""
    return shutil.copytree(tiny_map, tmp_path / 'map')


def described(folder, change):
    """Change the description of a map."""
    description = yaml.safe_load((folder / 'map.yaml').read_text())
    change(description)
    (folder / 'map.yaml').write_text(yaml.safe_dump(description))


def signed(folder):
    """Make the checksums right again, as a malicious or mistaken writer would."""
    described(folder, lambda d: d['sha256'].update({
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (*FILES, SURFACE_CACHE)}))


def with_tensor(name, key, change):
    def damage(folder):
        tensors = load_file(folder / name)
        tensors[key] = change(tensors[key]).contiguous()
        save_file(tensors, folder / name)
        signed(folder)
    return damage


def without_tensor(name, key):
    def damage(folder):
        tensors = load_file(folder / name)
        del tensors[key]
        save_file(tensors, folder / name)
        signed(folder)
    return damage


def with_value(value, *path):
    def damage(folder):
        def change(description):
            for key in path[:-1]:
                description = description[key]
            description[path[-1]] = value
        described(folder, change)
    return damage


def poisoned(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[3] = torch.nan
    return tensor


def infinite(tensor):
    return torch.full_like(tensor, torch.inf)


def flip_a_byte(folder):
    content = bytearray((folder / FILES[0]).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / FILES[0]).write_bytes(content)


def cut_short(folder):
    os.truncate(folder / FILES[1], 1000)


def pickle_instead(folder):
    (folder / FILES[1]).write_bytes(pickle.dumps({'weights': [1.0]}))
    signed(folder)


def link_instead(folder):
    (folder / FILES[2]).rename(folder / 'elsewhere')
    (folder / FILES[2]).symlink_to(folder / 'elsewhere')


DAMAGES = {
    'missing file': (lambda f: (f / FILES[3]).unlink(), 'surface.safetensors is missing'),
    'missing description': (lambda f: (f / 'map.yaml').unlink(), 'holds no map.yaml'),
    'empty description': (lambda f: (f / 'map.yaml').write_text(''), 'does not describe a map'),
    'list as description': (lambda f: (f / 'map.yaml').write_text('[1]'), 'not describe a map'),
    'broken yaml': (lambda f: (f / 'map.yaml').write_text('a: ['), 'no valid YAML'),
    'code in yaml': (lambda f: (f / 'map.yaml').write_text(
        '!!python/object/apply:os.system ["touch /tmp/x"]'), 'no valid YAML'),
    'binary description': (lambda f: (f / 'map.yaml').write_bytes(b'\xff\x00'), 'map.yaml'),
    'truncated': (cut_short, 'matcher.safetensors is damaged'),
    'flipped byte': (flip_a_byte, 'field.safetensors is damaged'),
    'no checksums': (with_value(None, 'sha256'), 'damaged'),
    'link': (link_instead, 'no plain file'),
    'pickle': (pickle_instead, 'cannot be read as a map'),
    'other version': (with_value(99, 'version'), 'map version 99'),
    'other format': (with_value('a cake', 'format'), 'does not describe a map'),
    'not a number': (with_tensor(FILES[0], 'trunk.0.weight', poisoned), 'trunk.0.weight'),
    'nan in the matcher': (with_tensor(FILES[1], 'log_scale', infinite), 'log_scale'),
    'nan in poses': (with_tensor(FILES[2], 'map_from_camera', poisoned), 'map_from_camera'),
    'sheared pose': (
        with_tensor(FILES[2], 'map_from_camera', lambda t: 2 * t),
        'map_from_camera of reference view 0: last row'),
    'weights of another size': (
        with_tensor(FILES[0], 'trunk.1.weight', lambda t: t[:, :-1]), 'trunk.1.weight'),
    'missing weight': (without_tensor(FILES[1], 'log_scale'), 'log_scale'),
    'missing points': (without_tensor(FILES[2], 'points'), 'points'),
    'missing features': (without_tensor(FILES[3], 'features'), 'features'),
    'too few points': (with_tensor(FILES[2], 'points', lambda t: t[:-1]), 'points'),
    'flat points': (with_tensor(FILES[3], 'points', lambda t: t[:, :2]), 'surface points'),
    'other features': (with_tensor(FILES[3], 'features', lambda t: t[:, :3]), 'features'),
    'other words': (with_tensor(FILES[3], 'words', lambda t: t[:, :3]), 'words'),
    'no surface cache': (lambda f: (f / SURFACE_CACHE).unlink(), 'surface_cache.* is missing'),
    'nan in the surface cache': (with_tensor(SURFACE_CACHE, 'points', poisoned), 'points'),
    'normals as numbers': (
        with_tensor(SURFACE_CACHE, 'normals', lambda t: t.float()), 'normals of a surface cache'),
    'tiles beyond the points': (
        with_tensor(SURFACE_CACHE, 'tile_starts', lambda t: t + 1), 'tile_starts'),
    'a cache without a voxel': (without_tensor(SURFACE_CACHE, 'voxel'), 'voxel'),
    'rows out of order': (with_tensor(FILES[2], 'starts', lambda t: t.flip(0)), 'starts'),
    'too many views': (
        lambda f: described(f, lambda d: d['references'].append(d['references'][0])), 'reference'),
    'unknown camera': (
        lambda f: described(f, lambda d: d['references'][0].update(camera=7)), 'IndexError'),
    'camera without focal length': (with_value(0.0, 'cameras', 0, 'fx'), 'focal length'),
    'unknown field': (with_value('voxel', 'field', 'kind'), 'voxel'),
    'unknown option': (with_value(1, 'field', 'grid', 'depht'), 'depth'),
    'negative size': (with_value(-4, 'field', 'grid', 'width'), 'cannot be read'),
    'absurd size': (with_value(60, 'field', 'grid', 'log2_entries'), 'cannot be read'),
    'unknown feature': (with_value('g9', 'matcher', 'point_feature'), 'point_feature'),
    'no scale': (with_value(0.0, 'scene_frame', 'scene_from_map', 'scale'), 'scale'),
    'text for a number': (with_value('wide', 'scene_frame', 'near'), 'wide'),
    'endless rays': (with_value(math.inf, 'scene_frame', 'far'), 'far inf'),
    'no focal length': (with_value(math.nan, 'working_focal'), 'working_focal nan'),
    'missing key': (lambda f: described(f, lambda d: d.pop('scene_frame')), 'scene_frame'),
    'nothing for a mapping': (with_value(None, 'scene_frame'), 'cannot be read'),
    'infinite side': (with_value(float('inf'), 'longest_side'), 'cannot be read'),
    'unknown contents of views': (with_value('wishes', 'references_hold'), 'wishes'),
    'tokens of a matcher without any': (with_value('tokens', 'references_hold'), 'tokens'),
    'null localization': (with_value(None, 'localization'), 'cannot be read'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_every_damage_is_refused_with_its_reason(folder, name):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(MapError, match=message) as caught:
        SceneMap.load(folder)
    assert str(folder) in str(caught.value)


def test_what_is_no_folder_is_no_map(tmp_path):
    with pytest.raises(MapError, match='there is no map folder'):
        SceneMap.load(tmp_path / 'nothing')
    (tmp_path / 'file').write_text('text')
    with pytest.raises(MapError, match='there is no map folder'):
        SceneMap.load(tmp_path / 'file')
    (tmp_path / 'half.partial').mkdir()
    with pytest.raises(MapError, match='never finished'):
        SceneMap.load(tmp_path / 'half.partial')


def test_a_map_returns_from_disk_as_it_was(tiny_map, tmp_path, room):
    first = SceneMap.load(tiny_map)
    points, features = zip(*(first.references.view(k) for k in range(12)))
    replace(first, references=replace(
        first.references, points=torch.cat(points), features=torch.cat(features))).save(
        tmp_path / 'again')
    second = SceneMap.load(tmp_path / 'again')
    assert second.summary() == first.summary()
    for name in ('field', 'matcher'):
        other = getattr(second, name).state_dict()
        for key, value in getattr(first, name).state_dict().items():
            assert torch.equal(value, other[key]), key
    np.testing.assert_array_equal(second.reference_poses, first.reference_poses)
    assert second.cameras == first.cameras and second.reference_names == first.reference_names
    for k in (0, 5, 11):
        for one, other in zip(first.references.view(k), second.references.view(k)):
            assert torch.equal(one, other)
    image = tiny_images(room, 4)[3]
    estimates = [Localizer(scene_map).localize(image) for scene_map in (first, second)]
    assert estimates[0].matches == estimates[1].matches > 0
    np.testing.assert_array_equal(estimates[0].map_from_camera, estimates[1].map_from_camera)


def test_reference_views_are_read_when_asked_for(folder):
    scene_map = SceneMap.load(folder)
    stored = load_file(folder / FILES[2])
    starts = stored['starts'].tolist()
    for k in range(12):
        points, features = scene_map.references.view(k)
        assert torch.equal(points, stored['points'][starts[k]:starts[k + 1]])
        assert torch.equal(features, stored['features'][starts[k]:starts[k + 1]])


def test_reference_views_that_hold_no_numbers_are_refused_when_read(folder):
    with_tensor(FILES[2], 'points', infinite)(folder)
    scene_map = SceneMap.load(folder)
    k = int(scene_map.references.starts.diff().argmax())
    with pytest.raises(MapError, match='NaN or infinity'):
        scene_map.references.view(k)


@pytest.fixture
def large(monkeypatch):
    """Treat every file of reference views as too large to be checked at once."""
    monkeypatch.setattr('nerfmatch_ros.scene_map.CHECKED_WHOLE', 0)


def flip_in(folder, name, key):
    """Change one bit of the last number of a tensor."""
    path = folder / name
    content = bytearray(path.read_bytes())
    content[read_header(path)[key].end - 1] ^= 1
    path.write_bytes(content)


def test_views_of_a_large_map_are_checked_when_they_are_used(folder, large):
    last = SceneMap.load(folder).references.view(11)
    flip_in(folder, FILES[2], 'features')
    scene_map = SceneMap.load(folder)
    for k in range(11):
        scene_map.references.view(k)
    with pytest.raises(MapError, match='is damaged; copy the map again'):
        scene_map.references.view(11)
    flip_in(folder, FILES[2], 'features')
    for one, other in zip(SceneMap.load(folder).references.view(11), last):
        assert torch.equal(one, other)


@pytest.mark.parametrize('key', ['starts', 'descriptors', 'map_from_camera', 'digests'])
def test_the_rest_of_a_large_map_is_checked_at_once(folder, large, key):
    flip_in(folder, FILES[2], key)
    with pytest.raises(MapError, match='references.safetensors is damaged'):
        SceneMap.load(folder)


@pytest.mark.parametrize('length', [4, 1000, -1])
def test_a_large_file_that_was_cut_short_is_refused_at_once(folder, large, length):
    path = folder / FILES[2]
    os.truncate(path, length if length > 0 else path.stat().st_size - 1)
    with pytest.raises(MapError, match='references.safetensors is damaged'):
        SceneMap.load(folder)


def test_maps_of_earlier_versions_are_read(folder, large):
    """They state neither what the views hold nor the checksum of the rest of their file."""
    views = [SceneMap.load(folder).references.view(k) for k in range(12)]
    without_tensor(FILES[2], 'digests')(folder)
    described(folder, lambda d: (d.pop('references_head'), d.pop('references_hold')))
    references = SceneMap.load(folder).references
    for k, view in enumerate(views):
        for one, other in zip(references.view(k), view):
            assert torch.equal(one, other)
    flip_in(folder, FILES[2], 'features')
    with pytest.raises(MapError, match='references.safetensors is damaged'):
        SceneMap.load(folder)


def whole(scene_map):
    """Bring the reference views into memory, so that the map can be saved."""
    count = len(scene_map.reference_names)
    points, features = zip(*(scene_map.references.view(k) for k in range(count)))
    return replace(scene_map, references=replace(
        scene_map.references, points=torch.cat(points), features=torch.cat(features)))


@pytest.mark.parametrize('failing', ['nerfmatch_ros.scene_map.write_tensors',
                                     'nerfmatch_ros.scene_map.file_sha256',
                                     'nerfmatch_ros.scene_map.dump_yaml'])
def test_an_old_map_survives_a_failing_save(folder, monkeypatch, failing):
    scene_map = whole(SceneMap.load(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args, **options):
        raise OSError('disk full')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
        patch.setattr(failing, fail)
        scene_map.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    replace(scene_map, frame_id='hall').save(folder)
    assert SceneMap.load(folder).frame_id == 'hall'
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize('failing', ['write_tensors', 'file_sha256', 'dump_yaml'])
def test_an_old_map_survives_a_failing_change_of_its_surface_cache(folder, monkeypatch, failing):
    cache = SceneMap.load(folder).surface_cache
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*args, **options):
        raise OSError('disk full')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='disk full'):
        patch.setattr(f'nerfmatch_ros.scene_map.{failing}', fail)
        store_surface_cache(folder, cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_surface_cache_can_be_added_where_files_cannot_be_linked(folder, monkeypatch):
    replace(whole(SceneMap.load(folder)), surface_cache=None).save(folder)
    assert not (folder / SURFACE_CACHE).exists()
    assert SceneMap.load(folder).surface_cache is None

    def refuse(*args):
        raise OSError('no links here')

    monkeypatch.setattr('nerfmatch_ros.scene_map.os.link', refuse)
    points = torch.arange(12.0).view(4, 3)
    with pytest.raises(MapError, match='was replaced while its surface cache was made'):
        store_surface_cache(folder, sorted_cache(points, 1.0), 'ab' * 32)
    store_surface_cache(folder, sorted_cache(points, 1.0), SceneMap.load(folder).sha256)
    assert len(SceneMap.load(folder).surface_cache) == 4


def test_a_cache_with_features_of_another_field_is_refused(folder):
    store_surface_cache(folder, sorted_cache(torch.rand(9, 3), 1.0, features=torch.rand(9, 5)))
    with pytest.raises(MapError, match='features of 5 channels, the field gives 16'):
        SceneMap.load(folder)


def test_a_map_is_not_saved_over_other_files(folder, tmp_path):
    scene_map = whole(SceneMap.load(folder))
    (tmp_path / 'papers').mkdir()
    (tmp_path / 'papers' / 'thesis.tex').write_text('text')
    with pytest.raises(MapError, match='holds no map'):
        scene_map.save(tmp_path / 'papers')
    with pytest.raises(MapError, match='is a file'):
        scene_map.save(tmp_path / 'papers' / 'thesis.tex')
    assert (tmp_path / 'papers' / 'thesis.tex').read_text() == 'text'


def test_a_link_to_a_folder_is_followed(folder, tmp_path):
    scene_map = whole(SceneMap.load(folder))
    (tmp_path / 'link').symlink_to(folder)
    for name in ('hall', 'yard'):
        replace(scene_map, frame_id=name).save(tmp_path / 'link')
        assert (tmp_path / 'link').is_symlink()
        assert SceneMap.load(folder).frame_id == name


def test_densities_beyond_the_stored_precision_are_kept_finite(folder, tmp_path):
    scene_map = whole(SceneMap.load(folder))
    scene_map.field.guide.fill_(1e5)
    scene_map.save(tmp_path / 'dense')
    assert SceneMap.load(tmp_path / 'dense').field.guide.min() > 5e4


def test_a_map_read_from_disk_is_saved_with_its_reference_views(folder, tmp_path):
    scene_map = SceneMap.load(folder)
    scene_map.save(tmp_path / 'copy')
    assert (tmp_path / 'copy' / FILES[2]).stat().st_size == (folder / FILES[2]).stat().st_size
    copy = SceneMap.load(tmp_path / 'copy')
    for k in range(len(scene_map.reference_names)):
        for one, other in zip(scene_map.references.view(k), copy.references.view(k)):
            assert torch.equal(one, other)


def test_everybody_may_read_a_map(tiny_map):
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tiny_map.iterdir())


def test_extent_is_the_diagonal_of_the_camera_centres(tiny_map):
    scene_map = SceneMap.load(tiny_map)
    centres = scene_map.reference_poses[:, :3, 3]
    sides = centres.max(0) - centres.min(0)
    assert scene_map.extent == pytest.approx(np.sqrt((sides ** 2).sum()))


def test_a_full_disk_leaves_the_old_map_and_nothing_else(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path, tensors):
        path.write_bytes(b'half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr('nerfmatch_ros.scene_map.write_tensors', full)
    with pytest.raises(OSError, match='No space'):
        SceneMap.load(folder).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
