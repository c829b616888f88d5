"""The hash encoding: compiled loops against torch, interpolation, gradients, borders."""

from concurrent.futures import ThreadPoolExecutor

from nerfmatch_ros.radiance_field.hash_grid import (
    encode_in_torch,
    FEATURES,
    HashGrid,
    level_resolutions,
)
import numba
import numpy as np
import pytest
import torch


def random_grid(generator, levels=4, coarsest=4, finest=40, log2_entries=10):
    grid = HashGrid(levels, coarsest, finest, log2_entries)
    with torch.no_grad():
        grid.table.copy_(torch.randn(grid.table.shape, generator=generator))
    return grid


def in_torch(grid, points):
    return encode_in_torch(points, grid.table, grid.resolutions, grid.dense)


def test_resolutions_grow_from_coarsest_to_finest():
    cells = level_resolutions(8, 16, 1536)
    assert cells[0] == 16 and cells[-1] == 1536
    ratio = cells[1:] / cells[:-1]
    np.testing.assert_allclose(ratio, (1536 / 16) ** (1 / 7), rtol=0.05)


def test_grid_has_dense_and_hashed_levels(generator):
    grid = random_grid(generator)
    assert grid.dense[0] and not grid.dense[-1]


def test_compiled_encoding_equals_torch(generator):
    grid = random_grid(generator)
    points = torch.rand(3000, 3, generator=generator)
    torch.testing.assert_close(grid(points), in_torch(grid, points), atol=2e-4, rtol=1e-4)


def test_every_thread_computes_with_as_many_threads_as_torch_was_told(generator):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip('needs two cores')
    grid, points = random_grid(generator), torch.rand(10, 3, generator=generator)

    def threads_used():
        grid(points)
        return numba.get_num_threads()

    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with ThreadPoolExecutor(1) as pool:  # as a node has one, that loaded no map itself
                assert pool.submit(threads_used).result() == threads_used() == count
    finally:
        torch.set_num_threads(before)


def test_compiled_gradients_equal_torch(generator):
    grid = random_grid(generator)
    points = torch.rand(3000, 3, generator=generator).requires_grad_()
    weight = torch.randn(3000, grid.channels, generator=generator)
    compiled = torch.autograd.grad((grid(points) * weight).sum(), [points, grid.table])
    plain = torch.autograd.grad((in_torch(grid, points) * weight).sum(), [points, grid.table])
    # In one of some thousand points the two round to different sides of a cell's face.
    apart = (compiled[0] - plain[0]).abs().amax(-1) > 1e-2 * plain[0].abs().amax()
    assert apart.float().mean() < 2e-3
    torch.testing.assert_close(compiled[1], plain[1], atol=2e-3, rtol=1e-3)


def test_gradients_agree_with_finite_differences(generator):
    grid = random_grid(generator, levels=3, coarsest=2, finest=7, log2_entries=6).double()
    cells = torch.tensor(grid.resolutions)
    points = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    fraction = (points[:, None] * cells[:, None]) % 1
    points = points[((fraction - 0.5).abs() < 0.49).all(-1).all(-1)][:12].requires_grad_()
    assert len(points) == 12
    table = grid.table.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, t: encode_in_torch(p, t, grid.resolutions, grid.dense), (points, table))


def test_encoding_is_continuous_across_cell_faces(generator):
    grid = random_grid(generator, levels=5, finest=64)
    points = torch.rand(500, 3, generator=generator)
    for cells in grid.resolutions.tolist():
        face = (torch.randint(1, cells, (500,), generator=generator) / cells)
        below, above = points.clone(), points.clone()
        below[:, 1], above[:, 1] = face - 1e-6, face + 1e-6
        assert (grid(above) - grid(below)).abs().max() < 1e-2


def test_dense_level_reproduces_a_linear_function(generator):
    grid = HashGrid(1, 8, 8, 10)
    assert grid.dense.all()
    z, y, x = torch.meshgrid(*[torch.arange(9.0) / 8] * 3, indexing='ij')
    corners = torch.stack([x, y, z, 2 * x - 3 * y + z], dim=-1).reshape(-1, 4)
    with torch.no_grad():
        grid.table[0, :len(corners)] = corners
    points = torch.rand(400, 3, generator=generator)
    expected = torch.cat(
        [points, (points @ torch.tensor([2.0, -3, 1]))[:, None]], dim=-1)
    torch.testing.assert_close(grid(points), expected, atol=1e-5, rtol=0)


def test_the_whole_closed_cube_is_encoded(generator):
    grid = random_grid(generator)
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0.5]])
    inside = corners.clamp(0, 1 - 1e-6)
    torch.testing.assert_close(grid(corners), grid(inside), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(grid(corners), in_torch(grid, corners), atol=1e-4, rtol=1e-4)


def test_points_that_are_no_numbers_read_nothing_outside_of_the_table(generator):
    grid = random_grid(generator)
    wild = torch.tensor([[torch.nan] * 3, [torch.inf] * 3, [-1e30, 1e30, 0.5], [-5.0, 7, 0]],
                        requires_grad=True)
    grid(wild).sum().backward()
    assert grid(torch.rand(5, 3, generator=generator)).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_equals_cpu(generator):
    grid = random_grid(generator)
    points = torch.rand(2000, 3, generator=generator)
    here = grid(points)
    there = grid.cuda()(points.cuda()).cpu()
    torch.testing.assert_close(there, here, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('levels', [1, 3])
def test_levels_that_are_not_looked_up_give_zero_and_get_no_gradient(levels, generator):
    grid = random_grid(generator)
    points = torch.rand(200, 3, generator=generator).requires_grad_()
    features, whole = grid(points, levels), grid(points)
    known = levels * FEATURES
    torch.testing.assert_close(features[:, :known], whole[:, :known])
    assert features.shape == whole.shape and (features[:, known:] == 0).all()
    weight = torch.randn(features.shape, generator=generator)
    found = torch.autograd.grad((features * weight).sum(), [points, grid.table])
    expected = torch.autograd.grad((whole * weight)[:, :known].sum(), [points, grid.table])
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found[1], expected[1])
