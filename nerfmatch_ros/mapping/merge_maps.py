"""Two maps that overlap become one, in the frame of the first.

    views of B, rendered -> localized in A -> a_from_b, which most must agree on
    -> where they contradict one another, B counts -> one field, one matcher, one map

No photographs are needed: both fields render what they know. Views of B are the new photographs of
an update of A, and come with depth.
"""

import json
import logging
from pathlib import Path
import time

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.localization.judge import judged_threshold
from nerfmatch_ros.mapping.build_folder import (
    check_minutes,
    check_output,
    mark_of,
    mark_work_folder,
)
from nerfmatch_ros.mapping.depth_map import DepthMap
from nerfmatch_ros.mapping.engine import make_engine, once
from nerfmatch_ros.mapping.field_loss import FieldTrainingConfig
from nerfmatch_ros.mapping.map_life import Lesson
from nerfmatch_ros.mapping.map_reach import depth_of, extent_of, frame_for
from nerfmatch_ros.mapping.placement import agree, Consensus, moved_by, scale_of
from nerfmatch_ros.mapping.progress_bars import ProgressBars
from nerfmatch_ros.mapping.rehearsal import check_rehearsable, rehearse, unique_names, views_of
from nerfmatch_ros.mapping.sparse_points import no_points
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig
from nerfmatch_ros.mapping.update_config import UpdateConfig
from nerfmatch_ros.mapping.update_map import UpdateStages, was_finished
from nerfmatch_ros.memory import keep_freed_memory
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch

LOG = logging.getLogger(__name__)
FEWEST_VIEWS = 5  # of the second map, that must agree on where it lies in the first
MERGING = UpdateConfig(
    minutes=45.0, held_out=0, field_training=FieldTrainingConfig(steps=6000),
    matcher_training=MatcherTrainingConfig(steps=3000, rate=1e-3))


def merge_maps(
    first: Path, second: Path, output: Path, config: UpdateConfig | None = None, *,
    minutes: float | None = None, device: str = 'cpu',
) -> SceneMap:
    """Join two maps and save the whole to `output`, another folder; both stay as they are.

    The frame, networks and calibration are those of the first map. minutes: of training in all,
    instead of `config.minutes`. Raises DataError where too few views of the second map are found
    in the first, or not in the same places, or at another scale.
    """
    config = config or MERGING
    minutes = config.minutes if minutes is None else minutes
    output = Path(output).resolve()
    folders = [Path(first).resolve(), Path(second).resolve()]
    if output in folders or folders[0] == folders[1]:
        raise DataError(f'{first} and {second} are to be merged into {output}; give two maps '
                        'and another folder for the whole')
    check_minutes(minutes)
    keep_freed_memory()
    started = time.monotonic()
    work = output.with_name(output.name + '.build')
    engine = make_engine(device)
    check_output(output)
    a, b = (SceneMap.load(folder).to(str(engine.device)) for folder in folders)
    own = mark_of(json.dumps(['merge', a.sha256, b.sha256, to_dict(config), minutes]))
    if was_finished(engine, output, work, lambda made: own):
        return SceneMap.load(output)
    check_rehearsable(a)
    check_rehearsable(b)
    mark = []
    once(engine, lambda: mark.append(mark_work_folder(work, own)))
    torch.manual_seed(config.seed)
    with ProgressBars(shown=engine.is_global_zero) as bars:
        stages = MergeStages(a, config, engine, bars, minutes, work)
        views = stages.views_of_second(b)
        consensus, numbers = stages.where(views)
        new = [moved_by(consensus.map_from_given, image) for image in views]
        depths = [DepthMap(image.depth_map(), image.camera) for image in new]
        changes = stages.changes(new, depths, [])
        rehearsed, dropped = stages.rehearsed(changes)
        surface = b.surface.points.cpu().numpy() @ consensus.map_from_given[:3, :3].T \
            + consensus.map_from_given[:3, 3]
        frame = frame_for(a, new, surface)
        lesson = Lesson(new, rehearsed, no_points(), [None] * len(new), frame, [])
        field, quality = stages.field(lesson)
        pictures = stages.pictures(lesson, field)
        references = stages.references(pictures, field, frame)
        matcher = stages.matcher(pictures, references, frame, [])
        once(engine, lambda: stages.finish(
            output, lesson, pictures, references, field, matcher, {
                'images': len(pictures), 'extent_m': extent_of(a, new), **quality,
                'merged_from': [a.sha256, b.sha256], 'work_mark': ''.join(mark), **numbers,
                'first_from_second': consensus.map_from_given.tolist(),
                'changed_share': changes.share, 'views_rehearsed': len(pictures),
                'views_dropped': dropped,
                'last_run_minutes': round((time.monotonic() - started) / 60, 2)}))
    return SceneMap.load(output)


class MergeStages(UpdateStages):
    """The stages that a merge has before those of an update."""

    def views_of_second(self, second: SceneMap) -> list[PosedImage]:
        """Render views of the second map as photographs with depth, in its own frame."""
        views, report = views_of(second, self.config.rehearsal), self.bar('second map')
        names = unique_names([second.reference_names[k] for k in views],
                             self.old.reference_names)
        folder = self.work / 'second'
        once(self.engine, lambda: rehearse(second, views, folder, names, report))
        report(1.0, {'views': len(views)})
        return rehearse(second, views, folder, names)

    def where(self, views: list[PosedImage]) -> tuple[Consensus, dict]:
        """Find where the second map lies in the first, and say how well that is known."""
        report = self.bar('overlap')
        found, _ = self.localized(views, report)
        limit = judged_threshold(self.old.extent)
        given = np.stack([image.map_from_camera for image in views])
        consensus = overlap_of(given, found, limit, depth_of(self.old),
                               self.config.placement.largest_scale_error)
        numbers = {
            'views_localized': sum(pose is not None for pose in found),
            'views_agreeing': int(consensus.agrees.sum()), 'residual_m': consensus.metres,
            'residual_rad': consensus.radians}
        report(1.0, {'agreeing': numbers['views_agreeing']})
        return consensus, numbers


def overlap_of(
    given: np.ndarray, found: list[np.ndarray | None], limit: tuple[float, float], depth: float,
    largest_scale_error: float,
) -> Consensus:
    """Give the motion from the second map's frame into the first that views (n, 4, 4) agree on.

    found: their poses in the first map, None where it knows none; limit: metres and radians,
    within which two poses are one; depth: metres to what cameras see. Raises DataError if fewer
    than `FEWEST_VIEWS` agree, less than half of those found, or the maps have different scales.
    """
    localized = sum(pose is not None for pose in found)
    consensus = agree(given, found, limit, depth) if localized else None
    agreeing = 0 if consensus is None else int(consensus.agrees.sum())
    scale = scale_of(given, found, limit) if localized else None
    if scale is not None and abs(scale - 1) > largest_scale_error and 2 * agreeing < localized:
        raise DataError(f'distances of the second map are {1 / scale:.3f} times those of the '
                        'first; only maps of one scale are merged, build one of them anew')
    if agreeing < FEWEST_VIEWS or 2 * agreeing < localized:
        raise DataError(
            f'{localized} of {len(found)} views of the second map were localized in the first '
            f'and {agreeing} agree on where it lies; {FEWEST_VIEWS} and at least half of them '
            'are needed: the maps do not overlap enough, or show different states of the place')
    return consensus
