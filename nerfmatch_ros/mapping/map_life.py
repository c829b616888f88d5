"""The stages that update and merge share: a field and a matcher go on from old weights.

    new photographs and rehearsed views -> field -> reference views -> matcher -> map

New photographs lie in the map frame; rehearsed views are those of an old map, with masks of what
is as it was. Finished stages lie in a work folder until the new map is whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import json
import logging
from pathlib import Path
import shutil
from typing import Any, TYPE_CHECKING

import cv2
from nerfmatch_ros.config import from_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.files import write_text, written_atomically
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.assemble_map import assemble_map
from nerfmatch_ros.mapping.build_config import BuildConfig
from nerfmatch_ros.mapping.calibrate import calibrate
from nerfmatch_ros.mapping.checkpoint import save_weights
from nerfmatch_ros.mapping.depth_map import DepthMap
from nerfmatch_ros.mapping.engine import from_first, once
from nerfmatch_ros.mapping.field_quality import compare_with_photographs
from nerfmatch_ros.mapping.held_out import observations_of
from nerfmatch_ros.mapping.mixed_rays import MixedRays
from nerfmatch_ros.mapping.progress_bars import ProgressBars
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.reference_store import open_references, render_into_store, StoredView
from nerfmatch_ros.mapping.rehearsal import masked, Rehearsed, repainted
from nerfmatch_ros.mapping.sparse_points import no_points, SparsePoints
from nerfmatch_ros.mapping.train_field import train_field
from nerfmatch_ros.mapping.train_matcher import train_matcher, training_data
from nerfmatch_ros.mapping.training_pixels import PixelSize
from nerfmatch_ros.mapping.update_config import UpdateConfig
from nerfmatch_ros.matching.make_matcher import make_matcher, Matcher
from nerfmatch_ros.memory import return_freed_memory
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from safetensors.torch import load_file
import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG = logging.getLogger(__name__)
FIELD_PICTURE = 'field.png'
FEWEST_TO_CALIBRATE = 3  # held-out photographs; with fewer the old calibration stays
_IMAGE_ROWS = ('exposure', 'appearance.weight')  # of a field, a row a photograph


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a map is to learn."""

    new: list[PosedImage]  # with poses in the map frame
    old: list[Rehearsed]
    sparse: SparsePoints  # observed in the new photographs
    depths: list[DepthMap | None]  # of the new photographs that are not held out
    frame: SceneFrame  # of the new field
    held: list[int]  # numbers of new photographs that are kept from training

    @property
    def kept(self) -> list[int]:
        """Numbers of the new photographs that are learned."""
        return [k for k in range(len(self.new)) if k not in self.held]


class MapLife:
    """The stages of one update: each gives its result, from the work folder if it is there."""

    def __init__(self, old: SceneMap, config: UpdateConfig, engine: 'Fabric', bars: ProgressBars,
                 minutes: float | None, work: Path):
        self.old, self.config, self.engine, self.bars = old, config, engine, bars
        self.minutes, self.work = minutes, work
        self.device = str(engine.device)

    def bar(self, name: str) -> Callable[[float, dict], None]:
        """Begin a stage, with the memory of the one before given back; gives its bar."""
        return_freed_memory()
        return self.bars.bar(name)

    def once(self, path: Path, make: Callable[[], None]) -> None:
        """Let the first process make what lies at `path`, unless it is there."""
        once(self.engine, lambda: None if path.exists() else make())

    def _minutes(self, share: float) -> float | None:
        return None if self.minutes is None else share * self.minutes

    def field(self, lesson: Lesson) -> tuple[RadianceField, dict]:
        """Train the field from the old one's weights; returns it with its quality.

        In another frame the old weights mean nothing, and it is trained from the beginning.
        """
        count = len(lesson.kept) + len(lesson.old)
        field = self.old.field_config.make(count).to(self.device)
        if lesson.frame is self.old.frame:
            inherit(field, self.old.field)
        path, report = self.work / 'field.safetensors', self.bar('field')
        if not from_first(self.engine, path.exists()):
            train_field(field, self._rays(lesson, field), self.config.field_training,
                        engine=self.engine, checkpoint=self.work / 'field.checkpoint',
                        minutes=self._minutes(self.config.field_share), report=report)
            once(self.engine, lambda: save_weights(
                field, path, 'field.checkpoint', 'pixels-new', 'pixels-old'))
        field.load_state_dict(load_file(path))
        field.eval().requires_grad_(False)
        quality = self.work / 'field.json'
        self.once(quality, lambda: self._measure(field, lesson, quality))
        numbers = json.loads(quality.read_text())
        report(1.0, {'held-out PSNR': numbers['held_out_psnr_db'] or float('nan')})
        return field, numbers

    def _rays(self, lesson: Lesson, field: RadianceField) -> MixedRays | RayDataset:
        how = self._how(field)
        masks = self.work / 'masks'
        old = [masked(each, masks / f'{k:06d}.png') for k, each in enumerate(lesson.old)]
        new = RayDataset(
            [lesson.new[k] for k in lesson.kept], lesson.frame,
            observations_of(lesson.sparse, lesson.kept), how=how, depths=lesson.depths,
            depth_tolerance=self.config.depth.tolerance, device=self.device,
            file=self.work / 'pixels-new')
        return MixedRays(new, RayDataset(
            old, lesson.frame, no_points(), how=how, device=self.device,
            file=self.work / 'pixels-old'), self.config.new_share)

    def _how(self, field: RadianceField) -> PixelSize:
        training = self.config.field_training
        return PixelSize(training.longest_side, training.size, field.white_background)

    def _measure(self, field: RadianceField, lesson: Lesson, path: Path) -> None:
        """Compare both fields with new photographs that neither saw; 0: one that was learned."""
        shown = [lesson.new[k] for k in lesson.held or [0]]
        before, after = (compare_with_photographs(each, frame, shown, self._how(each))
                         for each, frame in ((self.old.field, self.old.frame),
                                             (field, lesson.frame)))
        with written_atomically(self.work / FIELD_PICTURE) as temporary:
            cv2.imwrite(str(temporary), after.picture[..., ::-1])
        write_text(path, json.dumps({
            'held_out_psnr_db': float(np.mean(after.psnr)) if lesson.held else None,
            'held_out_psnr_before_db': float(np.mean(before.psnr)) if lesson.held else None,
            'held_out': [lesson.new[k].name for k in lesson.held]}))

    def pictures(self, lesson: Lesson, field: RadianceField) -> list[PosedImage]:
        """Give all photographs of the new map, new ones first; old ones show what is there now."""
        report, folder = self.bar('old views'), self.work / 'repainted'
        pictures = list(lesson.new)

        def paint() -> None:
            for k, each in enumerate(lesson.old):
                repainted(each, field, lesson.frame, folder / f'{k:06d}.png')
                report((k + 1) / len(lesson.old), {})

        once(self.engine, paint)
        return pictures + [repainted(each, field, lesson.frame, folder / f'{k:06d}.png')
                           for k, each in enumerate(lesson.old)]

    def references(
        self, images: list[PosedImage], field: RadianceField, frame: SceneFrame,
    ) -> list[StoredView]:
        """Render what each map camera sees."""
        old = self.old
        options = {'longest_side': old.longest_side, 'size': old.working_size,
                   'focal': old.working_focal}
        path, report = self.work / 'references', self.bar('reference views')
        once(self.engine, lambda: render_into_store(
            path, field, frame, images, report=report,
            feature_layer=old.matcher_config.feature_layer, **options))
        report(1.0)
        return open_references(path, images, **options)

    def matcher(
        self, images: list[PosedImage], references: list[StoredView], frame: SceneFrame,
        held: Sequence[int],
    ) -> Matcher:
        """Train the matcher from the old one's weights; held: numbers of images to leave out."""
        config = self.config
        matcher = make_matcher(self.old.matcher_config, self.old.field.feature_channels)
        path, report = self.work / 'matcher.safetensors', self.bar('matcher')
        if not from_first(self.engine, path.exists()):
            matcher.load_state_dict(self.old.matcher.state_dict())
            kept = [k for k in range(len(images)) if k not in held]
            dataset = training_data(
                [images[k] for k in kept], [references[k] for k in kept], frame,
                self.old.matcher_config.kind, config.matcher_training, config.augmentation)
            train_matcher(matcher.to(self.device).requires_grad_(True), [dataset],
                          config.matcher_training, engine=self.engine,
                          checkpoint=self.work / 'matcher.checkpoint',
                          minutes=self._minutes(1 - config.field_share), report=report)
            once(self.engine, lambda: save_weights(matcher, path, 'matcher.checkpoint'))
        matcher.load_state_dict(load_file(path))
        report(1.0)
        return matcher.to(self.device).eval().requires_grad_(False)

    def finish(
        self, output: Path, lesson: Lesson, images: list[PosedImage],
        references: list[StoredView], field: RadianceField, matcher: Matcher,
        notes: dict[str, Any], beside: Mapping[str, bytes] | None = None,
    ) -> None:
        """Put the new map together, calibrate it, save it in the place of an old one.

        notes: of the map, beside where the poses of the old one came from; beside: contents of
        files that lie in the map too, by name.
        """
        old = self.old
        if old.scene_geometry is not None:
            # It was learned from all photographs of a map, and there are only the new ones.
            LOG.warning('the new map has no scene geometry, as that of the old one does not know '
                        'what is new; `nerfmatch train-scene-geometry` trains some')
            notes = {**notes, 'scene_geometry_dropped': True}
        made = assemble_map(
            images, references, field, matcher, lesson.frame, self._as_built(len(images)),
            device=self.device, notes={**poses_of(old), **notes},
            report=self.bar('surface, words'))
        made = replace(made, working_focal=old.working_focal)
        picture = (self.work / FIELD_PICTURE).read_bytes()
        self._calibrated(made, lesson).save(output, {**(beside or {}), FIELD_PICTURE: picture})
        shutil.rmtree(self.work)
        LOG.info('map saved to %s', output)

    def _as_built(self, views: int) -> BuildConfig:
        """Give the options that the old map was built with, as far as the new one needs them."""
        old = self.old
        cache = 0 if old.surface_cache is None else len(old.surface_cache)
        return BuildConfig(
            longest_side=old.longest_side, working_size=old.working_size,
            frame_id=old.frame_id, field=old.field_config, matcher=old.matcher_config,
            words=len(old.words), surface_points=len(old.surface.points),
            surface_cache_points=cache,
            localization=replace(
                from_dict(LocalizerConfig, old.localization, 'map.yaml: localization'),
                localizer='nerfmatch'))  # the new map has no scene geometry

    def _calibrated(self, made: SceneMap, lesson: Lesson) -> SceneMap:
        """Calibrate on held-out photographs; too few leave the calibration of the old map."""
        report = self.bar('calibration')
        if len(lesson.held) < FEWEST_TO_CALIBRATE:
            report(1.0)
            LOG.warning('%d new photographs were kept from training, too few to calibrate with: '
                        'covariances and judge are those of the old map', len(lesson.held))
            return replace(made, calibration=self.old.calibration)
        calibration = calibrate(
            Localizer(made.to(self.device)), [lesson.new[k] for k in lesson.held], report=report,
            config=self.config.calibration, scales=(made.localization['covariance_scale'],) * 2)
        return replace(made, calibration=calibration.to_dict())


def poses_of(old: SceneMap) -> dict[str, Any]:
    """Give what a map notes of its frame: where its poses came from, which way is up."""
    return {'poses': old.notes['poses']} if 'poses' in old.notes else {}


def inherit(field: RadianceField, old: RadianceField) -> None:
    """Give a field the weights of an old one of its kind, for other photographs.

    What was learned of single photographs is forgotten: theirs are the middle of the old ones'
    appearances, and no exposure of their own.
    """
    own, weights = field.state_dict(), dict(old.state_dict())
    for name in _IMAGE_ROWS:
        if name in own:
            weights[name] = torch.zeros_like(own[name]) if name == 'exposure' \
                else weights[name].mean(0, keepdim=True).expand_as(own[name]).clone()
    field.load_state_dict(weights)
