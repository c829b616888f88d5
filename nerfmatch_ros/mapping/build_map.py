"""Building a map from posed photographs, stage by stage; a build that was killed goes on.

    rough poses registered -> sparse points -> depth -> field -> reference views -> matcher
    -> scene geometry -> surface and retrieval -> calibration -> map

Finished stages lie in `<output>.build` until the map is whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
import json
import logging
from pathlib import Path
import shutil
import time
from typing import TYPE_CHECKING

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.field_file import FieldFile
from nerfmatch_ros.files import write_text, written_atomically
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.mapping.assemble_map import assemble_map
from nerfmatch_ros.mapping.build_config import BuildConfig, SceneFrameConfig
from nerfmatch_ros.mapping.build_folder import (
    check_images,
    check_networks,
    extent,
    open_work_folder,
)
from nerfmatch_ros.mapping.calibrate import calibrate
from nerfmatch_ros.mapping.checkpoint import save_weights
from nerfmatch_ros.mapping.depth_map import (
    DepthMap,
    known_share,
    load_depth_maps,
    save_depth_maps,
)
from nerfmatch_ros.mapping.engine import from_first, make_engine, once
from nerfmatch_ros.mapping.field_depth import with_field_depth
from nerfmatch_ros.mapping.field_quality import compare_with_photographs
from nerfmatch_ros.mapping.given_field import likeness, with_field
from nerfmatch_ros.mapping.held_out import held_out, observations_of
from nerfmatch_ros.mapping.multi_view_depth import multi_view_depth
from nerfmatch_ros.mapping.progress_bars import ProgressBars
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.reference_store import open_references, render_into_store, StoredView
from nerfmatch_ros.mapping.register_poses import BY_FIELD, register, TABLE
from nerfmatch_ros.mapping.scene_geometry_stage import train_stage, with_scene_geometry
from nerfmatch_ros.mapping.sparse_points import SparsePoints, triangulate
from nerfmatch_ros.mapping.train_field import train_field
from nerfmatch_ros.mapping.train_matcher import check_shares, train_matcher, training_data
from nerfmatch_ros.mapping.training_pixels import PixelSize, write_pixels
from nerfmatch_ros.matching.make_matcher import make_matcher, Matcher
from nerfmatch_ros.memory import keep_freed_memory, return_freed_memory
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.scene_frame import fit_scene_frame, frustum_frame, SceneFrame
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from safetensors.torch import load_file
import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG = logging.getLogger(__name__)
FIELD_PICTURE = 'field.png'  # photographs kept from the field beside its renders and depths


def build_map(
    images: list[PosedImage], output: Path, config: BuildConfig, *, device: str = 'cpu',
    minutes: float | None = None, keep_work_folder: bool = False, given: FieldFile | None = None,
    rough: bool = False, origin: dict | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> SceneMap:
    """Build a map of photographs with poses and save it to the folder `output`.

    minutes: of training in all, instead of `config.minutes`; keep_work_folder: leave the stages'
    own results in `<output>.build`, for another build that shares some of them; given: a field
    in the frame of the photographs' poses, instead of training one; rough: the poses are mended
    first, as `config.registration` says; origin: where the poses came from and what is known of
    their frame, plain values that the map notes; beside: contents of files that lie in the map
    too, by name. Raises DataError for input that cannot become a map. The old map in `output`
    stays until the new one is whole.
    Under torchrun all processes call this; the first one does what is no training.
    """
    check_images(images)
    if rough and given is not None:
        raise ConfigError('a field that was trained elsewhere belongs to exact poses; '
                          'give exact poses, or no field')
    config = with_field(config, given)
    check_networks(config)
    keep_freed_memory()
    started = time.monotonic()
    minutes = config.minutes if minutes is None else minutes
    engine = make_engine(device)
    check_shares(config.matcher_training, config.matcher.kind, engine.world_size)
    output = Path(output).resolve()
    work = output.with_name(output.name + '.build')
    once(engine, lambda: open_work_folder(output, work, images, config, minutes, given, rough))
    torch.manual_seed(config.seed)
    with ProgressBars(shown=engine.is_global_zero) as bars:
        stages = _Stages(bars, config, engine, minutes, work)
        images, registration = stages.registered(images) if rough else (images, {})
        if given is None:
            sparse = stages.sparse_points(images)
            frame = _scene_frame(images, sparse, config.scene_frame)
            depths = stages.depths(images, sparse, frame)
            field, quality = stages.field(images, sparse, depths, frame)
            quality['sparse_points'] = len(sparse.points)
        else:
            frame, (field, quality) = given.frame, stages.given_field(images, given)
        references = stages.references(images, field, frame)
        matcher = stages.matcher(images, references, field, frame,
                                 share=1 - config.field_share if given is None else 1.0)
        stages.scene_geometry(images, field, frame)

        def finish() -> None:
            scene_map = assemble_map(
                images, references, field, matcher, frame, config, device=str(engine.device),
                notes={'images': len(images), 'extent_m': extent(images), **quality,
                       **({} if origin is None else {'poses': origin}), **registration,
                       'last_run_minutes': round((time.monotonic() - started) / 60, 2)},
                report=stages.bar('surface, words'))
            if config.scene_geometry.enabled:
                scene_map = with_scene_geometry(
                    scene_map, stages.held_out(images), config.scene_geometry, work=work,
                    bar=stages.bar)
            names = (FIELD_PICTURE, TABLE) if rough else (FIELD_PICTURE,)
            stages.calibrated(scene_map, images).save(
                output, {**(beside or {}), **{name: (work / name).read_bytes() for name in names}})
            if not keep_work_folder:
                shutil.rmtree(work)
            LOG.info('map saved to %s', output)

        once(engine, finish)
    return SceneMap.load(output)


def _scene_frame(
    images: list[PosedImage], sparse: SparsePoints, config: SceneFrameConfig,
) -> SceneFrame:
    poses = np.stack([image.map_from_camera for image in images])
    if config.kind == 'frustums':
        return frustum_frame([image.camera for image in images], poses, config.frustum_depth)
    distances = np.linalg.norm(
        sparse.points[sparse.point_index] - poses[sparse.image_index, :3, 3], axis=1)
    return fit_scene_frame(poses, sparse.points, distances)


class _Stages:
    """The stages of one build: each gives its result, from the work folder if it is there.

    Trainings are work of all processes; the first one does the rest while the others wait.
    """

    def __init__(self, bars: ProgressBars, config: BuildConfig, engine: 'Fabric',
                 minutes: float | None, work: Path):
        self.bars, self.config, self.engine = bars, config, engine
        self.geometry_minutes, self.minutes = config.scene_geometry.split_minutes(minutes)
        self.work = work
        self.device = str(engine.device)

    def _once(self, path: Path, make: Callable[[], None]) -> None:
        """Let the first process make what lies at `path`, unless it is there."""
        once(self.engine, lambda: None if path.exists() else make())

    def bar(self, name: str) -> Callable[[float, dict], None]:
        """Begin a stage, with the memory of the one before given back; gives its bar."""
        return_freed_memory()
        return self.bars.bar(name)

    def _minutes(self, share: float) -> float | None:
        return None if self.minutes is None else share * self.minutes

    def registered(self, images: list[PosedImage]) -> tuple[list[PosedImage], dict]:
        """Mend rough poses; returns the photographs with the new ones, and what the map notes.

        One process does it while the others wait, in its share of the minutes.
        """
        config, done = self.config.registration, []
        by_field = sum(step in BY_FIELD for step in config.steps)
        minutes = self._minutes(config.minutes_share / max(by_field, 1))
        if by_field and self.minutes is not None:
            self.minutes *= 1 - config.minutes_share

        def make() -> None:
            done.append(register(images, config, work=self.work, device=self.device,
                                 minutes=minutes, bar=self.bar))

        once(self.engine, make)
        if not done:  # another process did it, and this one finds it done
            make()
        return done[0].images, {'registration': done[0].notes}

    def sparse_points(self, images: list[PosedImage]) -> SparsePoints:
        """Triangulate what the photographs have in common."""
        path = self.work / 'sparse_points.npz'
        report = self.bar('sparse points')

        self._once(path, lambda: triangulate(images).save(path))
        sparse = SparsePoints.load(path)
        report(1.0, {'points': len(sparse.points)})
        return sparse

    def depths(
        self, images: list[PosedImage], sparse: SparsePoints, frame: SceneFrame,
    ) -> list[DepthMap | None]:
        """Measure the depth of the photographs that the field is trained on."""
        path = self.work / 'depth.npz'
        report = self.bar('depth')
        kept = self._kept(images)

        def make() -> None:
            scale = frame.scene_from_map.scale
            maps = multi_view_depth(
                [images[k] for k in kept], observations_of(sparse, kept), self.config.depth,
                depth_range=(frame.near / scale, frame.far / scale), report=report)
            with written_atomically(path) as temporary:
                save_depth_maps(temporary, maps)

        self._once(path, make)
        maps = load_depth_maps(path)
        report(1.0, {'known': known_share(maps)})
        return maps

    def _kept(self, images: list[PosedImage]) -> list[int]:
        held = held_out(len(images), self.config.held_out)
        return [k for k in range(len(images)) if k not in held]

    def field(
        self, images: list[PosedImage], sparse: SparsePoints, depths: list[DepthMap | None],
        frame: SceneFrame,
    ) -> tuple[RadianceField, dict]:
        """Train the radiance field; returns it with its quality on photographs it never saw."""
        config = self.config
        held = held_out(len(images), config.held_out)
        kept = self._kept(images)
        field = config.field.make(len(kept)).to(self.device)
        path = self.work / 'field.safetensors'
        report = self.bar('field')
        if not from_first(self.engine, path.exists()):
            self._train_field(field, [images[k] for k in kept], observations_of(sparse, kept),
                              depths, frame, report)
            once(self.engine, lambda: save_weights(field, path, 'field.checkpoint', 'pixels'))
        field.load_state_dict(load_file(path))
        field.eval().requires_grad_(False)
        quality = self.work / 'field.json'

        def measure() -> None:
            # A set too small to spare a photograph is shown by one that the field has seen.
            shown = compare_with_photographs(
                field, frame, [images[k] for k in held or [0]], self._how(field))
            with written_atomically(self.work / FIELD_PICTURE) as temporary:
                cv2.imwrite(str(temporary), shown.picture[..., ::-1])
            write_text(quality, json.dumps({
                'held_out_psnr_db': float(np.mean(shown.psnr)) if held else None,
                'held_out': [images[k].name for k in held],
                'depth_known': known_share(depths)}))

        self._once(quality, measure)
        numbers = json.loads(quality.read_text())
        report(1.0, {'held-out PSNR': numbers['held_out_psnr_db'] or float('nan')})
        return field, numbers

    def given_field(
        self, images: list[PosedImage], given: FieldFile,
    ) -> tuple[RadianceField, dict]:
        """Take a field that was trained elsewhere; returns it with its origin and likeness."""
        report, quality = self.bar('field given'), self.work / 'field.json'
        given.field.to(self.device)
        held = held_out(len(images), self.config.held_out)
        self._once(quality, lambda: write_text(quality, json.dumps({
            **likeness(given, [images[k] for k in held or [0]], self._how(given.field),
                       self.work / FIELD_PICTURE),
            'held_out': [images[k].name for k in held]})))
        numbers = json.loads(quality.read_text())
        report(1.0, {'PSNR': numbers['photograph_psnr_db']})
        return given.field, numbers

    def _train_field(
        self, field: RadianceField, images: list[PosedImage], sparse: SparsePoints,
        depths: list[DepthMap | None], frame: SceneFrame, report: Callable[[float, dict], None],
    ) -> None:
        config, how, pixels = self.config, self._how(field), self.work / 'pixels'
        self._once(pixels, lambda: write_pixels(pixels, images, how))
        dataset = RayDataset(
            images, frame, sparse, how=how, depths=depths,
            depth_tolerance=config.depth.tolerance, device=self.device, file=pixels)
        train_field(field, dataset, config.field_training, engine=self.engine,
                    checkpoint=self.work / 'field.checkpoint',
                    minutes=self._minutes(config.field_share), report=report)

    def _how(self, field: RadianceField) -> PixelSize:
        training = self.config.field_training
        return PixelSize(training.longest_side, training.size, field.white_background)

    def references(
        self, images: list[PosedImage], field: RadianceField, frame: SceneFrame,
    ) -> list[StoredView]:
        """Render what each map camera sees."""
        options = {'longest_side': self.config.longest_side, 'size': self.config.working_size}
        path, report = self.work / 'references', self.bar('reference views')
        once(self.engine, lambda: render_into_store(
            path, field, frame, images, report=report,
            feature_layer=self.config.matcher.feature_layer, **options))
        report(1.0)
        return open_references(path, images, **options)

    def matcher(
        self, images: list[PosedImage], references: list[StoredView], field: RadianceField,
        frame: SceneFrame, *, share: float,
    ) -> Matcher:
        """Train the matcher between photographs and field in this share of the minutes."""
        matcher = make_matcher(self.config.matcher, field.feature_channels)
        path = self.work / 'matcher.safetensors'
        report = self.bar('matcher')
        if not from_first(self.engine, path.exists()):
            kept = self._kept(images)
            dataset = training_data(
                [images[k] for k in kept], [references[k] for k in kept], frame,
                self.config.matcher.kind, self.config.matcher_training, self.config.augmentation)
            train_matcher(
                matcher, [dataset], self.config.matcher_training,
                engine=self.engine, checkpoint=self.work / 'matcher.checkpoint',
                minutes=self._minutes(share), report=report)
            once(self.engine, lambda: save_weights(matcher, path, 'matcher.checkpoint'))
        matcher.load_state_dict(load_file(path))
        report(1.0)
        return matcher.to(self.device).eval().requires_grad_(False)

    def scene_geometry(
        self, images: list[PosedImage], field: RadianceField, frame: SceneFrame,
    ) -> None:
        """Train scene geometry, where it is asked for, in its share of the minutes.

        One process does it while the others wait.
        """
        stage = self.config.scene_geometry

        def make() -> None:
            # The points of the field are learned only where they are asked for.
            given = images if not stage.training.losses.points else with_field_depth(
                images, field, frame, report=self.bar('depth of the field'))
            train_stage(given, held_out(len(images), self.config.held_out), stage,
                        work=self.work, device=self.device, minutes=self.geometry_minutes,
                        bar=self.bar)

        if stage.enabled:
            once(self.engine, make)

    def held_out(self, images: list[PosedImage]) -> list[PosedImage]:
        """Give the photographs that are kept from all trainings."""
        return [images[k] for k in held_out(len(images), self.config.held_out)]

    def calibrated(self, scene_map: SceneMap, images: list[PosedImage]) -> SceneMap:
        """Measure covariances and teach the judge on the photographs that were held out."""
        report = self.bar('calibration')
        held = self.held_out(images)
        if not held:
            LOG.warning('%d photographs are too few to keep some from the map: its covariances '
                        'are not calibrated and it has no judge', len(images))
            report(1.0)
            return scene_map
        options = scene_map.localization
        calibration = calibrate(
            Localizer(scene_map.to(self.device)), held, report=report,
            config=self.config.calibration,
            scales=(options['covariance_scale'],) * 2)
        return replace(scene_map, calibration=calibration.to_dict())
