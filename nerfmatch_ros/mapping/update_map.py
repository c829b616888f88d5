"""A map learns new photographs of a place that changed, without the old ones and not from scratch.

    localize the new photographs -> sparse points, depth -> what changed -> rehearse the rest
    -> field and matcher go on from their weights -> new map

The frame of the map stays. The old map is read and left as it is until the new one is whole, even
where the new one takes its place. Finished stages lie in `<output>.build` until then, so that an
update that was killed goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
import json
import logging
from pathlib import Path
import shutil
import time
from typing import TYPE_CHECKING

import cv2
from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import write_text, written_atomically
from nerfmatch_ros.localization.judge import judged_threshold
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.mapping.build_folder import (
    BEFORE_BUILDS,
    check_minutes,
    check_output,
    describe_image,
    MARK,
    mark_of,
    mark_work_folder,
)
from nerfmatch_ros.mapping.changes import (
    ChangeConfig,
    Changes,
    differing,
    find_changes,
    Look,
)
from nerfmatch_ros.mapping.depth_map import (
    DepthMap,
    DepthTable,
    load_depth_maps,
    save_depth_maps,
)
from nerfmatch_ros.mapping.engine import make_engine, once
from nerfmatch_ros.mapping.held_out import held_out, observations_of
from nerfmatch_ros.mapping.map_life import Lesson, MapLife
from nerfmatch_ros.mapping.map_reach import depth_of, extent_of, frame_for
from nerfmatch_ros.mapping.multi_view_depth import multi_view_depth
from nerfmatch_ros.mapping.placement import believed, place, Placement
from nerfmatch_ros.mapping.progress_bars import ProgressBars
from nerfmatch_ros.mapping.rehearsal import (
    check_rehearsable,
    rehearse,
    Rehearsed,
    still_pixels,
    unique_names,
    views_of,
)
from nerfmatch_ros.mapping.sparse_points import SparsePoints, triangulate
from nerfmatch_ros.mapping.update_config import UpdateConfig
from nerfmatch_ros.memory import keep_freed_memory
from nerfmatch_ros.radiance_field.renderer import OPAQUE, render_view
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG = logging.getLogger(__name__)
FEWEST_IMAGES = 4


def update_map(
    map_folder: Path, images: list[PosedImage], output: Path | None = None,
    config: UpdateConfig | None = None, *, minutes: float | None = None, device: str = 'cpu',
    beside: Mapping[str, bytes] | None = None,
) -> SceneMap:
    """Teach a map new photographs and save it to `output`; None: in the old one's place.

    images: with poses in any rigid metric frame (they hold the photographs together), or without.
    minutes: of training in all, instead of `config.minutes`; beside: contents of files that lie in
    the map too, by name. Raises DataError for photographs that are not of this place, MapError for
    a map that cannot be trained on.
    """
    config = config or UpdateConfig()
    minutes = config.minutes if minutes is None else minutes
    map_folder = Path(map_folder).resolve()
    output = map_folder if output is None else Path(output).resolve()
    work = output.with_name(output.name + '.build')
    if len(images) < FEWEST_IMAGES:
        raise DataError(f'an update needs at least {FEWEST_IMAGES} photographs, '
                        f'{len(images)} given')
    check_minutes(minutes)
    keep_freed_memory()
    started = time.monotonic()
    engine = make_engine(device)
    check_output(output)
    described = [describe_image(image) for image in images]

    def mark_on(old_sha256: str) -> str:
        return mark_of(json.dumps(['update', old_sha256, to_dict(config), minutes, described]))

    if was_finished(engine, output, work, lambda made: mark_on(made['updated_from'])):
        return SceneMap.load(output)
    old = SceneMap.load(map_folder).to(str(engine.device))
    check_rehearsable(old)
    mark = []
    once(engine, lambda: mark.append(mark_work_folder(work, mark_on(old.sha256))))
    torch.manual_seed(config.seed)
    with ProgressBars(shown=engine.is_global_zero) as bars:
        stages = UpdateStages(old, config, engine, bars, minutes, work)
        placement = stages.placement(images)
        new = [replace(image, name=name) for image, name in zip(placement.images, unique_names(
            [image.name for image in placement.images], old.reference_names))]
        sparse = stages.sparse_points(new)
        held = held_out(len(new), config.held_out)
        depths = stages.depths(new, sparse, held)
        changes = stages.changes(new, depths, held)
        rehearsed, dropped = stages.rehearsed(changes)
        frame = frame_for(old, new, sparse.points)
        lesson = Lesson(new, rehearsed, sparse, depths, frame, held)
        field, quality = stages.field(lesson)
        pictures = stages.pictures(lesson, field)
        references = stages.references(pictures, field, frame)
        matcher = stages.matcher(pictures, references, frame, held)
        once(engine, lambda: stages.finish(
            output, lesson, pictures, references, field, matcher, {
                'images': len(pictures), 'extent_m': extent_of(old, new), **quality,
                'sparse_points': len(sparse.points),
                'updated_from': old.sha256, 'work_mark': ''.join(mark),
                'new_images': len(new), 'placed_by': placement.how, **{
                    f'placement_{name}': number for name, number in placement.numbers.items()},
                'left_out': sorted(placement.left_out),
                'changed_share': changes.share, 'views_rehearsed': len(rehearsed),
                'views_dropped': dropped,
                'last_run_minutes': round((time.monotonic() - started) / 60, 2)}, beside))
    return SceneMap.load(output)


def was_finished(
    engine: 'Fabric', output: Path, work: Path, mark_from: Callable[[dict], str],
) -> bool:
    """Tell whether this command has made the map in `output`, and was killed before its end.

    mark_from: gives the mark that this command has, by the notes of the map. What is left of a
    finished map is deleted, whatever command left it; but the photographs of another command
    may lie in the work folder already.
    """
    made = []

    def look() -> None:
        mark = work / MARK
        if mark.exists() and (output / 'map.yaml').exists():
            notes = SceneMap.load(output).notes
            if notes.get('work_mark') == mark.read_text():
                made.append(mark_from(notes) == notes['work_mark'])

    look()
    once(engine, lambda: None)  # all have looked
    once(engine, lambda: _clear(work, () if made[0] else BEFORE_BUILDS) if made else None)
    return made == [True]


def _clear(work: Path, kept: Sequence[str]) -> None:
    """Delete a work folder, but what has a name in `kept`."""
    if not kept:
        shutil.rmtree(work)
        return
    for path in work.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class UpdateStages(MapLife):
    """The stages before the field: where the new photographs lie and what they contradict."""

    def localized(
        self, images: list[PosedImage], report: Callable[[float, dict], None],
    ) -> tuple[list[np.ndarray | None], list[str]]:
        """Localize photographs in the old map, one by one into a file.

        Gives the pose (4, 4) of each, or None with the reason: '' where the judge disbelieves it.
        """
        path, localizer = self.work / 'localized.jsonl', Localizer(self.old)

        def localize() -> None:
            lines = path.read_text().split('\n')[:-1] if path.exists() else []
            write_text(path, ''.join(line + '\n' for line in lines))  # whole lines only
            with open(path, 'a', encoding='utf-8') as file:
                for k, image in enumerate(images[len(lines):], len(lines)):
                    estimate = localizer.localize_and_refine(
                        replace(image, map_from_camera=None, depth=None, depth_path=None))
                    counts = believed(estimate, self.config.placement.least_probability)
                    pose = estimate.map_from_camera.tolist() if counts else None
                    file.write(json.dumps([pose, estimate.reason]) + '\n')
                    file.flush()
                    report((k + 1) / len(images), {})

        once(self.engine, localize)
        stored = [json.loads(line) for line in path.read_text().splitlines()]
        return ([None if pose is None else np.array(pose) for pose, _ in stored],
                [reason for _, reason in stored])

    def placement(self, images: list[PosedImage]) -> Placement:
        """Find where the new photographs lie in the map."""
        report = self.bar('placement')
        placement = place(images, *self.localized(images, report),
                          judged_threshold(self.old.extent), depth_of(self.old),
                          self.config.placement)
        if len(placement.images) < FEWEST_IMAGES:
            raise DataError(f'{len(placement.images)} of {len(images)} photographs could be '
                            f'placed in the map, {FEWEST_IMAGES} are needed; give poses with the '
                            'photographs, which hold those together that the map does not know')
        report(1.0, {'placed': len(placement.images), 'left out': len(placement.left_out)})
        return placement

    def sparse_points(self, new: list[PosedImage]) -> SparsePoints:
        """Triangulate what the new photographs have in common."""
        path, report = self.work / 'sparse_points.npz', self.bar('sparse points')

        self.once(path, lambda: triangulate(new).save(path))
        sparse = SparsePoints.load(path)
        report(1.0, {'points': len(sparse.points)})
        return sparse

    def depths(
        self, new: list[PosedImage], sparse: SparsePoints, held: list[int],
    ) -> list[DepthMap | None]:
        """Measure the depth of the new photographs that are learned."""
        path, report = self.work / 'depth.npz', self.bar('depth')
        kept = [k for k in range(len(new)) if k not in held]

        def make() -> None:
            frame = self.old.frame
            maps = multi_view_depth(
                [new[k] for k in kept], observations_of(sparse, kept), self.config.depth,
                depth_range=(frame.near / frame.scene_from_map.scale,
                             frame.far / frame.scene_from_map.scale), report=report)
            with written_atomically(path) as temporary:
                save_depth_maps(temporary, maps)

        self.once(path, make)
        report(1.0, {})
        return load_depth_maps(path)

    def changes(
        self, new: list[PosedImage], depths: list[DepthMap | None], held: list[int],
    ) -> Changes:
        """Find the space that the new photographs contradict."""
        path, report = self.work / 'changes.npz', self.bar('changes')
        config, kept = self.config.changes, [k for k in range(len(new)) if k not in held]

        def make() -> None:
            chosen = np.unique(np.linspace(
                0, len(kept) - 1, min(config.photographs, len(kept))).round().astype(int))
            looks = []
            for n, k in enumerate(chosen):
                looks.append(look(self.old, new[kept[k]], depths[k], config))
                report((n + 1) / len(chosen), {})
            found = find_changes(looks, self.old.frame, config).contradicted
            with written_atomically(path) as temporary:
                np.savez_compressed(temporary, contradicted=found)

        self.once(path, make)
        with np.load(path, allow_pickle=False) as stored:
            changes = Changes(stored['contradicted'], self.old.frame)
        report(1.0, {'share': changes.share})
        return changes

    def rehearsed(self, changes: Changes | None) -> tuple[list[Rehearsed], list[str]]:
        """Render the old views, with what is as it was; those that saw only what is gone go."""
        old, config, report = self.old, self.config.rehearsal, self.bar('rehearsal')
        views, folder = views_of(old, config), self.work / 'rehearsed'
        names = [old.reference_names[k] for k in views]
        once(self.engine, lambda: rehearse(old, views, folder, names, report))
        every = [still_pixels(image, changes) for image in rehearse(old, views, folder, names)]
        kept = [each for each in every if each.left >= config.least_left]
        dropped = [each.image.name for each in every if each.left < config.least_left]
        if not kept:
            raise DataError('the new photographs contradict everything that the map shows; it is '
                            'another place by now: build a new map')
        report(1.0, {'views': len(kept), 'dropped': len(dropped)})
        return kept, dropped


def look(
    old: SceneMap, image: PosedImage, depth: DepthMap | None, config: ChangeConfig,
) -> Look:
    """Compare a photograph with what the field of the old map shows from its pose."""
    view = old.working_view(image.camera)
    camera, pose = view.camera, image.map_from_camera
    shown = render_view(old.field, old.frame, camera, torch.from_numpy(pose),
                        stride=config.stride, colour=True)
    shape = (shown.rows, shown.columns)
    grid = camera.scaled_to(shown.columns, shown.rows)
    photograph = cv2.resize(view.picture(image.rgb()), shape[::-1],
                            interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    differs = differing(photograph, shown.colour.cpu().numpy().reshape(*shape, 3), config)
    measured = None
    if depth is not None:
        rays = grid.rays(grid.pixel_grid().double()).float()
        along = DepthTable([depth]).distances(torch.zeros(len(rays), dtype=torch.int64), rays)
        measured = (along * rays[:, 2]).numpy().reshape(shape)
    surface = torch.where(shown.opacity > OPAQUE, shown.depth, 0).cpu().numpy().reshape(shape)
    return Look(grid, pose, differs, surface, measured)
