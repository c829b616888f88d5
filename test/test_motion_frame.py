"""The frame of poses that pictures alone gave: scale and gravity."""

import math

from camera_ring import errors, look, ring, roughened, turned
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.mapping.motion_frame import (
    frame_from_poses,
    KnownDistance,
    level_frame,
    USUAL_DISTANCE,
)
import numpy as np
import pytest
from scipy.spatial.transform import Rotation


def unknown_frame(poses, seed=0):
    """Move poses to a frame that means nothing, as structure from motion has it."""
    rng = np.random.default_rng(seed)
    return Similarity(0.37, turned(rng, 2.0, 1)[0], rng.normal(size=3)).apply_to_pose(poses)


def line(count):
    """Drive straight ahead, looking about a little."""
    return np.array([look((0.3 * k, 0, 0), (1, 0.1 * math.sin(k), 0)) for k in range(count)])


@pytest.mark.parametrize('way', [ring(20), line(20)], ids=['ring', 'line'])
def test_rough_poses_give_the_frame_although_some_are_wrong(way):
    rng = np.random.default_rng(1)
    rough = roughened(way, rng, 0.02, 0.02)
    rough[3, :3, 3] += (5, -3, 2)
    poses = frame_from_poses(unknown_frame(way), rough)
    metres, radians = errors(poses.apply_to_pose(unknown_frame(way)), way)
    assert metres.max() < 0.15
    assert radians.max() < math.radians(2)


def test_exact_poses_give_the_frame_exactly():
    way = ring(12, turns=0.4)
    frame = frame_from_poses(unknown_frame(way), way)
    np.testing.assert_allclose(frame.apply_to_pose(unknown_frame(way)), way, atol=1e-6)


def test_rough_poses_in_one_place_tell_no_scale():
    way = ring(5)
    still = way.copy()
    still[:, :3, 3] = 1
    with pytest.raises(DataError, match='one place'):
        frame_from_poses(unknown_frame(way), still)


@pytest.mark.parametrize('way', [ring(20), ring(8, turns=0.1, outwards=False)],
                         ids=['around', 'one way'])
def test_level_cameras_tell_up_and_a_distance_the_scale(way):
    names = [f'{k}.jpg' for k in range(len(way))]
    apart = float(np.linalg.norm(way[0, :3, 3] - way[5, :3, 3]))
    frame, said = level_frame(unknown_frame(way), names, KnownDistance('0.jpg', '5.jpg', apart),
                              np.ones(5))
    poses = frame.apply_to_pose(unknown_frame(way))
    relative = np.linalg.inv(poses[0]) @ poses
    np.testing.assert_allclose(relative, np.linalg.inv(way[0]) @ way, atol=1e-6)
    up = (poses[:, :3, :3] @ way[:, 2, :3, None])[..., 0]
    assert (np.arccos(np.clip(up[:, 2], -1, 1)) < math.radians(0.1)).all()
    np.testing.assert_allclose(poses[:, :3, 3].mean(0), 0, atol=1e-9)
    assert said['scale_from'] == 'a known distance'


def test_cameras_that_look_down_have_the_mean_of_their_up():
    way = np.array([look((x, y, 2), (0.3 * x, 1, -0.2)) for x in (-1, 0, 1) for y in (0, 1)])
    tilted = way.copy()
    tilted[:, :3, :3] = way[:, :3, :3] @ turned(np.random.default_rng(2), 0.3, 6)
    frame, said = level_frame(unknown_frame(tilted), list('abcdef'), None, np.full(9, 2.0))
    poses = frame.apply_to_pose(unknown_frame(tilted))
    assert (-poses[:, 2, 1]).mean() > 0.85
    assert frame.scale == pytest.approx(USUAL_DISTANCE / 2)
    assert 'unknown' in said['scale_from']


@pytest.mark.parametrize('distance, message', [
    (('0', 'x', 1.0), "image 'x'"), (('0', '0', 1.0), 'two images'), (('0', '1', 0.0), 'metres'),
    (('0', '1', math.nan), 'metres')])
def test_distances_that_make_no_sense_are_refused(distance, message):
    with pytest.raises(DataError, match=message):
        level_frame(ring(3), list('012'), KnownDistance(*distance), np.ones(2))


def rolled(way, quarter_turns):
    """Turn cameras about where they look, as who takes upright pictures does."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('z', 90 * quarter_turns, degrees=True).as_matrix()
    return way @ turn


@pytest.mark.parametrize('quarter_turns, up', [(1, (-1, 0, 0)), (2, (0, 1, 0)), (3, (1, 0, 0))])
def test_cameras_held_otherwise_tell_up_where_the_pictures_say_so(quarter_turns, up, caplog):
    way = rolled(ring(20), quarter_turns)
    frame, said = level_frame(unknown_frame(way), [str(k) for k in range(20)], None, np.ones(2),
                              np.tile(np.array(up, float), (20, 1)))
    turned_by = frame.apply_to_pose(unknown_frame(way))[:, :3, :3] @ way[:, :3, :3].swapaxes(1, 2)
    assert (turned_by[:, 2, 2] > math.cos(math.radians(1))).all()  # z of the way is z of the map
    assert said['up_from'] == 'the horizon of level cameras' and not caplog.records


def test_upright_cameras_that_do_not_say_so_are_suspected_aloud(caplog):
    way = rolled(ring(20), 1)
    level_frame(unknown_frame(way), [str(k) for k in range(20)], None, np.ones(2))
    assert 'held upright' in caplog.text


def test_a_way_that_mostly_turned_on_the_spot_gives_the_scale():
    still = np.array([look((0, 0, 0), (math.cos(a), math.sin(a), 0))
                      for a in np.linspace(0, 6, 30)])
    way = np.concatenate((still, line(8)))
    frame = frame_from_poses(unknown_frame(way), way)
    np.testing.assert_allclose(frame.apply_to_pose(unknown_frame(way)), way, atol=1e-5)
