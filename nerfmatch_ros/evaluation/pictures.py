"""Pictures of an evaluation: the way seen from above, the worst queries, refiners compared."""

from collections.abc import Callable, Mapping, Sequence
import itertools
from pathlib import Path
import textwrap
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from nerfmatch_ros.evaluation.metrics import pose_errors
from nerfmatch_ros.files import written_atomically
import numpy as np

AXES = 'xyz'


def plane_of_largest_extent(points: np.ndarray) -> tuple[int, int]:
    """Give the two map axes along which points (N, 3) spread most, in the order x, y, z."""
    spread = np.ptp(points, axis=0)
    first, second = sorted(np.argsort(-spread, kind='stable')[:2])
    return int(first), int(second)


def draw_trajectory(
    results: Sequence[Any], map_poses: np.ndarray, path: Path,
) -> None:
    """
    Draw map cameras, true and estimated query positions along the two axes of largest extent.

    results: `QueryResult`s; map_poses: (K, 4, 4) map_from_camera, metres.
    """
    true = np.array([result.image.map_from_camera[:3, 3] for result in results])
    found = np.array([result.estimate.map_from_camera is not None for result in results])
    errors = pose_errors([result.estimate.map_from_camera for result in results],
                         [result.image.map_from_camera for result in results])
    map_centres = np.asarray(map_poses)[:, :3, 3]
    everything = np.concatenate([map_centres, true])
    a, b = plane_of_largest_extent(everything)
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    axes.scatter(map_centres[:, a], map_centres[:, b], s=9, c='0.75', label='map cameras')
    axes.scatter(true[:, a], true[:, b], s=28, facecolors='none', edgecolors='k', linewidths=0.7,
                 label='queries, true')
    if found.any():
        estimated = np.array([
            result.estimate.map_from_camera[:3, 3]
            for result in results if result.estimate.map_from_camera is not None])
        for start, end in zip(true[found], estimated):
            axes.plot([start[a], end[a]], [start[b], end[b]], c='0.4', linewidth=0.6, zorder=1)
        centimetres = 100 * errors.translation[found]
        colours = axes.scatter(
            estimated[:, a], estimated[:, b], s=16, c=centimetres, cmap='viridis', marker='o',
            norm='log' if (centimetres > 0).all() else None, label='queries, estimated')
        figure.colorbar(colours, label='position error [cm]')
    if not found.all():
        lost = true[~found]
        axes.scatter(lost[:, a], lost[:, b], s=40, c='r', marker='x', label='not localized')
    # One false pose far outside would shrink everything else to a dot.
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = max(0.1 * (high - low).max(), 0.05)
    axes.set_xlim(low[a] - margin, high[a] + margin)
    axes.set_ylim(low[b] - margin, high[b] + margin)
    axes.set_aspect('equal')
    axes.set_xlabel(f'{AXES[a]} [m]')
    axes.set_ylabel(f'{AXES[b]} [m]')
    axes.set_title(f'{found.sum()} of {len(results)} queries localized')
    axes.legend(loc='best', fontsize='small')
    _save(figure, path)


def draw_streams(drive: Any, streams: Mapping[str, Sequence[Any]], path: Path) -> None:
    """
    Draw the true way and the positions of pose streams from above.

    drive: a `stream_report.Drive`; streams: `StampedPose`s by the name of their stream.
    """
    true = np.zeros((0, 3))
    if drive.true_poses is not None:
        true = drive.true_poses[drive.queries, :3, 3]
    found = {name: np.array([pose.map_from_body[:3, 3] for pose in stream]).reshape(-1, 3)
             for name, stream in streams.items()}
    # One false pose far outside would shrink everything else to a dot: the truth sets the frame.
    framed = true if len(true) else np.concatenate([np.zeros((1, 3)), *found.values()])
    a, b = plane_of_largest_extent(framed)
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    axes.plot(true[:, a], true[:, b], 'o-', c='k', markersize=4, markerfacecolor='none',
              linewidth=0.7, label='true')
    for (name, points), marker in zip(found.items(), 'x.+*'):
        axes.plot(points[:, a], points[:, b], marker, markersize=5, alpha=0.8, linestyle='none',
                  label=f'{name}: {len(points)} poses')
    low, high = framed.min(axis=0), framed.max(axis=0)
    margin = max(0.1 * (high - low).max(), 0.05)
    axes.set_xlim(low[a] - margin, high[a] + margin)
    axes.set_ylim(low[b] - margin, high[b] + margin)
    axes.set_aspect('equal')
    axes.set_xlabel(f'{AXES[a]} [m]')
    axes.set_ylabel(f'{AXES[b]} [m]')
    axes.legend(loc='best', fontsize='small')
    _save(figure, path)


def draw_way(
    poses: np.ndarray, kept: np.ndarray, path: Path, *, title: str, z_up: bool,
) -> None:
    """
    Draw the way of a camera, from above or along the axes of largest extent, with the keyframes.

    poses: (N, 4, 4) frame_from_camera, metres, NaN where the way has a gap; kept: (N,) bool, the
    keyframes.
    """
    centres, looks = poses[:, :3, 3], poses[kept, :3, 2]
    known = centres[np.isfinite(centres[:, 0])]
    a, b = (0, 1) if z_up else plane_of_largest_extent(known)
    low, high = known.min(axis=0), known.max(axis=0)
    margin = max(0.1 * (high - low).max(), 0.05)
    figure = Figure(figsize=(9, 7), layout='constrained')
    axes = figure.subplots()
    axes.plot(centres[:, a], centres[:, b], c='0.7', linewidth=0.8, label='way')
    axes.plot(known[:1, a], known[:1, b], 'o', c='C2', markersize=9, label='start')
    axes.plot(known[-1:, a], known[-1:, b], 's', c='C3', markersize=8, label='end')
    axes.quiver(centres[kept, a], centres[kept, b], looks[:, a], looks[:, b], color='C0',
                angles='xy', scale_units='xy', scale=1 / (0.6 * margin), width=0.0015, alpha=0.6)
    axes.plot(centres[kept, a], centres[kept, b], '.', c='C0', markersize=4,
              label=f'{kept.sum()} keyframes, and where they look')
    axes.set_xlim(low[a] - margin, high[a] + margin)
    axes.set_ylim(low[b] - margin, high[b] + margin)
    axes.set_aspect('equal')
    axes.set_xlabel(f'{AXES[a]} [m]')
    axes.set_ylabel(f'{AXES[b]} [m]')
    axes.set_title(title, fontsize='medium')
    axes.legend(loc='best', fontsize='small')
    _save(figure, path)


def draw_reliability(curve: Any, risk: Any, path: Path) -> None:
    """
    Draw claimed probabilities against what came true, and the risk of answering more queries.

    curve: a `reliability.ReliabilityCurve`; risk: a `reliability.RiskCoverage`.
    """
    figure = Figure(figsize=(9, 4.2), layout='constrained')
    claims, answers = figure.subplots(1, 2)
    claims.plot([0, 1], [0, 1], c='0.6', linewidth=0.8, label='honest')
    filled = curve.counts > 0
    claims.plot(curve.claimed[filled], curve.observed[filled], c='C0', linewidth=0.8)
    claims.scatter(curve.claimed[filled], curve.observed[filled], s=36, c='C0', zorder=3,
                   label=f'error {100 * curve.expected_calibration_error:.1f} %')
    for x, y, count in zip(curve.claimed[filled], curve.observed[filled], curve.counts[filled]):
        claims.annotate(str(count), (x, y), xytext=(6, -9), textcoords='offset points',
                        fontsize=7)
    claims.set_xlim(-0.03, 1.08)
    claims.set_ylim(-0.08, 1.03)
    claims.set_xlabel('claimed probability that the pose is correct')
    claims.set_ylabel('share that is correct')
    claims.set_title('numbers: queries', fontsize='medium')
    claims.legend(loc='upper left', fontsize='small')
    answers.step(100 * risk.coverage, 100 * risk.risk, where='post', c='C3')
    answers.set_xlim(0, 102)
    answers.set_ylim(bottom=0, top=None if risk.risk.any() else 1)
    answers.set_xlabel('queries answered, the most probable first [%]')
    answers.set_ylabel('wrong among them [%]')
    answers.set_title(f'{len(risk.risk)} queries, area {risk.area:.4f}', fontsize='medium')
    _save(figure, path)


def draw_worst(
    results: Sequence[Any], render: Callable[..., np.ndarray], path: Path, *, count: int = 6,
    width: int = 320,
) -> None:
    """
    Draw the worst queries beside the field's picture at the estimated pose; failures first.

    render: (camera, map_from_camera) -> uint8 (H, W, 3); pictures are at most `width` pixels wide.
    """
    errors = pose_errors([result.estimate.map_from_camera for result in results],
                         [result.image.map_from_camera for result in results])
    order = np.lexsort((-errors.rotation, -errors.translation))[:count]
    figure = Figure(figsize=(7, 2.8 * len(order)), layout='constrained')
    rows = figure.subplots(len(order), 2, squeeze=False)
    for (photo, picture), index in zip(rows, order):
        result = results[index]
        estimate = result.estimate
        photo.imshow(result.image.rgb())
        photo.set_title(result.image.name, fontsize=8)
        if estimate.map_from_camera is None:
            reason = textwrap.fill(estimate.reason, 40)
            picture.text(0.5, 0.5, f'not localized:\n{reason}', ha='center', va='center',
                         transform=picture.transAxes, fontsize=8, color='r')
            picture.set_aspect(result.image.camera.height / result.image.camera.width)
        else:
            camera = result.image.camera
            if camera.width > width:
                camera = camera.scaled_to(width, round(camera.height * width / camera.width))
            picture.imshow(render(camera, estimate.map_from_camera))
            picture.set_title(
                f'rendered at the estimate: {100 * errors.translation[index]:.1f} cm, '
                f'{errors.rotation[index]:.2f} deg, std {100 * estimate.position_std:.1f} cm',
                fontsize=8)
        for axis in (photo, picture):
            axis.set_xticks([])
            axis.set_yticks([])
    _save(figure, path)


def draw_refinement(report: Mapping[str, Any], path: Path) -> None:
    """
    Draw the median errors of each start and refiner, logarithmic; infinite ones along the top.

    report: of `refinement_bench.summarize`.
    """
    results = report['results']
    refiners = list(next(iter(results.values())))
    figure = Figure(figsize=(max(7, 1.7 * len(results)), 8), layout='constrained')
    panels = figure.subplots(2, 1, sharex=True)
    quantities = (('median_translation_m', 100, 'median distance [cm]'),
                  ('median_rotation_deg', 1, 'median angle [deg]'))
    for axes, (key, factor, label) in zip(panels, quantities):
        medians = np.array([[
            np.inf if by_refiner[name][key] is None else factor * by_refiner[name][key]
            for name in refiners] for by_refiner in results.values()])
        shown = medians[np.isfinite(medians) & (medians > 0)]
        low, high = (shown.min() / 2, 4 * shown.max()) if len(shown) else (0.1, 100)
        for k, (name, marker) in enumerate(zip(refiners, itertools.cycle('osD^vP*X'))):
            heights = np.clip(medians[:, k], 1.15 * low, high / 1.4)  # no logarithm of 0
            finite = np.isfinite(medians[:, k])
            across = np.arange(len(results)) + 0.8 * ((k + 0.5) / len(refiners) - 0.5)
            colour = {'none': '0.5', 'default': 'k'}.get(name, f'C{k}')
            axes.vlines(across[finite], low, heights[finite], colors=colour, linewidth=1.5,
                        alpha=0.35)
            axes.plot(across[finite], heights[finite], marker, c=colour, markersize=7, label=name)
            axes.plot(across[~finite], heights[~finite], marker, c=colour, markersize=7,
                      markerfacecolor='none')
        if not np.isfinite(medians).all():
            axes.axhline(high / 1.4 ** 2, c='0.6', linewidth=0.7, linestyle=':')
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low, high)
        axes.set_ylabel(label)
        axes.grid(axis='y', c='0.9', linewidth=0.5)
        axes.set_axisbelow(True)
        for between in np.arange(1, len(results)) - 0.5:
            axes.axvline(between, c='0.8', linewidth=0.7)
        axes.set_xlim(-0.5, len(results) - 0.5)
    panels[0].set_title(f'{report["queries"]} images; hollow, above the dotted line: no pose for '
                        'half of them or more', fontsize='medium')
    panels[0].legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=len(refiners),
                     fontsize='small', title='refiner', title_fontsize='small')
    panels[1].set_xticks(range(len(results)), list(results))
    panels[1].set_xlabel('start')
    _save(figure, path)


def draw_scale(report: Mapping[str, Any], path: Path) -> None:
    """
    Draw loading, memory and time an image over the number of reference views, logarithmic.

    report: of `tools/measure_scale.py`.
    """
    rows = report['rows']
    views = [row['views'] for row in rows]
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    panels = figure.subplots(1, 3)
    curves = (
        ('load a map [s]', (('load_s', 'from the disk'), ('load_again_s', 'again, CPU'))),
        ('memory [MB]', (('process_mb', 'the process, whole'), ('map_mb', 'the map'),
                         ('mapped_mb', 'mapped, can be dropped'), ('disk_mb', 'on disk'))),
        ('CPU time an image [ms]', (
            ('total_ms', 'whole'), ('match_ms', 'match'), ('reference_first_ms',
                                                           'reference, first use'),
            ('reference_ms', 'reference, again'), ('retrieval_ms', 'retrieval'))))
    for axes, (label, lines) in zip(panels, curves):
        for (name, what), marker in zip(lines, 'osD^v'):
            axes.plot(views, [max(row[name], 1e-3) for row in rows], f'{marker}-', label=what)
        axes.set_xscale('log')
        axes.set_yscale('log')
        axes.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        axes.set_xlabel('reference views')
        axes.set_title(label, fontsize='medium')
        axes.grid(c='0.9', linewidth=0.5)
        axes.legend(fontsize='x-small')
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with written_atomically(path) as temporary:
        # Without the program's name and version the same run gives the same bytes.
        figure.savefig(temporary, dpi=110, metadata={'Software': None})
