"""Counted work against operations whose work is known."""

from nerfmatch_ros.evaluation.work_counter import Work, WorkCounter
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.radiance_field.hash_grid import HashGrid
from nerfmatch_ros.radiance_field.splatting import splat
from nerfmatch_ros.radiance_field.surface_cache import sorted_cache
from nerfmatch_ros.work_note import note_work
import numpy as np
import pytest
import torch
from torch.nn.attention import sdpa_kernel, SDPBackend
import torch.nn.functional as F


def counted(function, name='stage'):
    """Count a function in a stage of its own; what it gives outlives the stage."""
    counter = WorkCounter()
    with counter, counter.stage(name):
        kept = function()
    work = counter.take()[name]
    del kept
    return work


@pytest.mark.parametrize('inference', [True, False])
def test_products_convolutions_and_attention_are_counted_by_hand(inference):
    a, b = torch.zeros(10, 20), torch.zeros(20, 30)
    picture, kernel = torch.zeros(1, 3, 8, 8), torch.zeros(5, 3, 3, 3)
    query, key = torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 9, 4)
    cases = [
        (lambda: a @ b, 2 * 10 * 20 * 30),
        (lambda: F.linear(a, b.T, torch.zeros(30)), 2 * 10 * 20 * 30),
        (lambda: F.conv2d(picture, kernel, padding=1), 2 * 64 * 5 * 27),
        (lambda: F.scaled_dot_product_attention(query, key, key), 2 * 2 * 2 * 7 * 9 * 4),
    ]
    with torch.inference_mode(inference), torch.set_grad_enabled(False):
        for function, flops in cases:
            assert sum(counted(function).flops.values()) == flops
        with sdpa_kernel(SDPBackend.MATH):
            assert counted(cases[3][0]).flops == {'float32': cases[3][1]}


def test_flops_are_kept_apart_by_the_type_that_is_multiplied():
    a = torch.zeros(16, 16)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        work = counted(lambda: a @ a)
    assert work.flops == {'bfloat16': 2 * 16 ** 3}


def test_bytes_are_what_is_read_once_and_what_outlives_the_stage():
    a, b = torch.zeros(100, 10), torch.zeros(100, 10)

    def function():
        inner = a + b  # read twice 4000 bytes; dies
        inner = inner + a  # a is known
        inner *= 2
        return inner[:50].clone()

    work = counted(function)
    assert (work.read, work.written) == (8000, 2000)


def test_views_move_nothing_and_parts_count_as_parts():
    a = torch.zeros(100, 10)
    assert counted(lambda: a.view(10, 100).T[3:7].expand(2, 4, 10)) == Work({}, 0.0, 0, 0)
    assert counted(lambda: [a[:10].sum(), a[:10].sum(), a[10:30].sum()]).read == 30 * 10 * 4
    assert counted(lambda: a[:1].expand(50, 10).sum()).read == 10 * 4


def test_gathering_reads_no_more_than_it_gives():
    table, index = torch.zeros(10000, 4), torch.arange(5)
    work = counted(lambda: table[index])
    assert work.read == 5 * 16 + index.nbytes and work.written == 5 * 16
    everything = torch.zeros(30000, dtype=torch.int64)
    assert counted(lambda: table[everything]).read == table.nbytes + everything.nbytes


def test_writing_into_what_was_there_is_traffic():
    a, b = torch.zeros(100), torch.ones(50)
    work = counted(lambda: a[:50].copy_(b))
    assert (work.read, work.written) == (200, 200)


def test_inner_stages_count_for_themselves():
    a = torch.zeros(8, 8)
    counter = WorkCounter()
    with counter, counter.stage('outer'):
        made = a @ a
        for _ in range(2):
            with counter.stage('inner'):
                made = made @ a
        a + made
    work = counter.take()
    one = 2 * 8 ** 3
    assert work['outer'].flops == {'float32': one}
    assert work['outer/inner'].flops == {'float32': 2 * one}
    # Each inner run reads what the outer stage made, and a; and leaves its result.
    assert work['outer/inner'].read == 2 * 2 * 256 and work['outer/inner'].written == 2 * 256
    assert work['outer'].read == 2 * 256
    assert counter.take() == {}


def test_a_splat_states_the_points_of_the_tiles_that_it_looks_at():
    ahead, behind = torch.rand(50, 3) + torch.tensor([0.0, 0, 2]), torch.rand(70, 3) - 9
    cache = sorted_cache(torch.cat([ahead, behind]), 1.0)
    pose, camera = torch.eye(4).double(), Camera('PINHOLE', 64, 64, 40.0, 40.0, 31.5, 31.5)
    work = counted(lambda: splat(cache, camera, pose))
    assert work.by_formula == 32 * 50
    # Coordinates and normals; once more, by torch, those of the points chosen.
    assert 50 * 15 <= work.read <= 50 * 15 + 50 * 12 + 100


def test_compiled_loops_state_their_work_while_somebody_counts(generator):
    grid = HashGrid(3, 4, 16, 8)
    points = torch.rand(7, 3, generator=generator)
    with torch.inference_mode():
        work = counted(lambda: grid(points))
        many = counted(lambda: [grid(points) for _ in range(100)])
    corners = 7 * 3 * 8
    assert work.flops == {'float32': corners * 11} and work.by_formula == corners * 11
    assert work.read == corners * 16 + points.nbytes and work.written == 7 * 12 * 4
    # Each entry once, however often it is looked up.
    assert many.read == grid.table.nbytes + points.nbytes
    array = np.zeros(100)
    assert counted(lambda: note_work('loop', 5.0, [(array, 80.0)])).read == 80
    note_work('loop', 5.0)  # nobody listens
    assert counted(lambda: None) == Work({}, 0.0, 0, 0)
