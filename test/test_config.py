"""Strict configuration: what fits passes, anything else is named."""

from dataclasses import dataclass, field

from nerfmatch_ros.config import choose_device, from_dict, load_config, to_dict
from nerfmatch_ros.errors import ConfigError
import pytest
import torch
import yaml


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Outer:
    steps: int = 10
    minutes: float | None = None
    fast: bool = False
    name: str = 'a'
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Needy:
    must: int


def test_plain_values_return_from_yaml():
    config = Outer(3, 2.5, True, 'b', Inner(1e-5, (4,), (2.0, 3.0)))
    assert from_dict(Outer, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
    assert from_dict(Outer, to_dict(Outer())) == Outer()


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ConfigError, match="no option 'step'; did you mean 'steps'"):
        from_dict(Outer, {'step': 3})
    with pytest.raises(ConfigError, match=r"configuration.inner has no option 'raet'.*'rate'"):
        from_dict(Outer, {'inner': {'raet': 3}})
    with pytest.raises(ConfigError, match='known: steps, minutes'):
        from_dict(Outer, {'zzzzz': 3})
    with pytest.raises(ConfigError, match='no option'):
        from_dict(Outer, {7: 3})


@pytest.mark.parametrize('values, where', [
    ({'steps': 2.5}, 'steps'), ({'steps': '3'}, 'steps'), ({'steps': True}, 'steps'),
    ({'steps': None}, 'steps'), ({'fast': 1}, 'fast'), ({'name': 3}, 'name'),
    ({'minutes': 'long'}, 'minutes'), ({'minutes': True}, 'minutes'), ({'inner': 3}, 'inner'),
    ({'inner': {'sizes': 3}}, 'sizes'), ({'inner': {'sizes': [1, 'x']}}, r'sizes\[1\]'),
    ({'inner': {'span': [1.0]}}, 'span has 1 values'), ([1], 'mapping'), (None, 'mapping'),
], ids=str)
def test_a_wrong_type_is_named(values, where):
    with pytest.raises(ConfigError, match=where):
        from_dict(Outer, values)


def test_whole_numbers_and_powers_of_ten_serve_as_floats():
    assert from_dict(Outer, {'minutes': 3}).minutes == 3.0
    assert isinstance(from_dict(Outer, {'minutes': 3}).minutes, float)
    # YAML 1.1 takes 1e-3 for text because the point is missing.
    assert from_dict(Inner, yaml.safe_load('rate: 1e-3')).rate == 1e-3
    assert from_dict(Outer, {'minutes': None}).minutes is None


def test_a_missing_option_is_an_error():
    with pytest.raises(ConfigError, match='incomplete.*must'):
        from_dict(Needy, {})


def test_files_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / 'build.yaml'
    assert load_config(Outer, None) == Outer()
    path.write_text('')
    assert load_config(Outer, path) == Outer()
    path.write_text('steps: 4\ninner: {rate: 1}\n')
    assert load_config(Outer, path) == Outer(steps=4, inner=Inner(rate=1.0))
    for text, message in (('steps: [', 'no valid YAML'), ('[]', 'mapping'), ('false', 'mapping'),
                          ('!!python/object:os.system {}', 'no valid YAML'),
                          ('stepz: 1', 'build.yaml')):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(Outer, path)
    path.write_bytes(b'\xff\xfe\x00\x01\xff')
    with pytest.raises(ConfigError, match='build.yaml'):
        load_config(Outer, path)
    with pytest.raises(ConfigError, match='cannot read .*missing.yaml'):
        load_config(Outer, tmp_path / 'missing.yaml')


def test_devices_are_chosen_or_refused():
    assert choose_device('cpu') == 'cpu'
    assert choose_device('auto') == ('cuda:0' if torch.cuda.is_available() else 'cpu')
    with pytest.raises(ConfigError, match='unknown'):
        choose_device('toaster')
    with pytest.raises(ConfigError, match='cuda:99'):
        choose_device('cuda:99')
