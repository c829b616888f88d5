"""From an image to a pose: find a first pose in the map, look from it and match again, refine."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
import math
from pathlib import Path

from nerfmatch_ros.config import from_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import as_tensor, WorkingView
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb
from nerfmatch_ros.localization.absolute_pose import (
    AbsolutePoseOptions,
    floored,
    PoseEstimate,
    solve_absolute_pose,
)
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.calibration import Calibration
from nerfmatch_ros.localization.gradient_refiner import refine_by_gradient
from nerfmatch_ros.localization.iterative_refiner import AT_REST, is_near, refine
from nerfmatch_ros.localization.judge import evidence_of, Judge, photometric_evidence
from nerfmatch_ros.localization.map_views import MapViews, Seen
from nerfmatch_ros.localization.photometric_refiner import (
    PhotometricConfig,
    refine_photometrically,
)
from nerfmatch_ros.localization.schedule import checked_schedule, Refinement, run_schedule
from nerfmatch_ros.matching.matcher import COARSE_STRIDE, ImageTokens, Matches
from nerfmatch_ros.matching.view_matching import match_views
from nerfmatch_ros.memory import keep_freed_memory
from nerfmatch_ros.precision import check_precision, inference_dtype
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.retrieval import describe, RetrievalIndex
from nerfmatch_ros.scene_map import SceneMap
from nerfmatch_ros.stage_clock import StageClock
import numpy as np
import torch
from torch import Tensor

LOCALIZERS = ('nerfmatch', 'scene_geometry', 'hybrid')  # see make_localizer.py
# How far the views of `refine` lie around its estimate (standard deviations).
NEARBY_SHARE = 0.01  # of the map's extent
NEARBY_ANGLE = 0.03  # radians


@dataclass(frozen=True)
class LocalizerConfig:
    """How an image is localized; a map carries the values it was built with."""

    # Which one: 'nerfmatch', or in maps with scene geometry 'scene_geometry' or 'hybrid'.
    localizer: str = 'nerfmatch'
    start: str = 'global'  # 'global': against the whole map's surface; 'retrieval': nearest views
    top_k: int = 5  # reference views of a retrieval, solved together
    rounds: int = 3  # most rounds of iterative refinement
    first_error: float = 8.0  # working pixels, largest reprojection error of the first solve
    refined_error: float = 4.0  # working pixels, the same after looking from the estimate
    min_inliers: int = 30
    min_inlier_ratio: float = 0.1
    # Factor on the covariance of the solve, in a map that was not calibrated. Errors of
    # neighbouring matches and of the map are not independent.
    covariance_scale: float = 25.0
    # Steps of a refinement, one after the other: match, views, photometric, inerf.
    refine: tuple[str, ...] = ('match', 'photometric')
    # Of the networks: float32, bfloat16, float16, or auto, which takes half precision where the
    # device computes with it at full speed.
    precision: str = 'auto'
    least_coverage: float = 0.4  # of a view by the surface cache; below, the field is rendered
    refined_views: int = 5  # views around an estimate whose matches the step 'views' solves
    photometric: PhotometricConfig = PhotometricConfig()

    def __post_init__(self):
        """Refuse unknown localizers, ways to start and steps."""
        if self.localizer not in LOCALIZERS:
            raise ConfigError(f"localizer '{self.localizer}' is unknown; "
                              f'use {", ".join(LOCALIZERS[:-1])} or {LOCALIZERS[-1]}')
        if self.start not in ('global', 'retrieval'):
            raise ConfigError(f"localization start '{self.start}' is unknown; "
                              'use global or retrieval')
        checked_schedule(self.refine)
        check_precision(self.precision)
        if not 0 <= self.least_coverage <= 1:
            raise ConfigError(f'least_coverage is {self.least_coverage:g}; '
                              'it is a share, from 0 to 1')


@dataclass(frozen=True)
class Query:
    """An image as the steps of a localization need it."""

    image: PosedImage
    view: WorkingView
    picture: Tensor  # (3, h, w) in [0, 1], of view.camera
    tokens: ImageTokens


class Localizer:
    """Localizes images in one map; call it from one thread at a time.

    The same image gives the same pose: nothing is random, and what is kept of the map changes no
    result. The map's matcher is made ready for the device and precision of the newest localizer:
    several with different precisions need a map each.
    """

    refines = True  # whether `localize_and_refine` does; `refine` does in any case

    def __init__(self, scene_map: SceneMap, config: LocalizerConfig | None = None):
        self.scene_map = scene_map
        self.config = config or from_dict(LocalizerConfig, scene_map.localization,
                                          'map.yaml: localization')
        self.own_config = self.config  # as the map or the caller says; `config` may be replaced
        self.calibration = Calibration.from_dict(scene_map.calibration) \
            if scene_map.calibration else None
        self.device = next(scene_map.field.parameters()).device
        self.set_precision(self.config.precision)
        self._index = RetrievalIndex(scene_map.references.descriptors)
        self.views = MapViews(scene_map, self.device)
        self.clock: StageClock | None = None  # of a measurement

    def set_precision(self, name: str) -> None:
        """Compute the networks in a precision: float32, bfloat16, float16 or auto."""
        self.precision = inference_dtype(name, self.device)
        self.scene_map.matcher.speed_up(self.precision)

    @property
    def map_sha256(self) -> str:
        """Identity of the map in use; '' for one that was not read from a folder."""
        return self.scene_map.sha256

    @staticmethod
    def load(
        folder: Path, device: str = 'cpu', threads: int | None = None,
        config: LocalizerConfig | None = None,
    ) -> 'Localizer':
        """Load a map and make ready on a device; threads: of the CPU, None leaves them."""
        return Localizer(load_map(folder, device, threads), config)

    @torch.inference_mode()
    def localize(self, image: PosedImage, prior: np.ndarray | None = None) -> PoseEstimate:
        """Estimate the pose of an image from its pixels and camera.

        prior: (4, 4) map_from_camera, a rough pose to look from first; if it leads nowhere the
        whole map is tried. A failure is a result: no pose and the reason.
        """
        query = self._prepare(image)
        estimate = None
        if prior is not None:
            estimate = self._look_from(prior, query)
        if estimate is None or estimate.map_from_camera is None:
            estimate, prior = self._first_pose(query), None
        rest = same_view(estimate, query.view)
        if prior is None or not is_near(estimate.map_from_camera, prior, rest):
            with self._stage('refine'):
                estimate = refine(
                    estimate, lambda best: self._look_from(best.map_from_camera, query),
                    self.config.rounds, at_rest=rest)
        return self._judged(estimate)

    @torch.inference_mode()
    def refine(
        self, image: PosedImage, map_from_camera: np.ndarray, rounds: int = 1, *,
        schedule: Sequence[str] | None = None,
    ) -> PoseEstimate:
        """Improve a pose (4, 4) of an image by the steps of a schedule; None: the map's own.

        The steps are those of `LocalizerConfig.refine`; they are repeated for `rounds` rounds or
        until the pose rests. The same call gives the same pose. A failure is a result: no pose and
        the reason.
        """
        query = self._prepare(image)
        steps = checked_schedule(self.config.refine if schedule is None else schedule)
        estimate = None
        for _ in range(rounds):
            found = self._finished(
                run_schedule(map_from_camera, steps, self._steps(query)), steps)
            if found.map_from_camera is None:
                return found if estimate is None else estimate
            rests = is_near(found.map_from_camera, map_from_camera, AT_REST)
            estimate, map_from_camera = found, found.map_from_camera
            if rests:
                break
        return estimate

    def localize_and_refine(
        self, image: PosedImage, prior: np.ndarray | None = None,
    ) -> PoseEstimate:
        """Estimate the pose of an image as well as the map can, however long it takes.

        prior: (4, 4), as for `localize`. A pose that the refinement cannot hold is given as
        `localize` found it.
        """
        estimate = self.localize(image, prior)
        if estimate.map_from_camera is None or not (self.refines and self.config.refine):
            return estimate
        refined = self.refine(image, estimate.map_from_camera)
        return estimate if refined.map_from_camera is None else refined

    def save_memory(self):
        """Halve what is computed at once: rays, which costs time, and views matched together."""
        self.views.save_memory()
        self.own_config, self.config = (
            replace(config, top_k=max(1, config.top_k // 2),
                    refined_views=max(1, config.refined_views // 2))
            for config in (self.own_config, self.config))

    @torch.inference_mode()
    def similar_views(self, image: PosedImage, count: int) -> np.ndarray:
        """Give the poses (count, 4, 4) of the reference views most like an image, best first."""
        tokens = self._prepare(image).tokens
        return self.scene_map.reference_poses[self._nearest_views(tokens, count)]

    @torch.inference_mode()
    def render(self, camera: Camera, map_from_camera: np.ndarray) -> np.ndarray:
        """Show the field as a camera at a pose sees it: (H, W, 3) uint8 RGB."""
        rendered = render_view(self.scene_map.field, self.scene_map.frame, camera,
                               torch.from_numpy(np.asarray(map_from_camera)), stride=1,
                               colour=True, chunk=self.views.rays_at_once)
        picture = (rendered.colour * 255).round().byte().cpu().numpy()
        return picture.reshape(camera.height, camera.width, 3)

    def _stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage where somebody measures."""
        return nullcontext() if self.clock is None else self.clock.stage(name)

    def _prepare(self, image: PosedImage) -> Query:
        with self._stage('picture'):
            view = self.scene_map.working_view(image.camera)
            picture = as_tensor(view.picture(image.rgb()))
            if self.device.type == 'cuda':  # copied while the host goes on
                picture = picture.pin_memory().to(self.device, non_blocking=True)
        with self._stage('encode'):
            tokens = self.scene_map.matcher.encode_image(picture)
        return Query(image, view, picture, tokens)

    def _steps(self, query: Query) -> dict[str, Callable[[np.ndarray], PoseEstimate | Alignment]]:
        """Give the steps that a schedule may name, for one image."""
        field, frame, camera = self.scene_map.field, self.scene_map.frame, query.view.camera
        return {
            'match': lambda pose: self._look_from(pose, query),
            'views': lambda pose: self._solve(
                query, [self._see(near, query.view) for near in self._around(pose)],
                self.config.refined_error, guess=pose),
            'photometric': lambda pose: refine_photometrically(
                field, frame, camera, query.picture, pose, self.config.photometric,
                chunk=self.views.rays_at_once),
            'inerf': lambda pose: refine_by_gradient(
                field, frame, camera, query.picture, pose, chunk=self.views.rays_at_once),
        }

    def _finished(self, refinement: Refinement, schedule: tuple[str, ...]) -> PoseEstimate:
        """Make the estimate of a schedule: its pose, with the matches that it had on the way.

        The judge knows alignments by the map's own schedule; what others leave looks different.
        """
        matched, aligned = refinement.matched, refinement.aligned
        if refinement.map_from_camera is None:
            return PoseEstimate(None, refinement.reason, None, 0, 0, math.nan)
        if aligned is None:
            return self._judged(matched)
        covariance = self._refined_scale * floored(aligned.covariance)
        if matched is None:  # nothing but pictures was aligned, which no judge knows
            return PoseEstimate(refinement.map_from_camera, '', covariance, 0, 0, math.nan)
        if schedule == self.own_config.refine:
            matched = self._judged(matched, aligned)
        return replace(matched, map_from_camera=refinement.map_from_camera, covariance=covariance)

    def _judged(self, estimate: PoseEstimate, aligned: Alignment | None = None) -> PoseEstimate:
        """Complete the evidence for a pose from matches and say how likely it makes the pose."""
        evidence = estimate.evidence
        if evidence is not None and aligned is not None:
            evidence = replace(evidence, photometric=photometric_evidence(
                matched=estimate.map_from_camera, aligned=aligned.map_from_camera,
                residual_before=aligned.residual_before, residual_after=aligned.residual_after,
                correlation=aligned.correlation, overlap=aligned.overlap))
        judge = Judge(None, None) if self.calibration is None else self.calibration.judge
        return replace(estimate, evidence=evidence, probability=judge.probability(evidence))

    @property
    def _scale(self) -> float:
        """Factor on the covariance of a pose from matches."""
        return self.config.covariance_scale if self.calibration is None \
            else self.calibration.covariance_scale

    @property
    def _refined_scale(self) -> float:
        """Factor on the covariance of an aligned pose."""
        return self.config.covariance_scale if self.calibration is None \
            else self.calibration.refined_covariance_scale

    def _around(self, map_from_camera: np.ndarray) -> list[np.ndarray]:
        """The pose itself and others near it, always the same ones relative to it."""
        centre = torch.from_numpy(np.ascontiguousarray(map_from_camera))
        spread = np.repeat((NEARBY_SHARE * self.scene_map.extent, NEARBY_ANGLE), 3)
        deltas = spread * np.random.default_rng(0).standard_normal(
            (max(self.config.refined_views, 1) - 1, 6))
        return [map_from_camera, *(
            perturb(centre, delta).numpy() for delta in torch.from_numpy(deltas))]

    def _first_pose(self, query: Query) -> PoseEstimate:
        if self.config.start == 'global':
            return self._solve(query, [self.views.surface()], self.config.first_error)
        with self._stage('retrieval'):
            retrieved = self._retrieve(query)
        with self._stage('reference'):
            seen = self.views.references(retrieved)
        return self._solve(
            query, seen, self.config.first_error, min_inliers=self.config.min_inliers)

    def _nearest_views(self, tokens: ImageTokens, count: int) -> list[int]:
        """Give the numbers of the reference views most like the image, best first."""
        cells = torch.nn.functional.normalize(tokens.coarse, dim=-1)
        descriptor = describe(cells, self.scene_map.words, self.scene_map.matcher.scale.item())
        return self._index.nearest(descriptor.cpu(), count)[0].tolist()

    def _retrieve(self, query: Query) -> list[int]:
        """Numbers of the reference views to match with: those known beforehand, else retrieved."""
        known = self.scene_map.neighbours.get(query.image.name)
        if known:
            return known[:self.config.top_k]
        return self._nearest_views(query.tokens, self.config.top_k)

    def _look_from(self, map_from_camera: np.ndarray, query: Query) -> PoseEstimate:
        """Match the image with what the camera would see at a pose, solve."""
        return self._solve(query, [self._see(map_from_camera, query.view)],
                           self.config.refined_error, guess=map_from_camera)

    def _see(self, map_from_camera: np.ndarray, view: WorkingView) -> Seen:
        with self._stage('reference'):
            return self.views.at(map_from_camera, view, self.config.least_coverage)

    def _solve(
        self, query: Query, seen: list[Seen], largest_error: float, *,
        min_inliers: int | None = None, guess: np.ndarray | None = None,
    ) -> PoseEstimate:
        """Match the image with each set of points; solve all matches together.

        min_inliers: of all matches; None: as many as `min_inliers` of each set; guess: (4, 4) pose
        that is tried before any is searched.
        """
        view, matcher = query.view, self.scene_map.matcher
        with self._stage('match'):
            coarse = match_views(matcher, query.tokens, [each.tokens for each in seen])
        with self._stage('fine'):
            found = [matcher.match_fine(query.tokens, each.tokens, pairs)
                     for each, pairs in zip(seen, coarse)]
            pixels, matched = _on_host(found, seen)
            pixels = view.pixels_in_source(pixels).numpy()
        # A squeezed picture has two scales; errors are circles of their geometric mean.
        source_scale = math.sqrt(
            view.source.fx / view.camera.fx * view.source.fy / view.camera.fy)
        # The same pixel matched from several views is neither one measurement nor that many. With
        # the root of their number, reported and true errors keep about the ratio of a single view.
        scale = self._scale * math.sqrt(len(seen))
        with self._stage('pnp'):
            estimate = solve_absolute_pose(
                pixels, matched, view.source, guess=guess,
                options=AbsolutePoseOptions(
                    max_reprojection_error=largest_error * source_scale,
                    min_inliers=min_inliers or self.config.min_inliers * len(seen),
                    min_inlier_ratio=self.config.min_inlier_ratio,
                    covariance_scale=scale))
        return replace(
            estimate, pixels=pixels, points=matched, source=seen[0].source,
            evidence=evidence_of(estimate, pixels_per_working_pixel=source_scale,
                                 covariance_scale=scale, views=len(seen)))


def load_map(folder: Path, device: str = 'cpu', threads: int | None = None) -> SceneMap:
    """Load a map for localizing on a device; threads: of the CPU, None leaves them."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)  # the compiled loops follow
    return SceneMap.load(folder).to(device)


def same_view(estimate: PoseEstimate, view: WorkingView) -> tuple[float, float]:
    """Metres and radians that a camera may move and still see the same points of the map.

    Moved by this much, what half of the matches show moves by a cell of the picture.
    """
    angle = COARSE_STRIDE / view.camera.fx
    pose = estimate.map_from_camera
    if pose is None:
        return 0.0, angle
    depth = np.median((estimate.points[estimate.inlier_mask] - pose[:3, 3]) @ pose[:3, 2])
    return max(angle * float(depth), 0.0), angle


def _on_host(found: list[Matches], seen: list[Seen]) -> tuple[Tensor, np.ndarray]:
    """Give the pixels (M, 2) of the working picture and the points (M, 3), metres, of all views.

    This is where the host waits for a GPU, once; there rows of confidence 0 are no matches.
    """
    rows = torch.cat([
        torch.cat((matches.pixels.double(), each.points[matches.points].double(),
                   matches.confidence[:, None].double()), dim=1)
        for matches, each in zip(found, seen)]).cpu()
    rows = rows[rows[:, 5] > 0]
    return rows[:, :2].float(), rows[:, 2:5].numpy()
