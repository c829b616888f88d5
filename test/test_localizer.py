"""Localization from first pose to refinement, with a matcher that knows the truth."""

from dataclasses import replace
import math
import shutil

from analytic_field import SphereField
from fake_localizer import moved
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import working_view
from nerfmatch_ros.errors import ConfigError, MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, pose_distance, transform_points
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.calibration import Calibration
from nerfmatch_ros.localization.judge import Judge, LogisticModel
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.surface_points import surface_points
from nerfmatch_ros.matching.matcher import ImageTokens, MatcherConfig, Matches, PointTokens
from nerfmatch_ros.references import References
from nerfmatch_ros.scene_map import FieldConfig, SceneMap
import numpy as np
import pytest
from sphere_scene import CAMERA, FRAME, pose_at, POSES, sphere_images, sphere_references
from tiny_build import CAMERA as TINY_CAMERA
from tiny_build import tiny_images
import torch
from torch import nn
import torch.nn.functional as F

CAMERAS = {
    'map': CAMERA,
    'distorted': Camera('OPENCV', 240, 180, 190.0, 190.0, 119.0, 90.0, (-0.2, 0.04, 0.001, 0)),
    'fisheye': Camera('OPENCV_FISHEYE', 320, 240, 200.0, 200.0, 160.0, 119.0, (0.01, 0, 0, 0)),
}
TRUTH = pose_at(0.15, -0.1, 0.2, 0.2, 0.1)


class Oracle(nn.Module):
    """A matcher that projects the points with the true pose; some matches are wrong."""

    map_points, per_view = False, False

    def __init__(self, pose, camera, noise=0.3, outliers=0.2, blind=False):
        super().__init__()
        self.pose, self.noise, self.outliers = torch.from_numpy(pose), noise, outliers
        self.view, self.blind = working_view(camera, CAMERA.fx, 160), blind
        self.scale = torch.tensor(20.0)
        self.offered = []  # how many points each matching was offered

    def speed_up(self, dtype):
        self.dtype = dtype

    def encode_image(self, picture):
        shape = self.view.camera.height, self.view.camera.width
        assert picture.shape[1:] == shape
        cells = F.normalize(torch.ones(4, 8), dim=-1)
        return ImageTokens(cells, None, shape[0] // 8, shape[1] // 8)

    def encode_points(self, points, features):
        return PointTokens(FRAME.to_map(points), None)

    def match_coarse(self, tokens, points):
        self.offered.append(len(points.coarse))
        in_camera = transform_points(inverse(self.pose), points.coarse.double())
        seen = self.view.camera.sees(in_camera).nonzero()[:, 0]
        pixels = self.view.camera.project(in_camera[seen])
        generator = torch.Generator().manual_seed(len(seen))
        sides = torch.tensor([self.view.camera.width, self.view.camera.height])
        wild = torch.rand(len(seen), 2, generator=generator) * sides
        wrong = torch.rand(len(seen), generator=generator) < (1 if self.blind else self.outliers)
        pixels += self.noise * torch.randn(len(seen), 2, generator=generator)
        pixels = torch.where(wrong[:, None], wild, pixels.float())
        ones = torch.ones(len(seen))
        return Matches(pixels, seen, ones, ones)

    def match_fine(self, tokens, points, coarse):
        return coarse


@pytest.fixture(scope='module')
def references():
    return sphere_references(sphere_images())


def sphere_map(references, matcher):
    return SceneMap(
        FRAME, FieldConfig(), SphereField(), MatcherConfig(), matcher,
        References([view.name for view in references], [CAMERA] * len(references),
                   np.stack(POSES), torch.eye(8)[:len(references)],
                   torch.tensor([0] + [len(view.points) for view in references]).cumsum(0),
                   torch.cat([view.points for view in references]),
                   torch.cat([view.features for view in references])),
        surface_points(references, 400), torch.eye(8), CAMERA.fx, 80)


def make(references, camera=CAMERA, config=None, calibration=None, **oracle):
    scene_map = sphere_map(references, Oracle(TRUTH, camera, **oracle))
    localizer = Localizer(replace(scene_map, calibration=calibration or {}),
                          config or LocalizerConfig())
    return localizer, localizer.scene_map.matcher


def query(camera=CAMERA):
    grey = np.full((camera.height, camera.width, 3), 128, np.uint8)
    return PosedImage('query', camera, None, pixels=grey)


def distance(estimate, truth=TRUTH):
    return pose_distance(torch.from_numpy(estimate.map_from_camera), torch.from_numpy(truth))


@pytest.mark.parametrize('start', ['global', 'retrieval'])
@pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS.keys())
def test_the_pose_is_found_with_any_camera(references, camera, start):
    localizer, matcher = make(references, camera, LocalizerConfig(start=start))
    estimate = localizer.localize(query(camera))
    metres, radians = distance(estimate)
    assert metres < 0.04 and radians < 0.02 and estimate.reason == ''
    assert estimate.inliers > 30 and estimate.reprojection_error < 4 * camera.fx / CAMERA.fx
    assert 0 < estimate.position_std < 0.1 and len(matcher.offered) >= 2


def test_the_pose_of_the_photograph_is_never_used(references):
    localizer, _ = make(references)
    lying = replace(query(), map_from_camera=pose_at(0, 0, 0, 2.0))
    np.testing.assert_array_equal(localizer.localize(lying).map_from_camera,
                                  localizer.localize(query()).map_from_camera)


def test_localization_is_deterministic(references):
    first, second = make(references)[0], make(references)[0]
    poses = [localizer.localize(query()).map_from_camera for localizer in (first, first, second)]
    np.testing.assert_array_equal(poses[0], poses[1])
    np.testing.assert_array_equal(poses[0], poses[2])


def test_a_prior_is_looked_from_first(references):
    localizer, matcher = make(references)
    estimate = localizer.localize(query(), moved(TRUTH, 0.1, -0.05, 0.08, 0.02, 0, 0.05))
    assert distance(estimate)[0] < 0.02
    whole_map = len(localizer.scene_map.surface.points)
    assert whole_map not in matcher.offered


def look_away(pose):
    turned = pose.copy()
    turned[:3, :3] = pose[:3, :3] @ np.diag([-1.0, 1, -1])
    return turned


@pytest.mark.parametrize('prior', [
    look_away(TRUTH), pose_at(50, 0, 0), np.full((4, 4), np.nan),
], ids=['looking away', 'outside', 'not a number'])
def test_a_wrong_prior_does_no_harm(references, prior):
    localizer, matcher = make(references)
    estimate = localizer.localize(query(), prior)
    assert distance(estimate)[0] < 0.02
    assert len(localizer.scene_map.surface.points) in matcher.offered


def test_a_photograph_of_something_else_fails_with_a_reason(references):
    for start in ('global', 'retrieval'):
        localizer, _ = make(references, config=LocalizerConfig(start=start), blind=True)
        for prior in (None, TRUTH):
            estimate = localizer.localize(query(), prior)
            assert estimate.map_from_camera is None and estimate.covariance is None
            assert 'inliers' in estimate.reason and estimate.matches > 0


def test_refinement_looks_again_and_improves_a_coarse_first_pose(references):
    options = {'config': LocalizerConfig(rounds=0)}
    alone, matcher = make(references, **options)
    first = alone.localize(query())
    assert len(matcher.offered) == 1
    refined, matcher = make(references, config=LocalizerConfig(rounds=3))
    estimate = refined.localize(query())
    assert 2 <= len(matcher.offered) <= 4
    assert estimate.inliers >= 0.85 * first.inliers


def test_refine_solves_several_views_together_and_lands_nearer(references):
    start = moved(TRUTH, 0.06, -0.04, 0.05, 0.02, -0.01, 0.02)
    localizer, matcher = make(references, config=LocalizerConfig(
        rounds=0, refine=('views',), refined_views=5))
    single = localizer.localize(query(), start)
    views = len(matcher.offered)
    estimate = localizer.refine(query(), start, rounds=1)
    assert len(matcher.offered) == views + 5
    assert estimate.matches > 3 * single.matches
    assert distance(estimate)[0] < 0.02
    # Five views of the same picture are worth less than five pictures.
    assert estimate.position_std > single.position_std / math.sqrt(5)
    again = localizer.refine(query(), start, rounds=1)
    np.testing.assert_array_equal(again.map_from_camera, estimate.map_from_camera)


def test_a_map_without_calibration_says_nothing_of_probability(references):
    localizer, _ = make(references)
    estimate = localizer.localize(query(), TRUTH)
    assert estimate.evidence.inliers == estimate.inliers and math.isnan(estimate.probability)


def test_the_judge_of_the_map_judges_and_its_factor_scales_the_covariance(references):
    model = LogisticModel((0.0,) * 5, 1.5, 10)
    calibration = Calibration(4.0, 9.0, 0.05, 0.09, Judge(model, None))
    plain, _ = make(references, config=LocalizerConfig(covariance_scale=1.0))
    judged, _ = make(references, calibration=calibration.to_dict())
    before, after = (localizer.localize(query(), TRUTH) for localizer in (plain, judged))
    np.testing.assert_allclose(after.covariance, 4 * before.covariance)
    assert after.probability == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert after.evidence == before.evidence
    blind, _ = make(references, blind=True, calibration=calibration.to_dict())
    assert blind.localize(query()).probability == 0


def test_the_schedule_of_a_call_goes_before_that_of_the_map(references):
    localizer, matcher = make(references, config=LocalizerConfig(refine=('views',)))
    localizer.refine(query(), TRUTH, schedule=('match',))
    assert len(matcher.offered) == 1
    with pytest.raises(ConfigError, match="'look' is unknown"):
        localizer.refine(query(), TRUTH, schedule=('look',))


def test_an_alignment_by_another_schedule_is_not_judged(references):
    models = LogisticModel((0.0,) * 5, 1.5, 10), LogisticModel((0.0,) * 11, 1.5, 10)
    calibration = Calibration(4.0, 9.0, 0.05, 0.09, Judge(*models)).to_dict()
    localizer, _ = make(references, calibration=calibration)
    aligned = Alignment(TRUTH, '', covariance=1e-4 * np.eye(6), residual_before=0.1,
                        residual_after=0.05, correlation=0.9, overlap=0.8)
    steps = {'photometric': lambda pose: aligned, 'inerf': lambda pose: aligned}
    made = localizer._steps
    localizer._steps = lambda image: {**made(image), **steps}
    own = localizer.refine(query(), TRUTH)
    other = localizer.refine(query(), TRUTH, schedule=('match', 'inerf'))
    assert own.probability == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert own.evidence.photometric.correlation == 0.9
    assert math.isnan(other.probability) and other.evidence.photometric is None
    for estimate in (own, other):
        np.testing.assert_allclose(estimate.covariance, 9e-4 * np.eye(6))


def test_refine_ends_when_the_pose_rests(references):
    localizer, matcher = make(references, config=LocalizerConfig(refined_views=1))
    localizer.refine(query(), TRUTH, rounds=20)
    assert len(matcher.offered) < 20


def test_refine_without_evidence_gives_a_reason_and_no_pose(references):
    localizer, _ = make(references, blind=True)
    estimate = localizer.refine(query(), TRUTH, rounds=2)
    assert estimate.map_from_camera is None and estimate.reason


def test_similar_views_are_poses_of_the_map_best_first(references):
    localizer, _ = make(references)
    views = localizer.similar_views(query(), 3)
    assert views.shape == (3, 4, 4)
    assert all(any(np.array_equal(view, pose) for pose in POSES) for view in views)
    np.testing.assert_array_equal(localizer.similar_views(query(), 1)[0], views[0])


def test_an_estimate_keeps_its_matches(references):
    estimate = make(references)[0].localize(query())
    assert estimate.pixels.shape == (estimate.matches, 2)
    assert estimate.points.shape == (estimate.matches, 3)
    assert estimate.inlier_mask.sum() == estimate.inliers


def test_too_few_inliers_are_no_pose(references):
    localizer, _ = make(references, config=LocalizerConfig(min_inliers=10 ** 4))
    assert localizer.localize(query()).map_from_camera is None


def test_the_covariance_is_scaled(references):
    stds = [make(references, config=LocalizerConfig(covariance_scale=scale))[0].localize(
        query()).position_std for scale in (1.0, 25.0)]
    assert stds[1] == pytest.approx(5 * stds[0], rel=0.2) or stds[1] > 3 * stds[0]


def test_the_map_is_shown_as_a_camera_sees_it(references):
    localizer, _ = make(references)
    expected = sphere_images(poses=[TRUTH])[0].pixels
    np.testing.assert_array_equal(localizer.render(CAMERA, TRUTH), expected)


def test_a_map_without_its_own_options_uses_the_defaults(references):
    assert Localizer(sphere_map(references, Oracle(TRUTH, CAMERA))).config == LocalizerConfig()
    with pytest.raises(ConfigError, match='start'):
        LocalizerConfig(start='guess')


def test_a_map_on_disk_localizes_deterministically(tiny_map, room):
    localizers = [Localizer.load(tiny_map, threads=1) for _ in range(2)]
    assert localizers[0].config.min_inliers == 4
    image = tiny_images(room, 4)[1]
    estimates = [localizer.localize(image) for localizer in (*localizers, localizers[0])]
    for other in estimates[1:]:
        assert (other.matches, other.inliers, other.reason) == (
            estimates[0].matches, estimates[0].inliers, estimates[0].reason)
        np.testing.assert_array_equal(other.map_from_camera, estimates[0].map_from_camera)


@pytest.mark.parametrize('start', ['global', 'retrieval'])
def test_a_picture_of_noise_is_refused_by_a_map_on_disk(tiny_map, start):
    localizer = Localizer.load(tiny_map, config=LocalizerConfig(start=start))
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for pixels in (noise, np.zeros_like(noise)):
        estimate = localizer.localize(PosedImage('noise', TINY_CAMERA, pixels=pixels))
        assert estimate.map_from_camera is None and estimate.reason != ''


@pytest.mark.parametrize('prior', [pose_at(1e6, 0, 0), np.full((4, 4), np.nan)])
def test_a_map_on_disk_survives_a_senseless_prior(tiny_map, room, prior):
    estimate = Localizer.load(tiny_map).localize(tiny_images(room, 4)[0], prior)
    assert estimate.map_from_camera is None or np.isfinite(estimate.map_from_camera).all()


def test_resolutions_of_one_photograph_match_alike(tiny_map, room):
    localizer = Localizer.load(tiny_map)
    image, descriptors = tiny_images(room, 4)[2], []
    for width, height in ((160, 120), (320, 240), (640, 480)):
        view = working_view(TINY_CAMERA.scaled_to(width, height),
                            localizer.scene_map.working_focal, 2 * 96)
        picture = view.picture(np.repeat(np.repeat(
            image.pixels, height // 120, 0), width // 160, 1))
        tokens = localizer.scene_map.matcher.encode_image(
            torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
        descriptors.append(F.normalize(tokens.coarse, dim=-1))
    for other in descriptors[1:]:
        assert (descriptors[0] * other).sum(-1).median() > 0.98


def test_options_of_the_map_are_checked(tiny_map, tmp_path):
    folder = tmp_path / 'map'
    shutil.copytree(tiny_map, folder)
    text = (folder / 'map.yaml').read_text()
    (folder / 'map.yaml').write_text(text.replace('min_inliers:', 'least_inliers:'))
    with pytest.raises((ConfigError, MapError), match='least_inliers'):
        Localizer.load(folder)


def test_saving_memory_halves_what_is_computed_at_once_and_leaves_the_pose(references):
    localizer, _ = make(references)
    before = localizer.localize(query(), prior=TRUTH)
    config = localizer.config
    localizer.save_memory()
    assert localizer.config.top_k == config.top_k // 2
    assert localizer.config.refined_views == config.refined_views // 2
    assert localizer.own_config.top_k == config.top_k // 2, 'a parameter must not undo it'
    after = localizer.localize(query(), prior=TRUTH)
    np.testing.assert_allclose(after.map_from_camera, before.map_from_camera, atol=1e-5)
