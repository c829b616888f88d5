"""Rough poses made consistent: features of a synthetic scene, and photographs."""

from dataclasses import replace
import math
from pathlib import Path

from camera_ring import (
    CAMERA,
    errors,
    FISHEYE,
    look,
    looks,
    ring,
    roughened,
    see,
    summed,
    wall_points,
)
from nerfmatch_ros.data.pose_noise import drifting
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.mapping.consistent_poses import (
    ConsistencyConfig,
    consistent_with_features,
    make_consistent,
)
from nerfmatch_ros.mapping.feature_pairs import PairConfig, propose_pairs, similar_pairs
from nerfmatch_ros.mapping.pose_factors import Motions
from nerfmatch_ros.mapping.pose_prior import PosePrior
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_sparse_points import CAMERAS, photograph, pose
import torch

KITCHEN = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'redkitchen'


def turn_about_y(angle):
    """Give a motion (4, 4) that turns the camera about its vertical axis."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec((0, angle, 0)).as_matrix()
    return motion


def aligned(poses, truth):
    """Move poses by the similarity that brings their centres nearest to the true ones."""
    found = align(torch.from_numpy(poses[:, :3, 3]), torch.from_numpy(truth[:, :3, 3]),
                  with_scale=True)
    rotation, scale = found.rotation.numpy(), float(found.scale)
    moved = poses.copy()
    moved[:, :3, :3] = rotation @ poses[:, :3, :3]
    moved[:, :3, 3] = scale * poses[:, :3, 3] @ rotation.T + found.translation.numpy()
    return moved


def ring_with_features(count=40, camera=CAMERA, turns=1.0, seed=0, **options):
    rng = np.random.default_rng(seed)
    truth = ring(count, turns=turns)
    return rng, truth, see(truth, wall_points(3000, 6.0, rng), camera, rng, most=200, **options)


@pytest.mark.parametrize('camera', [CAMERA, FISHEYE], ids=['pinhole', 'fisheye'])
def test_independent_errors_fall_to_what_the_common_frame_is_known(camera):
    rng, truth, features = ring_with_features(camera=camera)
    rough = roughened(truth, rng, 0.15, math.radians(8))
    result = consistent_with_features(features, PosePrior(rough, 0.15, math.radians(8)))
    assert result.changed and not result.loose
    metres, radians = errors(aligned(result.poses, truth), truth)
    assert errors(rough, truth)[0].mean() > 0.2
    assert metres.max() < 0.02
    assert radians.max() < math.radians(0.4)
    # Forty poses tell the frame itself to a few centimetres, and the covariance says so.
    metres, _ = errors(result.poses, truth)
    stated = np.sqrt(np.trace(result.covariances[:, :3, :3], axis1=1, axis2=2))
    assert 0.02 < stated.mean() < 0.12
    assert (metres < 3.5 * stated).all()


def test_loops_are_closed_under_a_heading_that_turned_half_around():
    """A gyroscope that is 2 degrees off at each frame: only appearance can propose the loop."""
    rng, truth, features = ring_with_features(count=90, turns=1.5)
    rough = summed(truth, turn_about_y(math.radians(2)))
    prior = PosePrior(rough, 0.1, 0.1, odometry=0.01, sequence=np.arange(90))
    result = consistent_with_features(features, prior)
    assert errors(rough, truth)[0].max() > 5
    assert result.closures > 20
    metres, radians = errors(result.poses, truth)
    assert metres.max() < 0.05
    assert radians.max() < math.radians(0.5)


def test_a_way_without_loops_has_no_closures():
    rng, truth, features = ring_with_features(count=25, turns=0.5)
    rough = summed(truth, turn_about_y(math.radians(0.3)))
    prior = PosePrior(rough, 0.1, 0.1, odometry=0.01, sequence=np.arange(25))
    result = consistent_with_features(features, prior)
    assert result.changed and result.closures == 0
    assert errors(result.poses, truth)[0].max() < errors(rough, truth)[0].max() / 5


def test_scale_origin_and_direction_are_those_of_odometry():
    """Odometry that measures 3 % too long makes a map 3 % too large, nothing else."""
    rng, truth, features = ring_with_features(count=30, turns=0.6)
    long = truth.copy()
    long[:, :3, 3] = truth[0, :3, 3] + 1.03 * (truth[:, :3, 3] - truth[0, :3, 3])
    prior = PosePrior(long, 0.1, 0.1, odometry=0.01, sequence=np.arange(30))
    result = consistent_with_features(features, prior)
    metres, radians = errors(result.poses, long)
    assert errors(truth, long)[0].max() > 0.15
    assert metres.max() < 0.05
    assert radians.max() < math.radians(0.4)


def test_the_order_of_images_is_not_that_of_the_way():
    rng, truth, features = ring_with_features(count=30, turns=0.6)
    rough = summed(truth, turn_about_y(math.radians(1)))
    order = rng.permutation(30)
    prior = PosePrior(rough[order], 0.1, 0.1, odometry=0.01, sequence=np.argsort(order))
    result = consistent_with_features([features[k] for k in order], prior)
    assert errors(rough, truth)[0].max() > 1
    assert errors(result.poses, truth[order])[0].max() < 0.2


def test_frames_that_see_nothing_are_carried_by_odometry_and_named():
    rng, truth, features = ring_with_features(count=60, turns=1.5)
    rough = summed(truth, turn_about_y(math.radians(1)))
    blank = [20, 21, 22]
    empty = replace(features[0], pixels=np.zeros((0, 2)), rays=np.zeros((0, 3)),
                    pixel_angle=np.zeros(0), descriptors=torch.zeros((0, 128)),
                    place=np.zeros(0, np.int64))
    features = [empty if k in blank else f for k, f in enumerate(features)]
    prior = PosePrior(rough, 0.1, 0.1, odometry=0.02, sequence=np.arange(60))
    result = consistent_with_features(features, prior)
    assert result.loose == (20, 21, 22)
    assert result.numbers['loose'] == ['20', '21', '22']
    metres, radians = errors(result.poses, truth)
    assert metres[blank].max() < 0.1 and radians[blank].max() < math.radians(2)
    assert errors(rough, truth)[0][blank].min() > 0.5
    spread = np.trace(result.covariances[:, 3:, 3:], axis1=1, axis2=2)
    assert spread[21] > 1.1 * max(spread[19], spread[23])


def test_frames_that_see_nothing_keep_the_pose_they_start_from():
    rng, truth, features = ring_with_features(count=30)
    rough = roughened(truth, rng, 0.1, 0.05)
    features[7] = replace(features[7], descriptors=torch.zeros((0, 128)),
                          place=np.zeros(0, np.int64))
    start = rough.copy()
    start[7, :3, 3] += (0.02, 0, 0)
    result = consistent_with_features(features, PosePrior(rough, 0.1, 0.05), start=start)
    assert result.loose == (7,)
    np.testing.assert_allclose(result.poses[7], start[7], atol=1e-6)


@pytest.mark.parametrize('odometry', [0.01, None], ids=['odometry', 'independent'])
def test_places_that_look_alike_are_not_taken_for_one(odometry):
    """Four metres of a corridor's wall look exactly like four metres farther on."""
    rng = np.random.default_rng(0)
    truth = np.array([look((0.2 * k, 0, 0.1 * math.sin(k)), (0.3 * math.sin(k / 5), 1, 0))
                      for k in range(50)])
    points = rng.uniform((-3, 2.5, -1.5), (13, 3.5, 1.5), (2200, 3))
    descriptors = looks(len(points), rng)
    first = (points[:, 0] > 0) & (points[:, 0] < 4)
    second = (points[:, 0] > 6) & (points[:, 0] < 10)
    points = np.concatenate((points[~second], points[first] + (6, 0, 0)))
    features = see(truth, points, CAMERA, rng, most=200, descriptors=np.concatenate(
        (descriptors[~second], descriptors[first])))
    if odometry is None:
        rough = roughened(truth, rng, 0.1, 0.05)
    else:
        rough = summed(truth, turn_about_y(math.radians(0.1)))
    prior = PosePrior(rough, 0.1, 0.05, odometry, np.arange(50))
    result = consistent_with_features(features, prior)
    assert result.numbers['pairs_refused'] > 10 and result.closures == 0
    metres, _ = errors(aligned(result.poses, truth), truth)
    assert metres.max() < 0.03


def test_poses_worse_than_stated_are_doubted_aloud(caplog):
    rng, truth, features = ring_with_features(count=30)
    rough = roughened(truth, rng, 0.5, 0.3)
    result = consistent_with_features(features, PosePrior(rough, 0.02, 0.01))
    assert result.numbers['prior_sigmas'] > 4
    assert 'worse than stated' in caplog.text


def test_closures_measured_elsewhere_count():
    """Frames without keypoints in common, but with a closure from outside."""
    rng, truth, _ = ring_with_features(count=30)
    _, _, features = ring_with_features(count=30)
    rough = summed(truth, turn_about_y(math.radians(1)))
    features = [f if k < 10 else replace(f, descriptors=torch.zeros((0, 128)),
                                         place=np.zeros(0, np.int64))
                for k, f in enumerate(features)]
    prior = PosePrior(rough, 0.1, 0.1, odometry=0.05, sequence=np.arange(30))
    closure = Motions(np.array([0]), np.array([29]),
                      (np.linalg.inv(truth[0]) @ truth[29])[None], np.array([(0.01, 0.01)]))
    without = consistent_with_features(features, prior)
    result = consistent_with_features(features, prior, closures=closure)
    assert errors(result.poses, truth)[0][29] < 0.1 < errors(without.poses, truth)[0][29] / 3


def test_gravity_keeps_the_map_upright():
    """Rough headings and places, but an IMU that knows what is up."""
    rng, truth, features = ring_with_features(count=30)
    rough = roughened(truth, rng, 0.5, 0.0)
    rough[:, :3, :3] = Rotation.from_rotvec(
        np.outer(0.3 * rng.normal(size=30), (0, 0, 1))).as_matrix() @ rough[:, :3, :3]

    def tilt(gravity):
        poses = consistent_with_features(features, PosePrior(rough, 0.5, 0.3, None, None,
                                                             gravity)).poses
        up = (poses[:, :3, :3] @ truth[:, 2, :3, None])[..., 0].mean(0)
        return math.degrees(math.atan2(math.hypot(up[0], up[1]), up[2]))

    assert tilt(math.radians(0.5)) < 0.2 < tilt(None)


def test_photographs_of_a_corner_are_brought_together():
    images = [photograph(k, CAMERAS['pinhole']) for k in range(6)]
    truth = np.array([pose(k, 0.15) for k in range(6)])
    rough = roughened(truth, np.random.default_rng(1), 0.03, math.radians(2))
    seen = []
    result = make_consistent(images, PosePrior(rough, 0.03, math.radians(2)),
                             report=lambda done, numbers: seen.append(done))
    metres, radians = errors(aligned(result.poses, truth), truth)
    before = errors(aligned(rough, truth), truth)
    assert metres.mean() < before[0].mean() / 3
    assert radians.mean() < before[1].mean() / 3
    assert seen == sorted(seen) and 0 <= seen[0] and seen[-1] == 1


def test_pictures_without_texture_change_nothing(caplog):
    images = [photograph(k, CAMERAS['pinhole'], plain=True) for k in range(6)]
    rough = roughened(np.array([pose(k, 0.15) for k in range(6)]), np.random.default_rng(1),
                      0.03, 0.03)
    result = make_consistent(images, PosePrior(rough, 0.03, 0.03))
    assert not result.changed and result.numbers['changed'] is False
    np.testing.assert_array_equal(result.poses, rough)
    np.testing.assert_allclose(np.diagonal(result.covariances, axis1=1, axis2=2), 0.03 ** 2)
    assert 'poses stay as they are given' in caplog.text


def test_appearance_finds_the_same_place_and_nothing_known():
    _, truth, features = ring_with_features(count=60, turns=2.0)
    found = similar_pairs(features, 3, {(0, 30)})
    assert (0, 30) not in found
    turns = np.array([abs((j - i + 15) % 30 - 15) for i, j in found])
    assert (turns <= 4).mean() > 0.8


def test_few_images_are_all_compared():
    _, _, features = ring_with_features(count=6)
    assert len(propose_pairs(None, None, features, PairConfig())) == 15


@pytest.mark.parametrize('bad', [
    {'translation': 0.0}, {'rotation': math.nan}, {'odometry': -1.0, 'sequence': np.arange(3)},
    {'odometry': 0.01}, {'sequence': np.array((0, 0, 1))}, {'poses': np.zeros((3, 4, 4))}])
def test_a_prior_that_makes_no_sense_is_refused(bad):
    values = {'poses': np.tile(np.eye(4), (3, 1, 1)), 'translation': 0.1, 'rotation': 0.1}
    with pytest.raises(DataError):
        PosePrior(**{**values, **bad})


def test_poses_of_other_images_are_refused():
    prior = PosePrior(np.tile(np.eye(4), (3, 1, 1)), 0.1, 0.1)
    with pytest.raises(DataError, match='2 images but 3 prior poses'):
        make_consistent([photograph(k, CAMERAS['pinhole']) for k in range(2)], prior)
    with pytest.raises(DataError, match='shape'):
        consistent_with_features(ring_with_features(count=3)[2], prior, start=np.eye(4)[None])


@pytest.mark.skipif(not KITCHEN.is_dir(), reason=f'{KITCHEN} is not there')
def test_drift_in_a_kitchen_is_taken_out():
    images = read_posed_images(KITCHEN, 'train')[:32:2]
    truth = np.array([image.map_from_camera for image in images])
    rough = drifting(truth, 0.05, math.radians(5), torch.Generator().manual_seed(3))
    prior = PosePrior(rough, 0.1, 0.1, odometry=0.05, sequence=np.arange(len(images)))
    result = make_consistent([replace(image, map_from_camera=None) for image in images], prior)
    before, after = (errors(aligned(poses, truth), truth) for poses in (rough, result.poses))
    assert after[0].mean() < 0.01
    assert after[1].mean() < before[1].mean() / 4


def test_a_lens_that_the_calibration_misses_does_not_bend_the_way():
    bent = replace(CAMERA, model='OPENCV', distortion=(-0.04, 0.0, 0.0, 0.0))
    rng, truth, features = ring_with_features(camera=bent, noise=0.3)
    # The rays are those of the calibration, which knows of no distortion.
    features = [replace(f, rays=CAMERA.rays(torch.from_numpy(f.pixels)).numpy())
                for f in features]
    prior = PosePrior(roughened(truth, rng, 0.05, math.radians(3)), 0.05, math.radians(3))
    wrong = {}
    for refine in (False, True):
        found = consistent_with_features(
            features, prior, config=ConsistencyConfig(refine_lens=refine))
        wrong[refine] = errors(aligned(found.poses, truth), truth)[0].mean()
        assert (found.numbers['lens_px'] > 1) == refine
    assert wrong[True] < 0.5 * wrong[False]


def test_a_lens_that_was_calibrated_well_stays_as_it_is():
    rng, truth, features = ring_with_features(camera=FISHEYE, noise=0.3)
    prior = PosePrior(roughened(truth, rng, 0.05, math.radians(3)), 0.05, math.radians(3))
    found = consistent_with_features(features, prior)
    assert found.numbers['lens_px'] == 0


def test_a_lens_does_not_take_up_what_odometry_does_wrong():
    _, truth, features = ring_with_features(turns=0.6, noise=0.3)
    rough = drifting(truth, 0.05, math.radians(5), torch.Generator().manual_seed(1))
    prior = PosePrior(rough, 0.1, 0.1, odometry=0.002, sequence=np.arange(len(truth)))
    found = consistent_with_features(features, prior)  # which is told to trust it too much
    assert found.changed and found.numbers['lens_px'] == 0
