"""The published matchers with published weights: every number on the way to their matches."""

from dataclasses import replace
import functools
from pathlib import Path

from nerfmatch_ros.importers.official_weights import official_config, official_state
from nerfmatch_ros.matching.attention import fourier_encoding, sine_position_encoding
from nerfmatch_ros.matching.coarse_matching import log_dual_softmax, masked_log_dual_softmax
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import cell_centres
from nerfmatch_ros.matching.paper_matcher import unit
import numpy as np
from official_parity import Fixture, FOLDER, needs_fixtures, official_weights
import pytest
import torch

pytestmark = needs_fixtures
SURE = 1e-3  # relative gap of the two best scores, below which rounding decides the match
MINI = ['mini_small', 'mini_480']
FULL = ['full_small', 'full_480']


def close(found, expected, atol=1e-4, rtol=1e-4):
    """Compare with an array that may have been rounded to half precision."""
    if expected.dtype == torch.float16:
        rtol = atol = 1e-3
    torch.testing.assert_close(found.float(), expected.float(), rtol=rtol, atol=atol)


def close_samples(found, expected):
    """Compare a map (..., C, H, W) with every s-th of its entries, or its tokens' first ones."""
    for axis, length in enumerate(expected.shape):
        steps = [step for step in range(1, found.shape[axis] + 1)
                 if len(range(0, found.shape[axis], step)) == length]
        step = steps[-1] if found.shape[axis] % length else found.shape[axis] // length
        found = found.movedim(axis, 0)[::step].movedim(0, axis)
    close(found, expected)


def close_first(found, expected):
    close(found[:, :expected.shape[1]], expected)


@functools.cache
def matcher(kind):
    weights = official_weights(kind)
    made = make_matcher(official_config(weights), 256)
    made.load_state_dict(official_state(weights))
    return made.eval().requires_grad_(False)


def picture(fixture, made):
    """Picture (3, H, W) in [0, 1]; small ones are stored as fed to the network."""
    try:
        return fixture['image_u'].permute(2, 0, 1)
    except KeyError:
        return fixture['image'][0] * made.backbone.deviation + made.backbone.mean


def features(fixture):
    try:
        return fixture['pt_feat'][0]
    except KeyError:
        return fixture['pt_feat_f16'][0]


class Run:
    """One fixture sent through the matcher, with what the network gave on the way."""

    def __init__(self, name):
        self.fixture = Fixture(name)
        self.made = made = matcher(name.split('_')[0])
        stages, self.inner = made.backbone.backbone.stages, {}
        watched = {'stem': stages.stem, 's0b0_mixer': stages.stages_0.blocks[0].token_mixer,
                   's0b0': stages.stages_0.blocks[0], 'stage0': stages.stages_0,
                   'down1': stages.stages_1.downsample, 'stage1': stages.stages_1}
        for k, layer in enumerate(made.self_attention):
            watched[f'sa{k}'] = layer
        hooks = [module.register_forward_hook(functools.partial(self._keep, key))
                 for key, module in watched.items()]
        self.image = made.encode_image(picture(self.fixture, made))
        self.of_image = dict(self.inner)
        self.points = made.encode_points(self.fixture['pt3d'][0], features(self.fixture))
        self.of_points = dict(self.inner)
        for hook in hooks:
            hook.remove()
        self.cells, self.attended = made.interact(self.image.coarse, self.points.coarse)
        self.confidence = log_dual_softmax(made.similarity(self.cells, self.attended)).exp()

    def _keep(self, key, module, given, result):
        self.inner[key] = result


@functools.cache
def run(name):
    with torch.no_grad():
        return Run(name)


def margins(confidence):
    """Relative gap between the two best, of each row and of each column."""
    def of_rows(values):
        best = values.topk(2, dim=1).values
        return 1 - best[:, 1] / best[:, 0]
    return of_rows(confidence), of_rows(confidence.T)


def indices(matches, columns):
    cells = ((matches.pixels - 3.5) / 8).round().long()
    return (cells[:, 1] * columns + cells[:, 0]).tolist(), matches.points.tolist()


def same_pairs(found, expected, row_margin, column_margin):
    """Compare sets of pairs, without those that rounding decides; gives how many were compared."""
    sure = [{(i, j) for i, j in zip(*pairs) if row_margin[i] > SURE and column_margin[j] > SURE}
            for pairs in (found, expected)]
    assert sure[0] == sure[1]
    return len(sure[0])


@pytest.mark.parametrize('name', MINI)
def test_mini_backbone(name):
    now, fixture = run(name), run(name).fixture
    close_samples(now.of_image['stem'], fixture['act_stem'])
    close_samples(now.of_image['s0b0_mixer'], fixture['act_s0b0_mixer'])
    close_samples(now.of_image['s0b0'], fixture['act_s0b0'])
    close_samples(now.of_image['stage0'], fixture['act_stage0'])
    close_samples(now.of_image['down1'], fixture['act_down1'])
    tokens = now.image.coarse[None]
    close(tokens, fixture['im_cfeat'])
    close(tokens.sum(-1), fixture['im_cfeat_rowsum'], atol=1e-3)
    close_first(tokens, fixture['im_cfeat_first16'])
    torch.testing.assert_close(now.made.scale, fixture['temperature'])


@pytest.mark.parametrize('name', MINI + FULL)
def test_scores(name):
    now, fixture = run(name), run(name).fixture
    confidence = now.confidence
    torch.testing.assert_close(now.made.scale, fixture['temperature'])
    row_margin, column_margin = fixture['conf_row_margin'], fixture['conf_col_margin']
    close(confidence.amax(1), fixture['conf_rowmax'], atol=1e-7)
    close(confidence.amax(0), fixture['conf_colmax'], atol=1e-7)
    for dim, margin, key in ((1, row_margin, 'conf_rowarg'), (0, column_margin, 'conf_colarg')):
        sure = margin > SURE
        assert sure.float().mean() > 0.5
        assert torch.equal(confidence.argmax(dim)[sure].int(), fixture[key][sure])
    for ours, theirs in zip(margins(confidence), (row_margin, column_margin)):
        close(ours, theirs, atol=1e-3)
    close(confidence.double().sum(), fixture['conf_sum'].float())
    rows, columns = fixture['conf_block'].shape
    close(confidence[:rows, :columns], fixture['conf_block'], atol=1e-8)
    close(confidence.diagonal(), fixture['conf_diag'], atol=1e-8)
    if name.endswith('small'):
        close(confidence, fixture['conf'], atol=1e-8)


@pytest.mark.parametrize('name', MINI)
def test_mini_matches(name):
    now, fixture = run(name), run(name).fixture
    row_margin, column_margin = fixture['conf_row_margin'], fixture['conf_col_margin']
    free = torch.ones_like(column_margin)
    for mutual, key, margin in ((True, 'mutual', column_margin), (False, 'row', free)):
        found = now.made.match(now.image, now.points, mutual=mutual)
        cells, points = indices(found, now.image.columns)
        theirs = {'mutual': ('match_i_mutual', 'match_j_mutual', 'mconf_mutual'),
                  'row': ('match_i_row', 'match_j_row', 'mconf_row')}[key]
        expected = [fixture[each].tolist() for each in theirs]
        assert same_pairs((cells, points), expected[:2], row_margin, margin) > 0.4 * len(cells)
        of_pair = dict(zip(zip(*expected[:2]), expected[2]))
        ours, known = zip(*((c.item(), of_pair[pair]) for pair, c in zip(
            zip(cells, points), found.confidence) if pair in of_pair))
        np.testing.assert_allclose(ours, known, rtol=1e-4)


def test_mini_matches_of_masked_tokens_and_above_a_threshold():
    now, fixture = run('mini_small'), run('mini_small').fixture
    made = now.made
    masks = {'cell_mask': fixture['masked_im_mask'][0], 'point_mask': fixture['masked_pt_mask'][0]}
    confidence = masked_log_dual_softmax(
        made.similarity(now.cells, now.attended), *masks.values()).exp()
    close(confidence, fixture['masked_conf'], atol=1e-8)
    found = made.match(now.image, now.points, **masks)
    expected = fixture['masked_i'].tolist(), fixture['masked_j'].tolist()
    ours = indices(found, now.image.columns)
    assert same_pairs(ours, expected, *margins(fixture['masked_conf'])) > 10
    # Masked cells all match masked points, as equally well as one another.
    masked = [{cell for cell in cells if not masks['cell_mask'][cell]}
              for cells in (ours[0], expected[0])]
    assert masked[0] == masked[1] and masked[0]
    # The threshold itself is not stored; it lies below the least sure match that passed.
    threshold = fixture['thres_mconf'].min().item() * (1 - 1e-4)
    choosy = make_matcher(replace(made.config, threshold=threshold), 256)
    choosy.load_state_dict(made.state_dict())
    found = choosy.match(now.image, now.points)
    expected = fixture['thres_i'].tolist(), fixture['thres_j'].tolist()
    assert same_pairs(indices(found, now.image.columns), expected, fixture['conf_row_margin'],
                      fixture['conf_col_margin']) > 10
    close(found.confidence.sort().values, fixture['thres_mconf'].sort().values, atol=1e-7)


@pytest.mark.parametrize('name', FULL)
def test_attention_on_the_way_to_the_scores(name):
    now, fixture = run(name), run(name).fixture
    coarse, fine = now.of_image['stage1'], now.of_image['stage0']
    close(coarse, fixture['backbone_c'])
    close_samples(fine, fixture['backbone_f'])
    close_samples(sine_position_encoding(*coarse.shape[1:]), fixture['im_pe_table'])
    for side, inner in (('im', now.of_image), ('pt', now.of_points)):
        for k in range(3):
            close_first(inner[f'sa{k}'], fixture[f'{side}_sa{k}'])
    encoded = fourier_encoding(fixture['pt3d'], now.made.config.octaves)
    close_first(encoded, fixture['pt_fourier_first16'])
    close(now.points.coarse[None], fixture['pt_cat_pe'])
    close(now.cells[None], fixture['im_ca'])
    close(now.attended[None], fixture['pt_ca'])
    close_first(unit(now.cells)[None], fixture['im_norm_first16'])
    close_first(unit(now.attended)[None], fixture['pt_norm_first16'])


@pytest.mark.parametrize('name', FULL)
@torch.no_grad()
def test_fine_matches(name):
    now, fixture = run(name), run(name).fixture
    made, columns = now.made, now.image.columns
    found = made.match(now.image, now.points)
    cells, points = fixture['match_i'].long(), fixture['match_j'].long()
    centres = cell_centres(torch.arange(now.image.rows * columns), columns)
    close(centres[None] + 0.5, fixture['pt2d'])  # counted from the pixel's corner
    # Windows of given matches, so that no score decides which are compared.
    shown = len(fixture['win_in'])
    windows, middles = made.windows(now.image.fine, cells)
    close(windows[:shown], fixture['win_in'])
    close(made.window_attention(windows[:shown]), fixture['win_out'])
    close(made.point_fine(now.attended[points[:shown]]), fixture['pt_ffeat'])
    place = made.locate(windows, now.attended[points])
    close(torch.cat([place.mean, place.std[:, None]], dim=-1), fixture['expec_f'])
    pixels, std = made.fine_pixels(place, cells, middles, columns)
    close(pixels + 0.5, fixture['mpt2d_f'], atol=1e-3)
    close(std, 5 * fixture['expec_f'][:, 2], atol=1e-3)
    close(centres[cells] + 0.5, fixture['mpt2d_c'])
    close(fixture['pt3d'][0][points], fixture['mpt3d'], atol=0)
    close(now.confidence[cells, points], fixture['mconf'], atol=1e-7)
    # And the matches that the matcher itself finds.
    theirs = {(j, *(round(x) for x in at)): (pixel, sure) for j, at, pixel, sure in zip(
        points.tolist(), (centres[cells] * 2).tolist(), fixture['mpt2d_f'],
        (fixture['conf_row_margin'][cells] > SURE) & (fixture['conf_col_margin'][points] > SURE))}
    matched = {j: pixel for j, pixel in zip(found.points.tolist(), found.pixels)}
    compared = 0
    for (j, *_), (pixel, sure) in theirs.items():
        if sure:
            close(matched[j] + 0.5, pixel, atol=1e-3)
            compared += 1
    assert compared > 0.4 * len(theirs) and abs(len(theirs) - len(matched)) < 0.1 * len(theirs)


@torch.no_grad()
def test_two_references_are_matched_one_by_one():
    now, fixture = run('full_small'), run('full_small').fixture
    made = now.made
    second = made.encode_points(fixture['multi_pt3d2'][0], fixture['multi_pt_feat2'][0])
    theirs = [fixture[f'multi_{key}'] for key in ('mpt2d_c', 'mpt2d_f', 'mpt3d', 'mconf')]
    first = len(fixture['match_i'])
    compared = 0
    for encoded, places, part in ((now.points, fixture['pt3d'][0], slice(0, first)),
                                  (second, fixture['multi_pt3d2'][0], slice(first, None))):
        scores = log_dual_softmax(made.similarity(*made.interact(
            now.image.coarse, encoded.coarse))).exp()
        row_margin, column_margin = margins(scores)
        sure = (row_margin > SURE) & (column_margin[scores.argmax(1)] > SURE)
        found = made.match(now.image, encoded)
        cells = scores[:, found.points].argmax(0)
        ours = zip(cells.tolist(), zip(found.pixels + 0.5, places[found.points], found.confidence))
        ours = {cell: values for cell, values in ours if sure[cell]}
        corner = (theirs[0][part] - 4) / 8
        of_cell = (corner[:, 1] * now.image.columns + corner[:, 0]).round().long().tolist()
        known = {cell: values for cell, values in zip(of_cell, zip(
            *(array[part] for array in theirs[1:]))) if sure[cell]}
        assert ours.keys() == known.keys()
        for cell, (pixel, point, confidence) in ours.items():
            close(pixel, known[cell][0], atol=1e-3)
            close(point, known[cell][1], atol=0)
            close(confidence, known[cell][2], atol=1e-7)
        compared += len(ours)
    assert compared > 0.4 * len(theirs[0])


@pytest.mark.parametrize('name', MINI + FULL)
def test_no_array_is_left_out(name):
    text = Path(__file__).read_text()
    inputs = {'pt_feat_seed'}
    sides = {f'{side}_sa{k}' for side in ('im', 'pt') for k in range(3)}
    missing = [key for key in np.load(FOLDER / f'{name}.npz').files
               if key.removeprefix('multi_') not in text and key not in inputs | sides]
    assert not missing
