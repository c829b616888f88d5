"""Localizing by scene geometry, alone or as a start for matching; localizers by name."""

from dataclasses import replace
import math

from fake_localizer import moved
from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.evaluation.evaluate import evaluate
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import pose_distance, transform_points
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.geometry_trust import GeometryCalibration
from nerfmatch_ros.localization.hybrid_localizer import HybridLocalizer, LED, MISLED, UNSURE
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.localization.logistic_model import LogisticModel
from nerfmatch_ros.localization.make_localizer import load_localizer, make_localizer
from nerfmatch_ros.localization.scene_geometry_localizer import SceneGeometryLocalizer
from nerfmatch_ros.scene_geometry import PredictedGeometry, SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
import torch

SMALL = SceneGeometryConfig(channels=16, width=16, longest_side=80, working_focal=64.0)
LENS = Camera('OPENCV', 240, 180, 190.0, 190.0, 119.0, 90.0, (-0.2, 0.04, 0.001, 0))
TRUTH = moved(np.eye(4), 0.3, -0.2, 0.5, 0.1, -0.3, 0.05)
SAME = PoseEstimate(None, 'not refined', None, 0, 0, math.nan)
SURE = GeometryCalibration(4.0, 0.02, 0.01, 0.3, 0.1, LogisticModel((0.0,) * 7, 3.0, 50))
UNLIKELY = replace(SURE, model=LogisticModel((0.0,) * 7, -1.0, 50))  # a probability of 0.27
HOPELESS = replace(SURE, model=LogisticModel((0.0,) * 7, -4.0, 50))


class Oracle(SceneGeometry):
    """Knows where the camera is and sees a wavy wall; errs by noise, or is given a wrong pose."""

    def __init__(self, pose=TRUTH, noise=0.0):
        super().__init__(SMALL)
        self.pose, self.noise, self.asked = torch.from_numpy(pose), noise, 0
        self.eval()

    def forward(self, pictures, rays):
        super().forward(pictures, rays)  # refuses rays of another camera
        self.asked += 1
        rays = rays.flatten(1, 2)
        depth = 2 + torch.sin(5 * rays[..., 0]) + rays[..., 1]
        points = transform_points(self.pose, (depth[..., None] * rays).double()).float()
        noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
        return PredictedGeometry(
            points + self.noise * noise, depth, torch.full_like(depth, 0.8), rays)


@pytest.fixture(scope='module')
def plain(tiny_map):
    """A map without scene geometry."""
    return SceneMap.load(tiny_map)


def with_geometry(scene_map, network, calibration=None):
    return replace(
        scene_map, scene_geometry=network,
        scene_geometry_calibration={} if calibration is None else calibration.to_dict())


def photograph(camera=LENS):
    picture = np.random.default_rng(3).integers(0, 256, (camera.height, camera.width, 3), np.uint8)
    return PosedImage('query', camera, pixels=picture)


def errors(estimate):
    return [float(value) for value in pose_distance(
        torch.from_numpy(estimate.map_from_camera), torch.from_numpy(TRUTH))]


@pytest.mark.parametrize('camera', [LENS, Camera('PINHOLE', 160, 96, 130.0, 130.0, 79.5, 47.5)])
def test_exact_geometry_localizes_a_camera_of_any_lens_and_size(plain, camera):
    localizer = SceneGeometryLocalizer(with_geometry(plain, Oracle(), SURE))
    estimate = localizer.localize(photograph(camera))
    metres, radians = errors(estimate)
    assert metres < 1e-4 and radians < 1e-4
    assert estimate.reason == '' and estimate.source == 'scene geometry'
    assert estimate.probability == pytest.approx(1 / (1 + math.exp(-3)))
    assert np.linalg.eigvalsh(estimate.covariance).min() > 0
    assert estimate.inliers == estimate.matches > 30 and estimate.reprojection_error < 0.1


def test_the_covariance_grows_with_what_cells_contradict_and_with_the_calibration(plain):
    found = {
        (noise, scale): SceneGeometryLocalizer(with_geometry(
            plain, Oracle(noise=noise), replace(
                SURE, covariance_scale=scale, common_m=1e-9, common_rad=1e-9)))
        .localize(photograph()) for noise in (0.05, 0.2) for scale in (4.0, 16.0)}
    assert found[0.2, 4.0].position_std > 3 * found[0.05, 4.0].position_std
    assert found[0.2, 16.0].position_std == pytest.approx(2 * found[0.2, 4.0].position_std)
    assert found[0.2, 4.0].reprojection_error > 2 * found[0.05, 4.0].reprojection_error
    together = SceneGeometryLocalizer(with_geometry(
        plain, Oracle(noise=0.05), replace(SURE, common_m=0.3))).localize(photograph())
    assert together.position_std > 0.3 > 3 * found[0.05, 4.0].position_std


def test_a_pose_that_is_more_likely_wrong_is_none_and_the_reason_says_so(plain):
    estimate = SceneGeometryLocalizer(
        with_geometry(plain, Oracle(), UNLIKELY)).localize(photograph())
    assert estimate.map_from_camera is None and estimate.covariance is None
    assert estimate.reason == \
        'the network is not sure that the pose is within 0.3 m and 5.73 degrees'
    assert estimate.probability == pytest.approx(0.27, abs=0.01)


def test_without_a_calibration_geometry_that_contradicts_itself_is_no_pose(plain):
    fine, torn = (SceneGeometryLocalizer(with_geometry(plain, Oracle(noise=noise)))
                  .localize(photograph()) for noise in (0.02, 3.0))
    assert fine.map_from_camera is not None and math.isnan(fine.probability)
    assert torn.map_from_camera is None and 'differs' in torn.reason


def test_no_prior_is_looked_at_and_the_same_image_gives_the_same_pose(plain):
    localizer = SceneGeometryLocalizer(with_geometry(plain, Oracle(noise=0.1), SURE))
    first, second = localizer.localize(photograph()), localizer.localize(
        photograph(), moved(TRUTH, 0.5))
    assert np.array_equal(first.map_from_camera, second.map_from_camera)


def test_an_untrained_network_answers_with_a_pose_or_a_reason(plain):
    torch.manual_seed(0)
    network = SceneGeometry(SMALL).eval().requires_grad_(False)
    estimate = SceneGeometryLocalizer(with_geometry(plain, network)).localize(photograph())
    assert (estimate.map_from_camera is None) == bool(estimate.reason)


class Watched(HybridLocalizer):
    """Matching leads to a pose from near the truth, and nowhere from elsewhere."""

    def _look_from(self, map_from_camera, query):
        self.looked.append(map_from_camera)
        near = np.linalg.norm(map_from_camera[:3, 3] - TRUTH[:3, 3]) < 0.2
        return replace(self.answer, map_from_camera=TRUTH if near else None)

    def _solve(self, query, seen, *_, **__):
        self.searched += 1
        return self.answer


def watched(plain, network, calibration=SURE, depth=2.0, refine=()):
    localizer = Watched(with_geometry(plain, network, calibration),
                        LocalizerConfig(rounds=0, min_inliers=4, refine=refine))
    localizer.looked, localizer.searched = [], 0
    alone = SceneGeometryLocalizer(with_geometry(plain, Oracle(), SURE)).localize(photograph())
    localizer.answer = replace(
        alone, source='splatted', reason='', inlier_mask=np.ones(4, bool),
        points=np.tile(TRUTH[:3, 3] + depth * TRUTH[:3, 2], (4, 1)))
    return localizer


def test_the_hybrid_looks_from_the_pose_of_the_network_and_searches_nothing(plain):
    localizer = watched(plain, Oracle(moved(TRUTH, 0.1)))
    estimate = localizer.localize(photograph())
    assert errors(estimate)[0] < 1e-9 and localizer.searched == 0
    assert len(localizer.looked) == 1
    np.testing.assert_allclose(localizer.looked[0], moved(TRUTH, 0.1), atol=1e-4)
    assert estimate.source == f'splatted, {LED}'


def test_the_hybrid_looks_again_where_matching_moved_the_pose_far(plain):
    localizer = watched(plain, Oracle(moved(TRUTH, 0.1)), depth=0.1)  # a wall at hand
    assert localizer.localize(photograph()).source == f'splatted, {LED}'
    assert len(localizer.looked) == 2 and localizer.searched == 0
    np.testing.assert_allclose(localizer.looked[1], TRUTH)


@pytest.mark.parametrize('network, calibration, looks, said', [
    (Oracle(moved(TRUTH, 5.0)), SURE, 1, MISLED),
    (Oracle(moved(TRUTH, 0.1)), HOPELESS, 0, UNSURE),
    (Oracle(moved(TRUTH, math.nan)), SURE, 0, UNSURE)])
def test_a_network_that_is_wrong_or_unsure_leaves_it_to_the_ordinary_start(
        plain, network, calibration, looks, said):
    localizer = watched(plain, network, calibration)
    estimate = localizer.localize(photograph())
    assert estimate.map_from_camera is not None
    assert len(localizer.looked) == looks and localizer.searched == 1
    assert estimate.source == f'splatted, {said}'


# Noise is aligned with nothing: the last one leaves the pose as it was found.
@pytest.mark.parametrize('refine, looks', [
    ((), 0), (('match', 'photometric'), 1), (('photometric',), 0)])
@pytest.mark.parametrize('network, calibration, looked, said', [
    (Oracle(moved(TRUTH, 0.1)), SURE, 1, LED), (Oracle(moved(TRUTH, 5.0)), SURE, 1, MISLED),
    (Oracle(), HOPELESS, 0, UNSURE)])
def test_a_refined_pose_of_the_hybrid_tells_where_it_came_from(
        plain, network, calibration, looked, said, refine, looks):
    localizer = watched(plain, network, calibration, refine=refine)
    estimate = localizer.localize_and_refine(photograph())
    assert len(localizer.looked) == looked + looks
    assert estimate.source == f'splatted, {said}'
    # From a prior the network is not asked, and what it said of another image is forgotten.
    assert localizer.localize_and_refine(photograph(), TRUTH).source == 'splatted'


def test_the_hybrid_tries_an_unlikely_pose_because_matching_judges_better(plain):
    localizer = watched(plain, Oracle(moved(TRUTH, 0.1)), UNLIKELY)
    assert localizer.localize(photograph()).source == f'splatted, {LED}'


def test_a_prior_that_leads_to_a_pose_asks_no_network(plain):
    network = Oracle()
    localizer = watched(plain, network)
    estimate = localizer.localize(photograph(), moved(TRUTH, 0.1))
    assert errors(estimate)[0] < 1e-9 and network.asked == 0
    assert estimate.source == 'splatted'
    # One that leads nowhere leaves it to the network.
    assert localizer.localize(photograph(), moved(TRUTH, 4.0)).source == f'splatted, {LED}'


def test_an_evaluation_judges_the_network_by_its_own_limit(plain, tmp_path):
    # 15 cm off: right for this network, and wrong for the judge of the map.
    localizer = SceneGeometryLocalizer(
        with_geometry(plain, Oracle(moved(TRUTH, 0.15)), SURE))
    image = replace(photograph(), map_from_camera=TRUTH)
    assert localizer.judged_limit == (0.3, 0.1)
    reliable = evaluate(localizer, [image], tmp_path)['reliability']
    assert reliable['sure'] == 1 and reliable['sure_but_wrong'] == 0
    localizer.config, localizer.refines = LocalizerConfig(refine=('match',)), True
    assert localizer.judged_limit is None  # the judge of the map has the last word


KINDS = {'nerfmatch': Localizer, 'scene_geometry': SceneGeometryLocalizer,
         'hybrid': HybridLocalizer}


@pytest.mark.parametrize('name', KINDS)
def test_localizers_are_made_by_name(plain, name):
    scene_map = with_geometry(plain, Oracle(), SURE)
    assert type(make_localizer(scene_map, name)) is KINDS[name]
    says = replace(scene_map, localization=to_dict(LocalizerConfig(localizer=name)))
    assert type(make_localizer(says)) is KINDS[name]
    assert type(make_localizer(says, 'nerfmatch')) is Localizer
    assert type(make_localizer(scene_map, config=LocalizerConfig(localizer=name))) is KINDS[name]


def test_a_map_that_says_nothing_is_matched_with(plain):
    assert type(make_localizer(plain)) is Localizer
    assert type(make_localizer(with_geometry(plain, Oracle(), SURE))) is Localizer


@pytest.mark.parametrize('name', ['scene_geometry', 'hybrid'])
def test_a_map_without_scene_geometry_says_what_helps(plain, name):
    with pytest.raises(ConfigError, match=f"'{name}'.*--scene-geometry.*'nerfmatch'"):
        make_localizer(plain, name)


def test_unknown_localizers_are_refused(plain):
    with pytest.raises(ConfigError, match="'magic' is unknown"):
        make_localizer(plain, 'magic')
    with pytest.raises(ConfigError, match="'magic' is unknown"):
        LocalizerConfig(localizer='magic')


def test_poses_of_the_network_are_refined_only_where_that_is_asked_for(plain, tmp_path):
    with_geometry(plain, SceneGeometry(SMALL), SURE).save(tmp_path / 'map')

    def steps(name, refine):
        localizer = load_localizer(tmp_path / 'map', name, refine=refine)
        refined = []
        localizer.localize = lambda *_: PoseEstimate(TRUTH, '', np.eye(6), 9, 9, 0.5)
        localizer.refine = lambda *_: refined.extend(localizer.config.refine) or SAME
        localizer.localize_and_refine(photograph())
        return tuple(refined)

    assert steps('scene_geometry', None) == () == steps('hybrid', 'none')
    assert steps('scene_geometry', 'none') == ()
    assert steps('hybrid', None) == steps('scene_geometry', 'map') == ('match', 'photometric')
    assert steps('scene_geometry', 'match') == ('match',)
    assert str(load_localizer(tmp_path / 'map', 'hybrid', precision='bfloat16').precision) \
        == 'torch.bfloat16'
