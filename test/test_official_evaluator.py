"""From rendering to the matches that go into PnP, as the published evaluator made them.

The evaluator's reference view was rendered with even sampling, in the frame of the field's own
fixture, and matched with the parity data set's first query.
"""

from nerfmatch_ros.data.working_image import as_tensor, working_view
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.importers.official import official_matcher
from nerfmatch_ros.importers.official_checkpoint import OfficialCheckpoint
from nerfmatch_ros.importers.official_field import official_field
from nerfmatch_ros.localization.absolute_pose import AbsolutePoseOptions, solve_absolute_pose
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.scene_map import encode_points
import numpy as np
from official_parity import Fixture, FOLDER, needs_fixtures, official_options, official_weights
import pytest
from test_official_view import annotated, frame_of, pinhole, square
import torch


def checkpoint(kind):
    return OfficialCheckpoint(FOLDER / kind, official_weights(kind), official_options(kind))


@pytest.fixture(scope='module')
def reference():
    """Render the reference view with the field and frame that the evaluator used."""
    fixture = Fixture('e2e')
    side = 8 * square(fixture['mini_pt3d'])
    camera = pinhole(fixture['mini_K'].double(), side, side)
    frames = [frame_of(Fixture('nerf_app')['world2nscene'].double())]
    frames += [frame_of(Fixture('geom')[f'world2nscene_depth{depth}'].double())
               for depth in (1, 10, 50)]
    few = Camera('PINHOLE', side, 8, camera.fx, camera.fy, camera.cx, camera.cy)  # the first row
    row = fixture['mini_pt3d'][:side // 8]
    for kind in ('nerf_app', 'nerf_noapp'):
        field = official_field(checkpoint(kind), random_rendering=False)
        for frame in frames:
            shown = render_view(field, frame, few, fixture['mini_rc2w'].double())
            if (shown.points - row).abs().max() < 0.01:
                return frame, render_view(field, frame, camera, fixture['mini_rc2w'].double(),
                                          feature_layer=3)
    pytest.fail('no field and frame of the fixtures shows the points of e2e.npz')


@needs_fixtures
@pytest.mark.parametrize('kind', ['mini', 'full'])
@torch.no_grad()
def test_matches_handed_to_pnp_are_the_published_ones(reference, kind):
    frame, view = reference
    fixture = Fixture('e2e')
    expected_points = fixture[f'{kind}_pt3d']
    torch.testing.assert_close(view.points, expected_points, rtol=1e-4, atol=5e-3)
    matcher = official_matcher(checkpoint(kind))
    queries = annotated('test')
    query = queries[0]
    side = 8 * square(expected_points)
    working = working_view(query.camera, 1.0, 1, (side, side))
    tokens = matcher.encode_image(as_tensor(working.picture(query.rgb())))
    # The published points themselves: a rounding of 0.1 mm is a radian in the highest octave of
    # their encoding.
    matches = matcher.match(
        tokens, encode_points(matcher, frame, expected_points, view.features))
    found = {tuple(point.tolist()): pixel + 0.5
             for point, pixel in zip(expected_points[matches.points], matches.pixels)}
    wanted = {tuple(point.tolist()): pixel
              for point, pixel in zip(fixture[f'{kind}_m3d'], fixture[f'{kind}_m2d'])}
    # A pair whose score hardly differs from the next best one may go either way.
    common = found.keys() & wanted.keys()
    assert len(common) >= 0.95 * max(len(found), len(wanted))
    apart = torch.stack([(found[point] - wanted[point]).abs().max() for point in common])
    assert (apart < 0.02).float().mean() >= 0.95


@needs_fixtures
@pytest.mark.parametrize('name', ['n1000_o30', 'n1000_o70', 'n60_o30'])
@pytest.mark.parametrize('solver, threshold', [('cv2', 10.0), ('colmap', 5.0)])
def test_poses_agree_with_those_of_the_published_solvers(name, solver, threshold):
    """PoseLib stands in for OpenCV and pycolmap: as close to the truth, as many inliers."""
    fixture = Fixture('pnp')
    camera = pinhole(fixture['K'], *(round(2 * fixture['K'][i, 2].item()) for i in (0, 1)))
    truth = fixture['c2w_gt'].numpy()
    theirs = np.eye(4)
    rotation = fixture[f'{name}_{solver}_R_w2c'].numpy()
    theirs[:3, :3] = rotation.T
    theirs[:3, 3] = -rotation.T @ fixture[f'{name}_{solver}_t_w2c'].numpy().ravel()
    estimate = solve_absolute_pose(
        fixture[f'{name}_uv'].double().numpy() - 0.5, fixture[f'{name}_X'].double().numpy(),
        camera, options=AbsolutePoseOptions(max_reprojection_error=threshold))

    def errors(pose):
        angle = np.degrees(np.arccos(np.clip(
            (np.trace(pose[:3, :3].T @ truth[:3, :3]) - 1) / 2, -1, 1)))
        return np.linalg.norm(pose[:3, 3] - truth[:3, 3]), angle

    ours, published = errors(estimate.map_from_camera), errors(theirs)
    assert ours[0] < 1.5 * published[0] + 0.01 and ours[1] < 1.5 * published[1] + 0.05
    assert estimate.inliers >= 0.9 * fixture[f'{name}_{solver}_n_inl'].item()
