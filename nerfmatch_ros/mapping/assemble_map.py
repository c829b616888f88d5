"""Putting a map together: surface points, words and descriptors for retrieval, reference views."""

from collections.abc import Callable, Sequence
from dataclasses import replace
import logging

from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import as_tensor, working_focal
from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.mapping.build_config import BuildConfig
from nerfmatch_ros.mapping.build_surface_cache import (
    build_surface_cache,
    SurfaceCacheOptions,
    thinned_views,
)
from nerfmatch_ros.mapping.cell_words import cells_of, fit_cell_words, images_for_words
from nerfmatch_ros.mapping.point_tokens import with_tokens
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.mapping.surface_points import points_shown, surface_points
from nerfmatch_ros.matching.make_matcher import Matcher
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.radiance_field.surface_cache import SurfaceCache
from nerfmatch_ros.references import References
from nerfmatch_ros.retrieval import describe, fit_words
from nerfmatch_ros.scene_map import encode_points, SceneMap
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

LOG = logging.getLogger(__name__)
# Points of the whole map that a view has to show for each inlier that a pose needs, if images are
# to be matched with all of them: twice what was measured to be enough, docs/scale.md.
SHOWN_PER_INLIER = 4


@torch.inference_mode()
def assemble_map(
    images: Sequence[PosedImage], references: Sequence[ReferenceView], field: RadianceField,
    matcher: Matcher, frame: SceneFrame, config: BuildConfig, *, device: str = 'cpu',
    notes: dict | None = None, views: Sequence[int] | None = None,
    report: Callable[[float], None] = lambda progress: None,
) -> SceneMap:
    """Choose the surface points, describe the reference images, put the map together.

    images, references: one for one, as all the map was made of; the map keeps
    `config.reference_views` of them, or those numbered `views`, in that order. References may be
    stored views: they are read one by one, and the map reads them again when it is saved or used.
    field, matcher: on `device`, for inference.
    """
    if views is not None:
        kept = views
    elif config.reference_views:
        kept = np.unique(
            np.linspace(0, len(references) - 1, config.reference_views).round().astype(int))
    else:
        kept = range(len(references))
    chosen = [references[k] for k in kept]

    def picture(number: int) -> Tensor:
        reference = chosen[number]
        if config.reference_images == 'real':
            return as_tensor(reference.view.picture(images[kept[number]].rgb()))
        camera = reference.view.camera
        rendered = render_view(field, frame, camera, reference.map_from_camera, stride=1,
                               colour=True)
        return rendered.colour.T.reshape(3, camera.height, camera.width)

    surface = surface_points(references, config.surface_points)
    localization = start_that_serves(config.localization, points_shown(surface.points, references))
    if matcher.per_view:
        words = fit_cell_words(map(picture, images_for_words(len(chosen))), matcher, config.words)
    else:
        features = None if surface.features is None else surface.features.to(device)
        tokens = encode_points(matcher, frame, surface.points.to(device), features).coarse
        words = fit_words(F.normalize(tokens, dim=-1).cpu(), config.words)
    descriptors = []
    for number in range(len(chosen)):
        descriptors.append(
            describe(cells_of(picture(number), matcher), words, matcher.scale.item()))
        report(0.5 * len(descriptors) / len(chosen))
    counts = torch.tensor([0] + [len(reference.points) for reference in chosen])
    stored = References(
        [reference.name for reference in chosen],
        [reference.view.source for reference in chosen],
        np.stack([reference.map_from_camera.numpy() for reference in chosen]),
        torch.stack(descriptors), torch.cumsum(counts, 0), stored=chosen)
    stored = with_tokens(stored, matcher, frame)
    cache = _surface_cache(references, field, frame, config.surface_cache_points,
                           lambda progress: report(0.5 + 0.5 * progress))
    return SceneMap(
        frame, config.field, field, config.matcher, matcher, stored, surface, words,
        working_focal([image.camera for image in images], config.longest_side),
        config.longest_side, config.frame_id, to_dict(localization), notes=notes or {},
        working_size=config.working_size,
        surface_cache=None if cache is None else cache.to(device))


def start_that_serves(config: LocalizerConfig, shown: Tensor) -> LocalizerConfig:
    """Start from retrieved views where a map is too large for one set of points.

    shown: (k,) how many of the points views show. The number of points of a map is fixed, so that
    the time of matching with them is; the larger the map, the fewer of them one view shows.
    """
    needed = SHOWN_PER_INLIER * config.min_inliers
    fewest = float(torch.quantile(shown.double(), 0.1))
    if config.start != 'global' or fewest >= needed:
        return config
    LOG.warning('one view in ten shows no more than %d points of the surface of this map, and to '
                'match images with the whole of it each should show %d: images start from '
                'retrieved views (localization.start: retrieval); more surface_points keep global',
                fewest, needed)
    return replace(config, start='retrieval')


def _surface_cache(
    references: Sequence[ReferenceView], field: RadianceField, frame: SceneFrame, points: int,
    report: Callable[[float], None],
) -> SurfaceCache | None:
    """Make a surface cache of at most that many points from all views; None of none."""
    if not points:
        report(1.0)
        return None
    if field.official:
        report(1.0)
        return thinned_views(
            lambda k: (references[k].points, references[k].features), len(references), points)
    return build_surface_cache(
        field, frame, [reference.view.camera for reference in references],
        np.stack([reference.map_from_camera.numpy() for reference in references]),
        SurfaceCacheOptions(points=points), report)

