"""Costs of a plane sweep: equal to a slow reference, lowest at the true depth."""

from nerfmatch_ros.mapping.plane_sweep import HIDDEN, plane_sweep, WORST
import numpy as np
import pytest

FOCAL, DEPTH = 20.0, 2.0
INVERSE = np.array([0.25, 0.5, 0.75])  # the middle one is true


def texture(columns, rows, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((rows, columns)) - 0.5).astype(np.float32)


def shifted(pixels):
    """A neighbour beside the picture that sees a plane at DEPTH moved by that many pixels."""
    transform = np.eye(3, 4)
    transform[0, 3] = pixels * DEPTH
    return transform


def reference(picture, others, transforms, window):
    """Cost of each depth, one pixel and window at a time; neighbours all seen or not at all."""
    height, width = picture.shape
    reach = window // 2
    cost = np.full((height, len(INVERSE), width), WORST)
    for d, inverse in enumerate(INVERSE):
        warped = np.zeros((len(others), height, width))
        seen = np.zeros(warped.shape, bool)
        for n, (other, transform) in enumerate(zip(others, transforms)):
            for y in range(height):
                for x in range(width):
                    u = x + transform[0, 3] * inverse
                    seen[n, y, x] = 0 <= u <= other.shape[1] - 1
                    u = min(max(u, 0), other.shape[1] - 1)
                    i = min(int(u), other.shape[1] - 2)
                    warped[n, y, x] = other[y, i] + (u - i) * (other[y, i + 1] - other[y, i])
        for y in range(height):
            for x in range(width):
                box = (slice(max(0, y - reach), y + reach + 1),
                       slice(max(0, x - reach), x + reach + 1))
                values = []
                for n in np.flatnonzero(seen[:, y, x]):
                    a, b = picture[box] - picture[box].mean(), warped[n][box]
                    b = b - b.mean()
                    spread = np.sqrt((a * a).mean() * (b * b).mean())
                    values.append((a * b).mean() / (spread + 6e-5))
                if values:
                    half = (len(others) + 1) // 2
                    best = sorted(values)[-half:]
                    cost[y, d, x] = 1 - sum(best) / max(len(best), min(2, half))
    return cost


def test_costs_equal_a_slow_reference():
    picture = texture(50, 40)
    transforms = np.stack([shifted(s) for s in (3.0, -2.5, 40.0)])
    others = [np.roll(picture, 3, axis=1), texture(60, 40, seed=1), np.roll(picture, 1, axis=1)]
    cost = plane_sweep(picture, others, transforms, INVERSE, 5)
    assert cost.shape == (40, 3, 50) and cost.dtype == np.float32
    np.testing.assert_allclose(cost, reference(picture, others, transforms, 5), atol=2e-4)


def test_the_true_depth_costs_least_where_neighbours_see_it():
    picture = texture(48, 36)
    others = [np.roll(picture, s, axis=1) for s in (4, 6)]
    cost = plane_sweep(picture, others, np.stack([shifted(4), shifted(6)]), INVERSE, 7)
    assert (cost[:, :, 8:30].argmin(1) == 1).all() and cost[:, 1, 8:30].max() < 1e-2


def test_half_of_the_neighbours_may_be_occluded():
    picture = texture(48, 36)
    others = [np.roll(picture, 4, axis=1)] * 2 + [texture(48, 36, seed) for seed in (1, 2)]
    cost = plane_sweep(picture, others, np.stack([shifted(4)] * 4), INVERSE, 7)
    assert cost[:, 1, 8:30].max() < 1e-2


def test_light_and_contrast_do_not_matter():
    picture = 0.5 * texture(48, 36)
    other = [np.roll(0.6 * picture + 0.2, 4, axis=1)]
    cost = plane_sweep(picture, other, shifted(4)[None], INVERSE, 7)
    assert cost[:, 1, 8:30].max() < 2e-2


@pytest.mark.parametrize('behind', [False, True])
def test_what_no_neighbour_sees_costs_most(behind):
    picture = texture(48, 36)
    transform = shifted(0 if behind else 500)
    if behind:
        transform[2] *= -1
    cost = plane_sweep(picture, [picture], transform[None], INVERSE, 7)
    assert (cost == WORST).all()


def test_hidden_pixels_of_a_neighbour_are_not_seen():
    picture = texture(48, 36)
    other = picture.copy()
    other[10:20, 10:20] = HIDDEN
    cost = plane_sweep(picture, [other], np.eye(3, 4)[None], INVERSE, 3)
    assert (cost[10:20, :, 10:20] == WORST).all()
    assert cost[25:, :, 25:].max() < 1e-2


def test_pictures_without_texture_match_nowhere():
    grey = np.full((36, 48), 0.1, np.float32)
    cost = plane_sweep(grey, [grey, grey], np.stack([shifted(1), shifted(2)]), INVERSE, 7)
    assert np.abs(cost[:, :, 5:40] - 1).max() < 0.1
