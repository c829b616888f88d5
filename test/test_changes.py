"""What new photographs contradict: pictures compared, space carved, old rays sorted out."""

from dataclasses import replace

from nerfmatch_ros.data.synthetic import (
    CHANGES,
    default_camera,
    map_trajectory,
    SyntheticRoom,
    visit_trajectory,
)
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.mapping.changes import (
    ChangeConfig,
    Changes,
    differing,
    find_changes,
    Look,
    rays_through,
)
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import pytest
import torch

CAMERA = default_camera(96, 72)
FRAME = SceneFrame(Similarity(0.3, np.eye(3), np.array((0, 0, -0.375))), 0.05, 3.0)
CONFIG = ChangeConfig(cells=64)


@pytest.fixture(scope='module')
def rooms(room):
    return room, SyntheticRoom(added=CHANGES)


def looks(before, after, measured):
    taken = []
    for pose in visit_trajectory(12):
        (old, depth), (new, now) = (each.render(CAMERA, pose, True) for each in (before, after))
        differs = differing(new / np.float32(255), old / np.float32(255), CONFIG)
        taken.append(Look(CAMERA, pose, differs, depth, now if measured else None))
    return taken


@pytest.fixture(scope='module')
def found(rooms):
    return find_changes(looks(*rooms, measured=True), FRAME, CONFIG)


def test_another_exposure_is_no_difference_and_another_picture_is(rooms):
    pose = visit_trajectory(12)[0]
    old, new = (each.render(CAMERA, pose, supersample=2) / np.float32(255) for each in rooms)
    changed = np.abs(old - new).max(-1) > 0.1
    assert 0.03 < changed.mean() < 0.6
    dimmed = 0.7 * old * np.float32((1.1, 1.0, 0.9)) + np.float32(0.05)
    assert differing(dimmed, old, CONFIG).mean() < 0.01
    differs = differing(0.8 * new, old, CONFIG)
    assert (differs & changed).sum() > 0.9 * changed.sum()
    assert (differs & ~changed).mean() < 0.1


def test_what_was_put_into_the_room_is_contradicted_and_little_else(found):
    for box in CHANGES:
        turn = np.array(((np.cos(box.yaw), -np.sin(box.yaw), 0),
                         (np.sin(box.yaw), np.cos(box.yaw), 0), (0, 0, 1)))
        inside = np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)) * box.size
        held = found.hold(torch.from_numpy(inside @ turn.T + box.centre).float())
        assert held.float().mean() > 0.4  # what lies deep inside is hidden from all
    assert 0 < found.share < 0.02
    corner = torch.tensor([(-2.5, -1.5, 1.0), (0.0, 1.5, 1.5), (100.0, 0.0, 0.0)])
    assert not found.hold(corner).any()  # where nothing changed, and beyond the grid


def test_depth_of_the_photographs_keeps_the_space_before_it(rooms, found):
    bare = find_changes(looks(*rooms, measured=False), FRAME, CONFIG)
    assert found.share < 0.8 * bare.share


def test_old_rays_that_would_contradict_the_new_room_are_sorted_out(rooms, found):
    lost, spared, changed = [], [], []
    for pose in map_trajectory(24):
        (old, depth), new = rooms[0].render(CAMERA, pose, True), rooms[1].render(CAMERA, pose)
        differs = np.abs(old.astype(int) - new).max(-1) > 25
        mask = rays_through(found, CAMERA, pose, depth)
        lost.append((differs & ~mask).mean())
        spared.append((~differs & ~mask).mean())
        changed.append(differs.mean())
    assert max(changed) > 0.2
    assert max(lost) < 0.01  # next to no old ray shows the field what is no longer true
    assert np.mean(spared) > 0.85 * (1 - np.mean(changed))  # and most others are kept


def test_a_room_that_did_not_change_is_contradicted_nowhere(rooms):
    same = find_changes(looks(rooms[0], rooms[0], True), FRAME, CONFIG)
    assert not same.contradicted.any()
    pose = map_trajectory(3)[1]
    assert not rays_through(same, CAMERA, pose, np.ones((72, 96), np.float32)).any()


def test_one_photograph_alone_contradicts_nothing(rooms):
    alone = looks(*rooms, measured=True)[:1]
    assert alone[0].differs.any()
    assert not find_changes(alone, FRAME, CONFIG).contradicted.any()
    assert find_changes(alone, FRAME, replace(CONFIG, seen=1)).contradicted.any()


def test_where_the_old_map_knows_nothing_nothing_is_contradicted(rooms):
    blind = [replace(look, depth=np.zeros_like(look.depth)) for look in looks(*rooms, True)]
    assert not find_changes(blind, FRAME, CONFIG).contradicted.any()


def test_rays_without_a_surface_are_followed_to_the_end():
    cells = np.zeros((8, 8, 8), bool)
    cells[6:, :, :] = True  # x beyond 1.67 m
    changes = Changes(cells, FRAME)
    ahead = np.array(((0, 0, 1.0, 0), (-1, 0, 0, 0), (0, -1, 0, 1.25), (0, 0, 0, 1)))
    through = [rays_through(changes, CAMERA, ahead, np.full((72, 96), depth, np.float32)).mean()
               for depth in (0.5, 2.5, 0.0)]
    assert through[0] == 0 and through[1] > 0.5 and through[2] > 0.5
