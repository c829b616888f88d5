"""The paper's plain pipeline on a map of ours: what every shortcut is measured against.

Encode the image; retrieve; for one reference view after another march every ray from end to end,
match with attention and both softmaxes written out, in float32; solve all matches; then render at
the estimate the same way and solve again until it rests, at most as often as the map's own
localizer may. It gives the poses of `Localizer` and takes its time.
"""

from contextlib import AbstractContextManager, nullcontext
import math

from nerfmatch_ros.config import from_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import as_tensor, WorkingView
from nerfmatch_ros.evaluation.full_marching import FullMarching
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.localization.absolute_pose import (
    AbsolutePoseOptions,
    PoseEstimate,
    solve_absolute_pose,
)
from nerfmatch_ros.localization.iterative_refiner import AT_REST
from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.matching.coarse_matching import CoarseMatches
from nerfmatch_ros.matching.matcher import COARSE_STRIDE, ImageTokens, PointTokens
from nerfmatch_ros.matching.paper_matcher import PaperMatcher
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.retrieval import describe, nearest
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel, SDPBackend
import torch.nn.functional as F

# Rays marched together: on a CPU more leave the cache and took longer, on a GPU they fill it.
RAYS_ON_CPU, RAYS_ON_GPU = 128, 4096


def written_out_matches(similarity: Tensor, threshold: float) -> CoarseMatches:
    """Pair cells with points by both softmaxes and their product, each (n, m) in full.

    The pairs are those that are best for both sides and surer than `threshold`, one for a cell.
    """
    probability = similarity.softmax(dim=0) * similarity.softmax(dim=1)
    chosen = (probability > threshold) \
        & (probability == probability.amax(dim=1, keepdim=True)) \
        & (probability == probability.amax(dim=0, keepdim=True))
    found, point = chosen.max(dim=1)
    cells = found.nonzero()[:, 0]
    points = point[cells]
    return CoarseMatches(cells, points, probability[cells, points])


class Straightforward:
    """Localizes images in one map as the paper describes it, with the map's own settings.

    It shares no network with a `Localizer`, which may change the precision of its own: give each
    a map of its own.
    """

    def __init__(self, scene_map: SceneMap, config: LocalizerConfig | None = None):
        self.scene_map = scene_map
        self.config = config or from_dict(LocalizerConfig, scene_map.localization,
                                          'map.yaml: localization')
        self.device = next(scene_map.field.parameters()).device
        self.clock = None  # of a measurement: anything with a context `stage(name)`
        self._field = FullMarching(scene_map.field)
        self._chunk = RAYS_ON_CPU if self.device.type == 'cpu' else RAYS_ON_GPU

    @torch.inference_mode()
    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Estimate the pose of an image from its pixels and camera.

        prior: (4, 4) map_from_camera to render first, in place of reference views; if it leads
        nowhere they are tried. A failure is a result: no pose and the reason.
        """
        with sdpa_kernel(SDPBackend.MATH):  # attention as a matrix in memory
            with self._stage('picture'):
                view = self.scene_map.working_view(image.camera)
                picture = as_tensor(view.picture(image.rgb())).to(self.device)
            with self._stage('encode'):
                tokens = self.scene_map.matcher.encode_image(picture)
            estimate = None
            if prior is not None:
                estimate = self._look_from(prior, view, tokens)
            if estimate is None or estimate.map_from_camera is None:
                estimate = self._first_pose(image, view, tokens)
            with self._stage('refine'):
                return self._refined(estimate, view, tokens)

    def _stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage where somebody measures."""
        return nullcontext() if self.clock is None else self.clock.stage(name)

    def _first_pose(
        self, image: PosedImage, view: WorkingView, tokens: ImageTokens,
    ) -> PoseEstimate:
        """Match with the most similar reference views, one after the other; solve all matches."""
        with self._stage('retrieval'):
            retrieved = self._retrieve(image, tokens)
        poses = [self.scene_map.reference_poses[k] for k in retrieved]
        found = [self._match(pose, view, tokens) for pose in poses]
        return self._solve(found, view, self.config.first_error)

    def _retrieve(self, image: PosedImage, tokens: ImageTokens) -> list[int]:
        """Numbers of the reference views to match with, best first."""
        known = self.scene_map.neighbours.get(image.name)
        if known:
            return known[:self.config.top_k]
        cells = F.normalize(tokens.coarse.float(), dim=-1)
        descriptor = describe(cells, self.scene_map.words, self.scene_map.matcher.scale.item())
        return nearest(descriptor.cpu(), self.scene_map.references.descriptors,
                       self.config.top_k)[0].tolist()

    def _look_from(
        self, map_from_camera: np.ndarray, view: WorkingView, tokens: ImageTokens,
    ) -> PoseEstimate:
        found = [self._match(map_from_camera, view, tokens)]
        return self._solve(found, view, self.config.refined_error)

    def _refined(
        self, estimate: PoseEstimate, view: WorkingView, tokens: ImageTokens,
    ) -> PoseEstimate:
        """Render at the estimate and solve again until it rests; each new pose replaces the old.

        The localizer's test, more inliers than before, compares views of one kind: several
        reference views together always have more inliers than one rendering.
        """
        for _ in range(self.config.rounds):
            if estimate.map_from_camera is None:
                break
            found = self._look_from(estimate.map_from_camera, view, tokens)
            if found.map_from_camera is None:
                break
            moved = pose_distance(*(torch.from_numpy(pose.map_from_camera)
                                    for pose in (found, estimate)))
            estimate = found
            if moved[0] < AT_REST[0] and moved[1] < AT_REST[1]:
                break
        return estimate

    def _match(
        self, map_from_camera: np.ndarray, view: WorkingView, tokens: ImageTokens,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render at a pose and match: pixels (M, 2) of the photograph, points (M, 3), metres."""
        scene_map, matcher = self.scene_map, self.scene_map.matcher
        with self._stage('reference'):
            rendered = render_view(
                self._field, scene_map.frame, view.camera,
                torch.from_numpy(np.ascontiguousarray(map_from_camera)), stride=COARSE_STRIDE,
                feature_layer=scene_map.matcher_config.feature_layer, chunk=self._chunk)
            solid = rendered.solid()
            features = None if rendered.features is None else rendered.features[solid]
            points = rendered.points[solid]
            encoded = scene_map.encode_points(points, features)
        with self._stage('match'):
            coarse = self._match_coarse(tokens, encoded)
        with self._stage('fine'):
            matches = matcher.match_fine(tokens, encoded, coarse)
            pixels = view.pixels_in_source(matches.pixels.cpu()).numpy()
            return pixels, points[matches.points].double().cpu().numpy()

    def _match_coarse(self, image: ImageTokens, points: PointTokens) -> CoarseMatches:
        matcher, threshold = self.scene_map.matcher, self.scene_map.matcher_config.threshold
        if not len(points.coarse):
            return matcher.match_coarse(image, points)
        if not isinstance(matcher, PaperMatcher):
            cells, tokens = (F.normalize(side.coarse.float(), dim=-1) for side in (image, points))
            return written_out_matches(matcher.scale * cells @ tokens.T, threshold)
        cells, tokens = matcher.interact(image.coarse, points.coarse)
        found = written_out_matches(matcher.similarity(cells, tokens), threshold)
        return CoarseMatches(found.cells, found.points, found.confidence, tokens[found.points])

    def _solve(
        self, found: list[tuple[np.ndarray, np.ndarray]], view: WorkingView, largest_error: float,
    ) -> PoseEstimate:
        """Solve the matches of all views together; limits as in `Localizer`."""
        pixels, points = (np.concatenate(part) for part in zip(*found))
        source_scale = math.sqrt(
            view.source.fx / view.camera.fx * view.source.fy / view.camera.fy)
        with self._stage('pnp'):
            return solve_absolute_pose(pixels, points, view.source, options=AbsolutePoseOptions(
                max_reprojection_error=largest_error * source_scale,
                min_inliers=self.config.min_inliers,
                min_inlier_ratio=self.config.min_inlier_ratio))
