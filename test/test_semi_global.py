"""Semi-global smoothing: equal to a slow reference; fills gaps and keeps edges."""

from nerfmatch_ros.mapping.semi_global import cheapest, smoothed
import numpy as np
import pytest

STEP, JUMP = 0.06, 0.4


def volume(height, depths, width, seed=0):
    return np.random.default_rng(seed).random((height, depths, width)).astype(np.float32)


def path_costs(cost):
    """Follow the first axis of (N, D): the cheapest sum of costs and penalties up to each."""
    depths = np.arange(cost.shape[1])
    apart = np.abs(depths[:, None] - depths)
    penalty = np.where(apart == 0, 0, np.where(apart == 1, STEP, JUMP))
    path = [cost[0].astype(float)]
    for here in cost[1:]:
        path.append(here + (path[-1] + penalty).min(1) - path[-1].min())
    return np.array(path)


@pytest.mark.parametrize('shape', [(7, 5, 70), (70, 9, 3), (2, 4, 2)])
def test_four_directions_are_averaged(shape):
    cost = volume(*shape)
    expected = np.zeros(shape)
    for x in range(shape[2]):
        line = cost[:, :, x]
        expected[:, :, x] += path_costs(line) + path_costs(line[::-1])[::-1]
    for y in range(shape[0]):
        line = cost[y].T
        expected[y] += (path_costs(line) + path_costs(line[::-1])[::-1]).T
    np.testing.assert_allclose(smoothed(cost, STEP, JUMP), expected / 4, atol=1e-5)


def test_ambiguous_pixels_follow_their_surroundings_and_edges_stay():
    cost = np.ones((30, 12, 40), np.float32)
    cost[:, 3, :20] = 0
    cost[:, 8, 20:] = 0
    cost[10:14, :, 5:12] = 1  # nothing is known here
    cost[5, 10, 5] = -0.2  # and one pixel lies
    index, _ = cheapest(smoothed(cost, STEP, JUMP))
    assert (index[:, :20] == 3).all() and (index[:, 20:] == 8).all()


def test_the_lowest_point_of_a_parabola_is_found():
    place = np.random.default_rng(1).uniform(1, 8, (6, 7))
    cost = ((np.arange(10)[None, :, None] - place[:, None]) ** 2).astype(np.float32)
    index, fraction = cheapest(cost)
    np.testing.assert_array_equal(index, np.round(place))
    np.testing.assert_allclose(fraction, place, atol=1e-4)


def test_the_ends_have_no_fraction():
    cost = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None], (2, 5, 3))
    for volume_, end in ((cost, 0), (cost[:, ::-1], 4)):
        index, fraction = cheapest(np.ascontiguousarray(volume_))
        assert (index == end).all() and (fraction == end).all()
