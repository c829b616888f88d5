"""Localize images whose poses are known, measure the errors, and write the report."""

from collections import Counter
from collections.abc import Callable, Sequence
import csv
from dataclasses import dataclass, replace
import io
import json
import math
from pathlib import Path
import time
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.tum import format_tum
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.frame_alignment import align_with_truth, moved_results
from nerfmatch_ros.evaluation.paper_table import BenchmarkScene, paper_row
from nerfmatch_ros.evaluation.reliability import (
    correct_poses,
    reliability,
    risk_coverage,
    summarize_reliability,
)
from nerfmatch_ros.files import write_text
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
import numpy as np


@dataclass(frozen=True)
class QueryResult:
    """One query with what was found."""

    image: PosedImage  # with its true pose
    estimate: PoseEstimate
    seconds: float  # wall time of the localization, without reading the file


def evaluate(
    localizer: Any, images: Sequence[PosedImage], output: Path,
    scene: BenchmarkScene | None = None, *, align: str = 'none',
    known: Sequence[PosedImage] = (),
) -> dict:
    """
    Localize each image, write the report and its pictures into the folder, return the report.

    localizer: a `Localizer`; it never sees the true poses. images: with `map_from_camera`.
    scene: of a benchmark that the images are of; then the report has a row `paper`.
    align: 'rigid' or 'similarity' where truth is in another frame than the map; errors are then
    in the frame of truth, poses.tum too. known: images with true poses to find it by, see
    `align_with_truth`.
    """
    if not images:
        raise DataError('there are no images to evaluate')
    unknown = [image.name for image in images if image.map_from_camera is None]
    if unknown:
        raise DataError(
            f'{len(unknown)} of {len(images)} images have no true pose, the first is '
            f'{unknown[0]}; choose another split or use `nerfmatch localize`')
    results = localize_all(localizer, images)
    scene_map, render = localizer.scene_map, localizer.render
    extent, map_poses = scene_map.extent, scene_map.reference_poses
    aligned = {}
    if align != 'none':
        alignment = align_with_truth(
            scene_map, known, [result.estimate.map_from_camera for result in results], images,
            with_scale=align == 'similarity')
        aligned = {'alignment': json_ready(alignment.report())}
        results, moved = moved_results(results, alignment), alignment.truth_from_map
        extent, map_poses = extent * moved.scale, moved.apply_to_pose(map_poses)

        def render(camera: Camera, pose: np.ndarray) -> np.ndarray:
            return localizer.render(camera, moved.inverse().apply_to_pose(pose))

    limit = getattr(localizer, 'judged_limit', None)
    if limit is not None:
        limit = limit[0] * extent / scene_map.extent, limit[1]
    report = {**summarize(results, extent, limit), **aligned}
    if scene is not None:
        report['paper'] = json_ready(paper_row(scene, errors_of(results)))
    write_results(results, report, output)
    # matplotlib is slow to import and the figures above stand without it.
    from nerfmatch_ros.evaluation.pictures import draw_reliability, draw_trajectory, draw_worst
    draw_trajectory(results, map_poses, Path(output) / 'trajectory.png')
    draw_worst(results, render, Path(output) / 'worst.png')
    if report['reliability'] is not None:
        probabilities, wrong = probabilities_of(results), ~correct_poses(
            errors_of(results), extent, limit)
        draw_reliability(reliability(probabilities, ~wrong), risk_coverage(probabilities, wrong),
                         Path(output) / 'reliability.png')
    return report


def localize_all(
    localizer: Any, images: Sequence[PosedImage],
    after_each: Callable[[QueryResult], None] | None = None,
) -> list[QueryResult]:
    """Localize images one after the other, with nothing but their pixels and cameras."""
    from rich.progress import track
    results = []
    for image in track(images, description='localizing', transient=True):
        query = replace(
            image, pixels=image.rgb(), map_from_camera=None, depth=None, depth_path=None)
        start = time.perf_counter()
        estimate = localizer.localize_and_refine(query)
        results.append(QueryResult(image, estimate, time.perf_counter() - start))
        if after_each is not None:
            after_each(results[-1])
    return results


def errors_of(results: Sequence[QueryResult]) -> metrics.PoseErrors:
    """Compare the estimates with the true poses."""
    return metrics.pose_errors(
        [result.estimate.map_from_camera for result in results],
        [result.image.map_from_camera for result in results])


def probabilities_of(results: Sequence[QueryResult]) -> np.ndarray:
    """Give what the judge says of each query (N,): 0 without a pose, nan without a judge."""
    return np.array([result.estimate.probability for result in results])


def summarize(
    results: Sequence[QueryResult], extent: float, limit: tuple[float, float] | None = None,
) -> dict:
    """Give the report; extent: diagonal of the map cameras' bounding box, metres.

    limit: metres and radians that probabilities are of, where not of `judged_threshold`
    """
    errors = errors_of(results)
    poses = [result.estimate.map_from_camera for result in results]
    seconds = np.array([result.seconds for result in results])
    return json_ready({
        'queries': len(results),
        'localized': sum(pose is not None for pose in poses),
        'median_translation_m': metrics.median(errors.translation),
        'median_rotation_deg': metrics.median(errors.rotation),
        'p90_translation_m': metrics.percentile(errors.translation, 90),
        'p90_rotation_deg': metrics.percentile(errors.rotation, 90),
        'recall': metrics.recalls(errors, extent),
        'seconds_per_image': {
            'median': metrics.percentile(seconds, 50), 'p95': metrics.percentile(seconds, 95)},
        'map_extent_m': extent,
        'confident_but_wrong': metrics.confident_but_wrong(
            errors, np.array([result.estimate.position_std for result in results])),
        'anees': metrics.average_nees(
            poses, [result.image.map_from_camera for result in results],
            [result.estimate.covariance for result in results]),
        'reliability': summarize_reliability(
            probabilities_of(results), errors, extent, limit),
        'failures': dict(Counter(
            result.estimate.reason for result in results
            if result.estimate.map_from_camera is None)),
    })


def json_ready(value: Any) -> Any:
    """Turn numpy values into plain ones, and nan and infinity, which JSON lacks, into null."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_results(results: Sequence[QueryResult], report: dict, output: Path) -> None:
    """Write report.json, poses.tum, true_poses.tum and errors.csv into the folder."""
    output = Path(output)
    stamps = [result.image.stamp for result in results]
    if None in stamps or len(set(stamps)) < len(stamps):
        stamps = list(range(len(results)))  # the position in the list of queries
    estimated = [(stamp, result.estimate.map_from_camera)
                 for stamp, result in zip(stamps, results)
                 if result.estimate.map_from_camera is not None]
    true = [(stamp, result.image.map_from_camera) for stamp, result in zip(stamps, results)]
    write_text(output / 'poses.tum', format_tum(estimated))
    write_text(output / 'true_poses.tum', format_tum(true))
    write_text(output / 'errors.csv', format_errors(results))
    # Last, so that a report stands for a complete set of files.
    write_text(output / 'report.json', json.dumps(report, indent=2, allow_nan=False) + '\n')


def format_errors(results: Sequence[QueryResult]) -> str:
    """Give the text of errors.csv, one line a query; failed queries leave their errors empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([
        'name', 'localized', 'reason', 'translation_error_m', 'rotation_error_deg', 'inliers',
        'matches', 'reprojection_error_px', 'position_std_m', 'probability', 'seconds'])
    errors = errors_of(results)
    for i, result in enumerate(results):
        estimate = result.estimate
        writer.writerow([
            result.image.name, int(estimate.map_from_camera is not None), estimate.reason,
            *(_number(value) for value in (errors.translation[i], errors.rotation[i])),
            estimate.inliers, estimate.matches, _number(estimate.reprojection_error),
            _number(estimate.position_std), _number(estimate.probability),
            f'{result.seconds:.4f}'])
    return text.getvalue()


def _number(value: float) -> str:
    return f'{value:.6g}' if math.isfinite(value) else ''
