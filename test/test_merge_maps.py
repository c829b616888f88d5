"""Merging two maps: where the second lies in the first, and the whole end to end."""

from dataclasses import replace
import shutil

from nerfmatch_ros.data.synthetic import map_trajectory
from nerfmatch_ros.errors import DataError, MapError
from nerfmatch_ros.files import file_sha256
from nerfmatch_ros.geometry.pose import transform_points
from nerfmatch_ros.localization.rigid_motion import distance, inverse, perturb
from nerfmatch_ros.mapping import map_reach
from nerfmatch_ros.mapping import merge_maps as merge_module
from nerfmatch_ros.mapping.merge_maps import merge_maps, MergeStages, MERGING, overlap_of
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
from test_update_map import Killed, QUICK
import torch

LIMIT = (0.05, np.radians(5))
FIRST_FROM_SECOND = perturb(np.eye(4), np.array((0.4, -0.2, 0.1, 0.05, 0.1, 0.6)))


def contents(folder):
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def maps(tiny_map, tmp_path, monkeypatch):
    """The tiny map, and itself in another frame; it is too small to find its views, so is told."""
    first, second = (shutil.copytree(tiny_map, tmp_path / name) for name in ('first', 'second'))
    monkeypatch.setattr(map_reach, 'BEYOND', 9.0)  # its field has surfaces everywhere
    loaded = SceneMap.load(second)
    references = loaded.references
    moved = np.stack([inverse(FIRST_FROM_SECOND) @ pose for pose in references.map_from_camera])
    monkeypatch.setattr(MergeStages, 'localized', lambda stages, images, report: (
        [None if k == 1 else FIRST_FROM_SECOND @ image.map_from_camera
         for k, image in enumerate(images)], [''] * len(images)))
    scene = loaded.frame.scene_from_map
    turn = FIRST_FROM_SECOND[:3, :3]
    frame = replace(loaded.frame, scene_from_map=replace(
        scene, rotation=scene.rotation @ turn,
        translation=scene.apply(FIRST_FROM_SECOND[:3, 3])))
    surface = replace(loaded.surface, points=transform_points(
        torch.from_numpy(inverse(FIRST_FROM_SECOND)).float(), loaded.surface.points))
    replace(loaded, frame=frame, surface=surface, surface_cache=None,
            references=replace(references, map_from_camera=moved)).save(second)
    return first, second


CONFIG = replace(QUICK, rehearsal=replace(QUICK.rehearsal, views=7), held_out=0)


def test_a_merged_map_holds_views_of_both_in_the_frame_of_the_first(maps, tmp_path):
    before = [contents(folder) for folder in maps]
    made = merge_maps(*maps, tmp_path / 'whole', CONFIG)
    assert [contents(folder) for folder in maps] == before
    first = SceneMap.load(maps[0])
    pose = dict(zip(first.reference_names, first.reference_poses))
    names, own = made.reference_names, 0
    assert len(set(names)) == len(names)
    for name, found in zip(names, made.reference_poses):
        original = name.replace('~2', '')
        own += original == name
        np.testing.assert_allclose(found, pose[original], atol=1e-6)
    assert own and len(names) == 7 + own
    assert made.notes['views_agreeing'] == 6 and made.notes['views_localized'] == 6
    np.testing.assert_allclose(made.notes['first_from_second'], FIRST_FROM_SECOND, atol=1e-9)
    assert made.calibration == first.calibration
    assert not (tmp_path / 'whole.build').exists()


def test_a_killed_merge_goes_on(maps, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MergeStages, 'field', lambda *_: (_ for _ in ()).throw(Killed))
        merge_maps(*maps, tmp_path / 'whole', CONFIG)
    assert not (tmp_path / 'whole').exists()
    rendered = (tmp_path / 'whole.build' / 'second').stat().st_mtime_ns
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MergeStages, 'field', lambda *_: (_ for _ in ()).throw(Killed))
        merge_maps(*maps, tmp_path / 'whole', CONFIG)
    assert (tmp_path / 'whole.build' / 'second').stat().st_mtime_ns == rendered
    with pytest.raises(DataError, match='unfinished build of other'):
        merge_maps(maps[1], maps[0], tmp_path / 'whole', CONFIG)


def test_a_map_is_not_merged_into_itself(maps):
    for arguments in ((maps[0], maps[0], maps[1]), (*maps, maps[0]), (*maps, maps[1])):
        with pytest.raises(DataError, match='give two maps and another folder'):
            merge_maps(*arguments, MERGING)
    with pytest.raises(MapError, match='no map folder'):
        merge_maps(maps[0], maps[0].with_name('none'), maps[0].with_name('new'), MERGING)


def found_at(random, truth, known, scale=1.0):
    """What the first map finds of views at `truth`: those numbered in `known`, with noise."""
    found = []
    for k, pose in enumerate(truth):
        own = perturb(pose, random.normal(size=6) * np.repeat((0.01, 0.004), 3))
        own[:3, 3] *= scale
        found.append(own if k in known else None)
    return found


def test_the_overlap_says_where_the_second_map_lies():
    random = np.random.default_rng(0)
    truth = map_trajectory(20)
    given = np.stack([inverse(FIRST_FROM_SECOND) @ pose for pose in truth])
    found = found_at(random, truth, range(8, 20))
    found[10] = perturb(found[10], np.array((1.0, 0, 0, 0, 0, 1)))  # one that is wrong
    consensus = overlap_of(given, found, LIMIT, 2.0, 0.05)
    assert consensus.agrees.sum() == 11 and not consensus.agrees[10]
    metres, radians = distance(consensus.map_from_given, FIRST_FROM_SECOND)
    assert metres < 0.02 and radians < 0.01


def test_maps_that_do_not_overlap_are_refused():
    random = np.random.default_rng(1)
    truth = map_trajectory(20)
    given = np.stack(truth)
    with pytest.raises(DataError, match='4 of 20 views .* and 4 agree'):
        overlap_of(given, found_at(random, truth, range(4)), LIMIT, 2.0, 0.05)
    with pytest.raises(DataError, match='0 of 20 views .* and 0 agree'):
        overlap_of(given, [None] * 20, LIMIT, 2.0, 0.05)
    wrong = [perturb(pose, random.normal(size=6)) for pose in truth]
    with pytest.raises(DataError, match='do not overlap enough|times those of the first'):
        overlap_of(given, wrong, LIMIT, 2.0, 0.05)


def test_maps_of_different_scales_are_refused():
    random = np.random.default_rng(2)
    truth = map_trajectory(20)
    with pytest.raises(DataError, match=r'are 0\.\d+ times those of the first'):
        overlap_of(np.stack(truth), found_at(random, truth, range(20), 1.3), LIMIT, 2.0, 0.05)


def test_merging_has_defaults_of_its_own():
    assert merge_module.MERGING.held_out == 0 and merge_module.MERGING.minutes > 25
