"""Patches laid over one another while their picture is learned: where warps per pixel succeed."""

import cv2
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.planar_alignment import move
from nerfmatch_ros.mapping.planar_registration import (
    corner_errors,
    KINDS,
    patch_places,
    PlanarRegistrationConfig,
    register_patches,
)
import numpy as np
import pytest
import torch

SIDE, PATCHES = 64, 5
REACH = 2.5  # half the side of the picture, in halves of a patch


def picture(seed, side=160):
    """Draw smooth noise of several scales (side, side, 3), float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    total = sum(cv2.resize(rng.standard_normal((cells, cells, 3)).astype(np.float32),
                           (side, side), interpolation=cv2.INTER_CUBIC) / cells ** 0.5
                for cells in (3, 6, 12, 24, 48))
    return (total - total.min()) / (total.max() - total.min())


def patches_of(kind, size, seed):
    """Cut patches (M, h, w, 3) out of a picture; gives them and picture_from_patch (M, 3, 3)."""
    numbers, make, _ = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    draws = size * torch.randn(PATCHES, numbers, generator=generator)
    if kind == 'rigid':
        draws[:, 1:] *= 0.5
    true = make(draws)
    image = picture(seed)
    places = move(true, patch_places(SIDE, SIDE).expand(PATCHES, -1, -1))
    pixels = ((places + REACH) * (len(image) / (2 * REACH)) - 0.5).numpy()
    cut = [cv2.remap(image, *(p[:, k].reshape(SIDE, SIDE) for k in range(2)), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REFLECT) for p in pixels]
    return torch.from_numpy(np.stack(cut)), true


def errors_of(config, size, seed):
    patches, true = patches_of(config.kind, size, seed)
    return corner_errors(register_patches(patches, config), true, SIDE, SIDE)[1:]


def test_turned_patches_are_found_by_warps_where_one_motion_a_patch_fails():
    identity = torch.eye(3).expand(PATCHES, 3, 3)
    true = patches_of('rigid', 0.9, 1)[1]
    assert corner_errors(identity, true, SIDE, SIDE)[1:].mean() > 40
    assert errors_of(PlanarRegistrationConfig(method='l2g', steps=500), 0.9, 1).mean() < 1
    for rate in (1e-2, 3e-2, 6e-2):  # a slow start, the default, a fast one
        config = PlanarRegistrationConfig(method='barf', motion_rate=rate)
        assert errors_of(config, 0.9, 1).max() > 10


@pytest.mark.parametrize(('kind', 'size', 'steps'), [
    ('rigid', 0.1, 300), ('homography', 0.03, 600)])
@pytest.mark.parametrize('method', ['l2g', 'barf'])
def test_small_motions_are_found_by_both(method, kind, size, steps):
    config = PlanarRegistrationConfig(
        method=method, kind=kind, steps=steps, motion_rate=3e-3 if kind == 'homography' else 3e-2)
    assert errors_of(config, size, 2).mean() < 1


def test_corner_errors_do_not_depend_on_where_the_picture_lies(generator):
    make = KINDS['homography'][1]
    true = make(0.1 * torch.randn(4, 8, generator=generator))
    elsewhere = make(0.1 * torch.randn(8, generator=generator)) @ true
    torch.testing.assert_close(corner_errors(elsewhere, true, 48, 64), torch.zeros(4),
                               atol=1e-3, rtol=0)
    moved = true.clone()
    moved[2] = true[2] @ KINDS['rigid'][1](torch.tensor([0.0, 2 / 32, 0.0]))
    errors = corner_errors(moved, true, 48, 64)
    assert errors[:2].max() < 1e-3 and 1 < errors[2] < 4  # 2 pixels before the patch's own motion


def test_places_run_from_edge_to_edge():
    places = patch_places(2, 4)
    assert places.shape == (8, 2)
    torch.testing.assert_close(places[0], torch.tensor([-0.75, -0.25]))
    torch.testing.assert_close(places[3], torch.tensor([0.75, -0.25]))


def test_unknown_methods_and_motions_are_refused():
    for wrong in ({'method': 'icp'}, {'kind': 'affine'}):
        with pytest.raises(ConfigError, match=next(iter(wrong.values()))):
            PlanarRegistrationConfig(**wrong)
