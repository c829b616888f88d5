"""Strict configuration: a YAML file becomes frozen dataclasses, and nothing unknown passes."""

from dataclasses import fields, is_dataclass
import difflib
from pathlib import Path
import re
import types
import typing
from typing import Any, TypeVar

from nerfmatch_ros.errors import ConfigError
import yaml

Config = TypeVar('Config')
# Those in C where PyYAML has them, four times as fast: large maps name 10 000 views.
_SafeLoader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
_SafeDumper = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)
_EXPONENT = re.compile(r'[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+')  # text to YAML 1.1: 1e-3


def from_dict(kind: type[Config], values: dict[str, Any], where: str = 'configuration') -> Config:
    """Make a (nested) dataclass of plain values; unknown keys and wrong types are errors."""
    if not isinstance(values, dict):
        raise ConfigError(f'{where} is {values!r}; it must be a mapping of names to values')
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f'; known: {", ".join(names)}'
            raise ConfigError(f"{where} has no option '{name}'{hint}")
    made = {name: _convert(hints[name], value, f'{where}.{name}')
            for name, value in values.items()}
    try:
        return kind(**made)
    except TypeError as error:
        raise ConfigError(f'{where} is incomplete: {error}') from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return from_dict(kind, value, where)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return _convert(kinds[0], value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f'{where} is {value!r}; it must be a list')
        return tuple(_convert(k, v, f'{where}[{i}]') for i, (k, v) in enumerate(
            zip(_item_kinds(kind, len(value), where), value)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if kind is int and isinstance(value, bool) or not isinstance(value, kind):
        raise ConfigError(f'{where} is {value!r}; it must be of type {kind.__name__}')
    return value


def _item_kinds(kind: Any, length: int, where: str) -> list[Any]:
    kinds = list(typing.get_args(kind))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return [kinds[0]] * length
    if len(kinds) != length:
        raise ConfigError(f'{where} has {length} values; it must have {len(kinds)}')
    return kinds


def to_dict(config: Any) -> Any:
    """Turn (nested) dataclasses into plain values for YAML."""
    if is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, tuple):
        return [to_dict(value) for value in config]
    return config


def load_yaml(path: Path) -> Any:
    """Read a YAML file of plain values; errors name the file."""
    try:
        return yaml.load(Path(path).read_text(), Loader=_SafeLoader)
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is no valid YAML: {error}') from error


def dump_yaml(values: Any) -> str:
    """Give plain values as the text of a YAML file, in their order."""
    return yaml.dump(values, Dumper=_SafeDumper, sort_keys=False)


def choose_device(name: str = 'auto') -> str:
    """Turn 'auto' into 'cuda:0' or 'cpu'; a device that is asked for and missing is an error."""
    import torch
    if name == 'auto':
        return 'cuda:0' if torch.cuda.is_available() else 'cpu'
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for but torch finds no CUDA device; "
                          "use 'cpu' or 'auto'")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' is unknown; use auto, cpu or cuda:0") from error
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}' was asked for but there are only "
                          f'{torch.cuda.device_count()} CUDA devices, counted from 0')
    return str(device)


def load_config(kind: type[Config], path: Path | None) -> Config:
    """Read a configuration file, or give the defaults where there is none."""
    if path is None:
        return kind()
    values = load_yaml(path)
    return from_dict(kind, {} if values is None else values, str(path))
