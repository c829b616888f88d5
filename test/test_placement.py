"""New photographs in an old map: given poses that are rigid, drift, or are not there."""

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import default_camera, map_trajectory
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.rigid_motion import distance, inverse, perturb
from nerfmatch_ros.mapping.placement import believed, place
import numpy as np
import pytest

LIMIT = (0.05, np.radians(5))
CAMERA = default_camera(16, 12)
PIXELS = np.zeros((12, 16, 3), np.uint8)


@pytest.fixture
def random(request):
    return np.random.default_rng(sum(map(ord, request.node.name)))


def images_at(poses):
    return [PosedImage(f'{k}.png', CAMERA, pose, pixels=PIXELS) for k, pose in enumerate(poses)]


def localized(truth, random, metres=0.01, radians=0.004):
    """Poses as a map finds them: noise, every fifth unknown, every seventh wrong."""
    found = [perturb(pose, random.normal(size=6) * np.repeat((metres, radians), 3))
             for pose in truth]
    for k in range(0, len(found), 5):
        found[k] = None
    for k in range(1, len(found), 7):
        if found[k] is not None:
            found[k] = perturb(found[k], random.normal(size=6))
    return found


def reasons(found):
    return ['too few matches' if pose is None else '' for pose in found]


def errors(placement, truth):
    number = {f'{k}.png': k for k in range(len(truth))}
    return np.array([distance(image.map_from_camera, truth[number[image.name]])
                     for image in placement.images])


def test_rigid_poses_in_another_frame_place_even_what_the_map_does_not_know(random):
    truth = map_trajectory(30)
    given_from_map = perturb(np.eye(4), np.array((3.0, -1, 0.5, 0.1, 0.2, 2)))
    found = localized(truth, random)
    placement = place(images_at([given_from_map @ pose for pose in truth]), found,
                      reasons(found), LIMIT, 2.0)
    assert placement.how == 'aligned' and not placement.left_out
    assert len(placement.images) == 30
    # Better than a single localization, as many agree on one motion.
    worst = errors(placement, truth).max(0)
    assert worst[0] < 0.02 and worst[1] < 0.008
    np.testing.assert_allclose(placement.map_from_given @ given_from_map, np.eye(4), atol=0.01)


def test_drifting_poses_carry_on_from_what_was_localized(random):
    truth = map_trajectory(60)
    given = [truth[0]]
    for before, after in zip(truth, truth[1:]):  # odometry that turns a little too far each time
        step = inverse(before) @ after
        given.append(given[-1] @ perturb(step, np.array((0, 0, 0, 0, 0, 0.03))))
    assert distance(given[-1], truth[-1])[0] > 0.2
    found = localized(truth, random)
    placement = place(images_at(given), found, reasons(found), LIMIT, 2.0)
    assert placement.how == 'carried'
    assert len(placement.images) + len(placement.left_out) == 60
    assert len(placement.images) > 50
    off = errors(placement, truth)
    assert np.median(off[:, 0]) < 0.02 and off[:, 0].max() < 0.12  # no wrong one was believed


def test_without_poses_the_localized_ones_are_placed_and_the_others_named(random):
    truth = map_trajectory(20)
    found = localized(truth, random)
    images = [PosedImage(f'{k}.png', CAMERA, pixels=PIXELS) for k in range(20)]
    placement = place(images, found, reasons(found), LIMIT, 2.0)
    assert placement.how == 'localized' and len(placement.images) == 16
    assert placement.left_out == dict.fromkeys(('0.png', '5.png', '10.png', '15.png'),
                                               'too few matches')


def test_poses_at_another_scale_are_refused(random):
    truth = map_trajectory(30)
    found = localized(truth, random)
    larger = [pose.copy() for pose in truth]
    for pose in larger:
        pose[:3, 3] *= 1.2
    with pytest.raises(DataError, match=r'span 1\.\d+ times .* give poses in metres'):
        place(images_at(larger), found, reasons(found), LIMIT, 2.0)


def test_photographs_of_another_place_are_refused(random):
    truth = map_trajectory(12)
    found = [None] * 10 + [perturb(pose, random.normal(size=6)) for pose in truth[10:]]
    with pytest.raises(DataError, match='2 of 12 photographs could be localized .*too few match'):
        place(images_at(truth), found, reasons(found), LIMIT, 2.0)
    found = [perturb(pose, random.normal(size=6)) for pose in truth]  # all wrong
    with pytest.raises(DataError, match='contradict one another|give poses in metres'):
        place(images_at(truth), found, reasons(found), LIMIT, 2.0)


@pytest.mark.parametrize('probability, expected', [(0.9, True), (0.2, False), (np.nan, True)])
def test_a_judge_decides_where_there_is_one(probability, expected):
    found = PoseEstimate(np.eye(4), '', np.eye(6), 50, 60, 1.0, probability=probability)
    assert believed(found, 0.5) == expected
    assert not believed(PoseEstimate(None, 'no', None, 0, 0, np.nan), 0.5)
