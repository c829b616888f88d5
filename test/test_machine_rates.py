"""Floors from measured rates."""

from nerfmatch_ros.evaluation.machine_rates import MachineRates, measure_rates, processor
from nerfmatch_ros.evaluation.stage_work import stage_work, StageWork
from nerfmatch_ros.evaluation.work_counter import Work
import pytest
import torch

CPU = MachineRates('cpu', 'one', 2, {'float32': 200.0, 'bfloat16': 400.0},
                   {'float32': 100.0, 'bfloat16': 200.0}, 20.0, 10.0)
GPU = MachineRates('cuda', 'two', 2, {'float32': 200.0, 'bfloat16': 400.0},
                   {'float32': 1.0, 'bfloat16': 1.0}, 20.0, 1.0)


def test_the_floor_is_the_longer_of_arithmetic_and_traffic():
    flops = {'float32': 50.0, 'bfloat16': 100.0}
    assert CPU.floor(flops, 9.0) == 1.0
    assert CPU.floor(flops, 30.0) == 3.0
    assert GPU.floor(flops, 9.0) == 0.5
    assert GPU.floor(flops, 30.0) == 1.5
    assert CPU.floor({}, 0.0) == 0.0
    assert CPU.floor({'float16': 100.0}, 0.0) == 1.0  # never measured: as float32


def test_a_stage_has_the_work_and_the_floors_of_what_is_inside():
    own = {'total': Work({}, 0.0, 1.0, 2.0), 'total/encode': Work({'float32': 10.0}),
           'total/refine': Work({}, 0.0, 5.0, 0.0),
           'total/refine/match': Work({'float32': 100.0}, 4.0, 0.0, 3.0)}
    stages = stage_work(own, CPU)
    assert set(stages) == {'encode', 'refine', 'refine/match', 'other', 'total'}
    assert stages['refine'] == StageWork({'float32': 100.0}, 4.0, 8.0, 0.5 + 1.0)
    assert stages['refine/match'] == StageWork({'float32': 100.0}, 4.0, 3.0, 1.0)
    assert stages['other'] == StageWork({}, 0.0, 3.0, 0.3)
    assert stages['total'].flops == {'float32': 110.0}
    assert stages['total'].floor == pytest.approx(0.1 + 1.5 + 0.3)


def test_rates_are_measured_on_this_machine():
    rates = measure_rates('cpu', side=96, copied=1 << 16)
    assert set(rates.flops) == {'float32', 'bfloat16'} and rates.threads == torch.get_num_threads()
    assert min(*rates.flops.values(), *rates.flops_per_cpu_second.values(), rates.copied) > 1e6
    plain = rates.to_dict()
    assert plain['gflop_per_second']['float32'] == rates.flops['float32'] / 1e9
    assert plain['name'] == processor() != ''
