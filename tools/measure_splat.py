"""Compares what a surface cache shows with what the field renders: time, coverage, poses.

    OMP_NUM_THREADS=1 python tools/measure_splat.py --map MAP --images DIR

Both are asked for the view at the true pose of each photograph, one after the other, in CPU
milliseconds of one thread (medians). Then each photograph is matched, once, with either from a
pose that lies 2 cm and 1 degree, 10 cm and 4 degrees, 30 cm and 10 degrees off, the same for both.
Prints a table and, with --output, writes the figures as JSON. A map without a surface cache gets
one with `nerfmatch surface-cache`.
"""

import argparse
import json
import math
from pathlib import Path
import sys
import time

from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.geometry.pose import perturb, pose_distance
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.localization.surface_tokens import SurfaceTokens
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.splatting import splat
from nerfmatch_ros.radiance_field.surface_cache import cached_points
import numpy as np
from rich.console import Console
from rich.table import Table
import torch

STARTS = ((0.02, 1.0), (0.1, 4.0), (0.3, 10.0))  # metres, degrees
FAR = 0.06  # share of the depth by which a point is nearer or farther than what is rendered


def timed(times: list[float], function, *arguments, **options):
    """Call a function and note its CPU milliseconds."""
    begun = time.process_time()
    result = function(*arguments, **options)
    times.append(1e3 * (time.process_time() - begun))
    return result


def measure_views(localizer: Localizer, images: list, repeats: int) -> dict[str, float]:
    """Time rendering and splatting by turns, and compare what they show."""
    scene_map = localizer.scene_map
    field, frame, cache = scene_map.field, scene_map.frame, scene_map.surface_cache
    layer = scene_map.matcher_config.feature_layer
    times = {name: [] for name in ('render', 'splat', 'features', 'encode', 'kept_tokens')}
    agreement, tokens = [], SurfaceTokens(scene_map)
    tokens.fill()
    for repeat in range(repeats + 1):
        if repeat == 1:  # the first round warms up
            times = {name: [] for name in times}
        for image in images:
            camera = scene_map.working_view(image.camera).camera
            pose = torch.from_numpy(np.ascontiguousarray(image.map_from_camera))
            rendered = timed(times['render'], render_view, field, frame, camera, pose,
                             feature_layer=layer)
            view = timed(times['splat'], splat, cache, camera, pose)
            shown = timed(times['features'], cached_points, cache, view.index, field, frame, layer)
            timed(times['encode'], scene_map.encode_points, *shown)
            timed(times['kept_tokens'], tokens, view.index)
            if not repeat:
                ratio = (view.depth / rendered.depth[view.cell])[rendered.solid()[view.cell]]
                agreement.append((view.coverage, rendered.solid().float().mean(),
                                  (ratio - 1).abs().median(), (ratio < 1 - FAR).float().mean(),
                                  (ratio > 1 + FAR).float().mean()))
    names = ('coverage', 'rendered_solid', 'median_depth_difference', 'share_nearer_by_6_percent',
             'share_farther_by_6_percent')
    medians = {f'{name}_ms': float(np.median(values)) for name, values in times.items()}
    return {**medians, 'render_by_splat': medians['render_ms'] / medians['splat_ms'],
            'render_by_splat_and_features':
                medians['render_ms'] / (medians['splat_ms'] + medians['features_ms']),
            **dict(zip(names, np.median(np.array(agreement, float), axis=0).tolist()))}


def measure_poses(localizer: Localizer, images: list) -> list[dict[str, float | str]]:
    """Match each photograph once from poses nearby, with rendered and with splatted points."""
    scene_map, random = localizer.scene_map, np.random.default_rng(0)
    tokens = SurfaceTokens(scene_map)

    def splatted(pose, view):
        return tokens(splat(scene_map.surface_cache, view.camera, np.asarray(pose)).index)

    errors = {(name, start): [] for start in STARTS for name in ('render', 'splat')}
    for image in images:
        query = localizer._prepare(image)
        true = torch.from_numpy(np.ascontiguousarray(image.map_from_camera))
        for start in STARTS:
            directions = random.standard_normal((2, 3))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            moved = np.concatenate((start[0] * directions[0],
                                    math.radians(start[1]) * directions[1]))
            prior = perturb(true, torch.from_numpy(moved)).numpy()
            for name, see in (('render', localizer._see), ('splat', splatted)):
                estimate = localizer._solve(query, [see(prior, query.view)],
                                            localizer.config.refined_error)
                found = (math.inf, math.inf)
                if estimate.map_from_camera is not None:
                    found = [float(part) for part in pose_distance(
                        torch.from_numpy(estimate.map_from_camera), true)]
                errors[name, start].append((100 * found[0], math.degrees(found[1]),
                                            estimate.inliers))
    return [{'points': name, 'start': f'{100 * start[0]:g} cm {start[1]:g} deg',
             **dict(zip(('median_cm', 'median_deg', 'inliers'),
                        np.median(values, axis=0).round(4).tolist())),
             'share_5cm_5deg': float(np.mean([e[0] < 5 and e[1] < 5 for e in values]))}
            for (name, start), values in errors.items()]


def main() -> None:
    """Measure one map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--map', type=Path, required=True)
    parser.add_argument('--images', type=Path, required=True)
    parser.add_argument('--split', default='test')
    parser.add_argument('--limit', type=int, default=50, help='at most that many images')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--output', type=Path, help='JSON file')
    options = parser.parse_args()
    localizer = Localizer.load(options.map, threads=1)
    cache = localizer.scene_map.surface_cache
    if cache is None:
        sys.exit(f'{options.map} has no surface cache; run nerfmatch surface-cache --map MAP')
    images = read_posed_images(options.images, options.split)
    images = images[::math.ceil(len(images) / options.limit)]
    with torch.inference_mode():
        report = {'images': len(images), 'points': len(cache), 'voxel_m': cache.voxel,
                  'views': measure_views(localizer, images, options.repeats),
                  'poses': measure_poses(localizer, images)}
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2))
    console, table = Console(), Table(title=f'{len(images)} images, {len(cache)} points')
    for column in ('what', 'median'):
        table.add_column(column)
    for name, value in report['views'].items():
        table.add_row(name, f'{value:.4g}')
    console.print(table)
    table = Table(*report['poses'][0], title='one matching from a pose nearby')
    for row in report['poses']:
        table.add_row(*(f'{value:.3g}' if isinstance(value, float) else value
                        for value in row.values()))
    console.print(table)


if __name__ == '__main__':
    main()
