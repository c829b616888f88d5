"""Building a map from posed photographs, stage by stage; a build that was killed goes on.

    sparse points -> depth -> field -> reference views -> matcher -> surface and retrieval
    -> calibration -> map

Finished stages lie in `<output>.build` until the map is whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
import hashlib
import json
import logging
import math
from pathlib import Path
import shutil
import time

import cv2
from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import as_tensor, working_focal
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import write_text, written_atomically
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.calibrate import calibrate, CalibrationConfig
from nerfmatch_ros.mapping.depth_map import (
    DepthMap,
    known_share,
    load_depth_maps,
    save_depth_maps,
)
from nerfmatch_ros.mapping.field_quality import compare_with_photographs
from nerfmatch_ros.mapping.match_dataset import MatchDataset
from nerfmatch_ros.mapping.multi_view_depth import multi_view_depth, MultiViewDepthConfig
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.reference_views import ReferenceView, render_references
from nerfmatch_ros.mapping.sparse_points import SparsePoints, triangulate
from nerfmatch_ros.mapping.surface_points import surface_points
from nerfmatch_ros.mapping.train_field import FieldTrainingConfig, train_field
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig, train_matcher
from nerfmatch_ros.matching.make_matcher import make_matcher, Matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.memory import keep_freed_memory
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import fit_scene_frame, SceneFrame
from nerfmatch_ros.retrieval import describe, fit_words
from nerfmatch_ros.scene_map import FieldConfig, References, SceneMap
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
import torch
import torch.nn.functional as F

LOG = logging.getLogger(__name__)
FEWEST_IMAGES = 4
FARTHEST = 1e4  # times the spread of the cameras, that their origin may lie away
FIELD_PICTURE = 'field.png'  # photographs kept from the field beside its renders and depths


@dataclass(frozen=True)
class BuildConfig:
    """Everything a build can be told; `config/build_map.yaml` explains each option."""

    minutes: float | None = 75.0  # of training in all, at most; None: only the steps count
    field_share: float = 0.27  # of these minutes
    held_out: int = 12  # photographs kept from training, at most, to measure field and poses
    longest_side: int = 384  # pixels of the picture the matcher sees
    surface_points: int = 16384  # of the whole map, for matching without retrieval
    reference_views: int = 0  # kept in the map, evenly chosen; 0: all
    words: int = 256  # of the retrieval descriptor
    reference_images: str = 'real'  # described for retrieval: 'real' or 'rendered' by the field
    frame_id: str = 'map'
    seed: int = 0
    depth: MultiViewDepthConfig = MultiViewDepthConfig()
    field: FieldConfig = FieldConfig()
    field_training: FieldTrainingConfig = FieldTrainingConfig()
    matcher: MatcherConfig = MatcherConfig()
    matcher_training: MatcherTrainingConfig = MatcherTrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    localization: LocalizerConfig = dataclass_field(default_factory=LocalizerConfig)

    def __post_init__(self):
        """Refuse values that no build can work with."""
        if self.reference_images not in ('real', 'rendered'):
            raise ConfigError(f"reference_images is '{self.reference_images}'; "
                              'use real or rendered')
        if not 0 < self.field_share < 1:
            raise ConfigError(f'field_share is {self.field_share:g}; '
                              'it must lie between 0 and 1, both trainings need time')


def build_map(
    images: list[PosedImage], output: Path, config: BuildConfig, *, device: str = 'cpu',
    minutes: float | None = None, keep_work_folder: bool = False,
) -> SceneMap:
    """Build a map of photographs with poses and save it to the folder `output`.

    minutes: of training in all, instead of `config.minutes`; keep_work_folder: leave the stages'
    own results in `<output>.build`, for another build that shares some of them. Raises DataError
    for input that cannot become a map. The old map in `output` stays until the new one is whole.
    """
    _check(images)
    _check_networks(config)
    keep_freed_memory()
    started = time.monotonic()
    minutes = config.minutes if minutes is None else minutes
    work = _open_work_folder(output, images, config, minutes)
    torch.manual_seed(config.seed)
    with _progress() as progress:
        stages = _Stages(progress, config, device, minutes, work)
        sparse = stages.sparse_points(images)
        frame = _fit_frame(images, sparse)
        depths = stages.depths(images, sparse, frame)
        field, quality = stages.field(images, sparse, depths, frame)
        references = stages.references(images, field, frame)
        matcher = stages.matcher(images, references, field, frame)
        scene_map = stages.assemble(images, references, field, matcher, frame, {
            'images': len(images), 'extent_m': _extent(images),
            'sparse_points': len(sparse.points), **quality,
            'last_run_minutes': round((time.monotonic() - started) / 60, 2)})
        scene_map = stages.calibrated(scene_map, images)
    scene_map.save(output)
    shutil.copy(work / FIELD_PICTURE, output)
    if not keep_work_folder:
        shutil.rmtree(work)
    LOG.info('map saved to %s', output)
    return SceneMap.load(output)


def _check(images: list[PosedImage]) -> None:
    if len(images) < FEWEST_IMAGES:
        raise DataError(f'a map needs at least {FEWEST_IMAGES} photographs, {len(images)} given')
    for image in images:
        if image.map_from_camera is None:
            raise DataError(f'{image.name} has no pose; a map is built of posed photographs')
    centres = np.stack([image.map_from_camera[:3, 3] for image in images])
    away, spread = np.abs(centres).max(), np.ptp(centres, axis=0).max()
    if away > FARTHEST * max(spread, 1e-9):
        raise DataError(
            f'the cameras lie up to {away:.6g} from the origin but within {spread:.3g} of each '
            'other, too far for single precision; move the origin of the poses near to them')


def _extent(images: list[PosedImage]) -> float:
    """Diagonal of the bounding box of the camera centres, metres."""
    centres = np.stack([image.map_from_camera[:3, 3] for image in images])
    return float(np.linalg.norm(np.ptp(centres, axis=0)))


def _check_networks(config: BuildConfig) -> None:
    """Make both networks once, so that options they refuse do not first cost a trained field."""
    field = config.field.make(1)
    layer = config.matcher.feature_layer
    if layer is not None and not 1 <= layer <= field.feature_layers:
        raise ConfigError(f"matcher.point_feature is '{config.matcher.point_feature}'; the field "
                          f"'{config.field.kind}' has f1 to f{field.feature_layers}")
    make_matcher(config.matcher, field.feature_channels)


def _open_work_folder(
    output: Path, images: list[PosedImage], config: BuildConfig, minutes: float | None,
) -> Path:
    """Make `<output>.build`, or find it left by the same build."""
    output = Path(output).resolve()
    if output.exists() and not output.is_dir():
        raise DataError(f'{output} is a file; give a folder for the map')
    if output.exists() and any(output.iterdir()) and not (output / 'map.yaml').exists():
        raise DataError(f'{output} is not empty and holds no map; choose another folder')
    if minutes is not None and not minutes > 0:
        raise DataError(f'{minutes} minutes of training are asked for; give a positive number')
    work = output.with_name(output.name + '.build')
    work.mkdir(parents=True, exist_ok=True)
    identity = json.dumps([
        to_dict(config), minutes,
        [(i.name, str(i.camera), i.map_from_camera.round(9).tolist()) for i in images]])
    mark = hashlib.sha256(identity.encode()).hexdigest()
    path = work / 'build.sha256'
    if path.exists() and path.read_text() != mark:
        raise DataError(
            f'{work} holds the unfinished build of other photographs, poses or options; '
            'repeat that command to finish it, or delete the folder to start anew')
    write_text(path, mark)
    return work


def _progress() -> Progress:
    return Progress(
        TextColumn('{task.description:<16}'), BarColumn(), TextColumn('{task.percentage:>3.0f}%'),
        TimeElapsedColumn(), TextColumn('eta'), TimeRemainingColumn(),
        TextColumn('{task.fields[numbers]}'), console=Console(stderr=True))


def _fit_frame(images: list[PosedImage], sparse: SparsePoints) -> SceneFrame:
    poses = np.stack([image.map_from_camera for image in images])
    distances = np.linalg.norm(
        sparse.points[sparse.point_index] - poses[sparse.image_index, :3, 3], axis=1)
    return fit_scene_frame(poses, sparse.points, distances)


class _Stages:
    """The stages of one build: each gives its result, from the work folder if it is there."""

    def __init__(self, progress: Progress, config: BuildConfig, device: str,
                 minutes: float | None, work: Path):
        self.progress, self.config, self.device = progress, config, device
        self.minutes, self.work = minutes, work

    def _bar(self, name: str) -> Callable[[float, dict], None]:
        task = self.progress.add_task(name, total=1.0, numbers='')
        logged = -math.inf

        def report(done: float, numbers: dict | None = None) -> None:
            nonlocal logged
            text = ' '.join(f'{key} {value:.4g}' for key, value in (numbers or {}).items())
            self.progress.update(task, completed=done, numbers=text)
            # A bar is of no use in a log file, so lines take its place there.
            now = time.monotonic()
            if not self.progress.console.is_terminal and (done >= 1 or now > logged + 30):
                logged = now
                LOG.info('%s: %.0f %% %s', name, 100 * done, text)
        return report

    def _minutes(self, share: float) -> float | None:
        return None if self.minutes is None else share * self.minutes

    def sparse_points(self, images: list[PosedImage]) -> SparsePoints:
        """Triangulate what the photographs have in common."""
        path = self.work / 'sparse_points.npz'
        report = self._bar('sparse points')
        if not path.exists():
            sparse = triangulate(images)
            temporary = path.with_suffix('.tmp.npz')
            np.savez(temporary, **vars(sparse))
            temporary.replace(path)
        with np.load(path, allow_pickle=False) as stored:
            sparse = SparsePoints(**{key: stored[key] for key in stored.files})
        report(1.0, {'points': len(sparse.points)})
        return sparse

    def depths(
        self, images: list[PosedImage], sparse: SparsePoints, frame: SceneFrame,
    ) -> list[DepthMap | None]:
        """Measure the depth of the photographs that the field is trained on."""
        path = self.work / 'depth.npz'
        report = self._bar('depth')
        kept = self._kept(images)
        if not path.exists():
            scale = frame.scene_from_map.scale
            maps = multi_view_depth(
                [images[k] for k in kept], _of_images(sparse, kept), self.config.depth,
                depth_range=(frame.near / scale, frame.far / scale), report=report)
            temporary = path.with_suffix('.tmp.npz')
            save_depth_maps(temporary, maps)
            temporary.replace(path)
        maps = load_depth_maps(path)
        report(1.0, {'known': known_share(maps)})
        return maps

    def _kept(self, images: list[PosedImage]) -> list[int]:
        held = _held_out(len(images), self.config.held_out)
        return [k for k in range(len(images)) if k not in held]

    def field(
        self, images: list[PosedImage], sparse: SparsePoints, depths: list[DepthMap | None],
        frame: SceneFrame,
    ) -> tuple[RadianceField, dict]:
        """Train the radiance field; returns it with its quality on photographs it never saw."""
        config = self.config
        held = _held_out(len(images), config.held_out)
        kept = self._kept(images)
        field = config.field.make(len(kept)).to(self.device)
        path = self.work / 'field.safetensors'
        report = self._bar('field')
        if not path.exists():
            dataset = RayDataset(
                [images[k] for k in kept], frame, _of_images(sparse, kept),
                longest_side=config.field_training.longest_side, depths=depths,
                depth_tolerance=config.depth.tolerance, device=self.device)
            train_field(field, dataset, config.field_training,
                        checkpoint=self.work / 'field.checkpoint',
                        minutes=self._minutes(config.field_share), report=report)
            _save(field, path)
            (self.work / 'field.checkpoint').unlink(missing_ok=True)
        field.load_state_dict(load_file(path))
        field.eval().requires_grad_(False)
        quality = self.work / 'field.json'
        if not quality.exists():
            # A set too small to spare a photograph is shown by one that the field has seen.
            shown = compare_with_photographs(field, frame, [images[k] for k in held or [0]],
                                             config.field_training.longest_side)
            with written_atomically(self.work / FIELD_PICTURE) as temporary:
                cv2.imwrite(str(temporary), shown.picture[..., ::-1])
            write_text(quality, json.dumps({
                'held_out_psnr_db': float(np.mean(shown.psnr)) if held else None,
                'held_out': [images[k].name for k in held],
                'depth_known': known_share(depths)}))
        numbers = json.loads(quality.read_text())
        report(1.0, {'held-out PSNR': numbers['held_out_psnr_db'] or float('nan')})
        return field, numbers

    def references(
        self, images: list[PosedImage], field: RadianceField, frame: SceneFrame,
    ) -> list[ReferenceView]:
        """Render what each map camera sees; quick enough to be repeated by a resumed build."""
        report = self._bar('reference views')
        return render_references(
            field, frame, images, feature_layer=self.config.matcher.feature_layer,
            longest_side=self.config.longest_side, report=report)

    def matcher(
        self, images: list[PosedImage], references: list[ReferenceView], field: RadianceField,
        frame: SceneFrame,
    ) -> Matcher:
        """Train the matcher between the photographs and the field's points."""
        matcher = make_matcher(self.config.matcher, field.feature_channels)
        path = self.work / 'matcher.safetensors'
        report = self._bar('matcher')
        if not path.exists():
            kept = self._kept(images)
            dataset = MatchDataset(
                [images[k] for k in kept], [references[k] for k in kept], frame,
                self.config.augmentation)
            train_matcher(
                matcher, [dataset], self.config.matcher_training,
                checkpoint=self.work / 'matcher.checkpoint',
                minutes=self._minutes(1 - self.config.field_share), device=self.device,
                report=report)
            _save(matcher, path)
            (self.work / 'matcher.checkpoint').unlink(missing_ok=True)
        matcher.load_state_dict(load_file(path))
        report(1.0)
        return matcher.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def assemble(
        self, images: list[PosedImage], references: list[ReferenceView], field: RadianceField,
        matcher: Matcher, frame: SceneFrame, notes: dict,
    ) -> SceneMap:
        """Choose the surface points, describe the reference images, put the map together."""
        config = self.config
        report = self._bar('surface, words')
        surface = surface_points(references, config.surface_points)
        features = None if surface.features is None else surface.features.to(self.device)
        tokens = matcher.encode_points(frame.to_scene(surface.points.to(self.device)), features)
        words = fit_words(F.normalize(tokens.coarse, dim=-1).cpu(), config.words)
        kept = range(len(references)) if not config.reference_views else np.unique(
            np.linspace(0, len(references) - 1, config.reference_views).round().astype(int))
        descriptors = []
        for k in kept:
            picture = as_tensor(references[k].view.picture(images[k].rgb()))
            if config.reference_images == 'rendered':
                camera = references[k].view.camera
                rendered = render_view(field, frame, camera, references[k].map_from_camera,
                                       stride=1, colour=True)
                picture = rendered.colour.T.reshape(3, camera.height, camera.width)
            cells = matcher.encode_image(picture.to(self.device)).coarse
            descriptors.append(describe(F.normalize(cells, dim=-1).cpu(), words,
                                        matcher.scale.item()))
            report(len(descriptors) / len(kept))
        chosen = [references[k] for k in kept]
        counts = torch.tensor([0] + [len(reference.points) for reference in chosen])
        has_features = chosen[0].features is not None
        stored = References(
            [reference.name for reference in chosen],
            [reference.view.source for reference in chosen],
            np.stack([reference.map_from_camera.numpy() for reference in chosen]),
            torch.stack(descriptors), torch.cumsum(counts, 0),
            torch.cat([reference.points.cpu() for reference in chosen]),
            torch.cat([reference.features.cpu() for reference in chosen])
            if has_features else None)
        return SceneMap(
            frame, config.field, field, config.matcher, matcher, stored, surface, words,
            working_focal([image.camera for image in images], config.longest_side),
            config.longest_side, config.frame_id, to_dict(config.localization), notes=notes)

    def calibrated(self, scene_map: SceneMap, images: list[PosedImage]) -> SceneMap:
        """Measure covariances and teach the judge on the photographs that were held out."""
        report = self._bar('calibration')
        held = [images[k] for k in _held_out(len(images), self.config.held_out)]
        if not held:
            LOG.warning('%d photographs are too few to keep some from the map: its covariances '
                        'are not calibrated and it has no judge', len(images))
            report(1.0)
            return scene_map
        options = scene_map.localization
        calibration = calibrate(
            Localizer(scene_map), held, report=report, config=self.config.calibration,
            scales=(options['covariance_scale'],) * 2)
        return replace(scene_map, calibration=calibration.to_dict())


def _held_out(images: int, most: int) -> list[int]:
    """Indices of photographs to keep from training: few, none from sets under a dozen.

    They come in runs of three: with a neighbour on both sides a photograph would be an easy one.
    """
    count = min(most, max(images // 12, 2)) if images >= 12 else 0
    runs = math.ceil(count / 3)
    starts = [round((k + 0.5) * images / runs) - 1 for k in range(runs)]
    return [start + k for start in starts for k in range(3)][:count]


def _of_images(sparse: SparsePoints, kept: list[int]) -> SparsePoints:
    """Keep the observations of some images, renumbered."""
    number = np.full(max([*kept, *sparse.image_index.tolist()], default=0) + 1, -1)
    number[kept] = np.arange(len(kept))
    chosen = number[sparse.image_index] >= 0
    return SparsePoints(
        sparse.points, sparse.reprojection_error, sparse.angle,
        number[sparse.image_index[chosen]], sparse.pixel[chosen], sparse.point_index[chosen])


def _save(module: torch.nn.Module, path: Path) -> None:
    temporary = path.with_suffix('.tmp')
    save_file({key: value.contiguous().cpu() for key, value in module.state_dict().items()},
              temporary)
    temporary.replace(path)
