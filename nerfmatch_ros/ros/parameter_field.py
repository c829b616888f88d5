"""One parameter of a node as a field of a dataclass: default, description, limits, checks."""

from collections.abc import Sequence
from dataclasses import dataclass, Field, field, fields, MISSING
from typing import Any

from nerfmatch_ros.errors import ConfigError

_KEY = 'parameter'
_TYPE_NAMES = {
    bool: 'true or false', int: 'a whole number', float: 'a number',
    str: 'a text, in quotes if it looks like something else', tuple: 'a list of texts'}

Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Specification:
    """What is declared of one parameter."""

    name: str  # as ROS knows it, perhaps with dots
    attribute: str  # of the dataclass
    default: Value
    description: str
    limits: tuple[float, float] | None  # both are allowed values; every number has them
    choices: tuple[str, ...] | None
    runtime: bool  # may be changed while the node runs

    @property
    def kind(self) -> type:
        """Give the type of the value: bool, int, float, str, or tuple for a list of texts."""
        return type(self.default)

    @property
    def constraint(self) -> str:
        """Say in words which values are allowed, '' if the type says it all."""
        if self.limits:
            return f'{self.limits[0]:g} to {self.limits[1]:g}'
        if self.choices:
            return 'one of ' + ', '.join(self.choices)
        return ''

    def checked(self, value: Any) -> Value:
        """
        Give the value as the dataclass holds it; ConfigError with name, value and what is allowed.

        A whole number is taken for a number, and true for 'true' where that is a choice. A list
        drops empty texts: the value ROS has for an empty list has no type.
        """
        if self.kind is float and type(value) is int:
            value = float(value)
        if self.choices and type(value) is bool:
            value = str(value).lower()  # YAML takes true for more than a word
        if self.kind is tuple:
            if not _is_list_of_texts(value):
                self._refuse(value, f'be {_TYPE_NAMES[tuple]}')
            return tuple(text for text in value if text)
        if type(value) is not self.kind:
            self._refuse(value, f'be {_TYPE_NAMES[self.kind]}')
        # NaN is in no range.
        if self.limits and not self.limits[0] <= value <= self.limits[1]:
            self._refuse(value, f'lie in {self.constraint}')
        if self.choices and value not in self.choices:
            self._refuse(value, f'be {self.constraint}')
        return value

    def _refuse(self, value: Any, demand: str):
        raise ConfigError(f'parameter {self.name} is {value!r}; it must {demand}: '
                          f'{self.description}')


def parameter(
    default: Value, description: str, *, limits: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None, runtime: bool = False, name: str = '',
) -> Any:
    """
    Declare a parameter as a field of a frozen dataclass.

    limits: smallest and largest value, needed for numbers. runtime: may be changed while the node
    runs. name: where it differs from the attribute, as for 'refine.max_age'.
    """
    return field(default=default, metadata={_KEY: {
        'description': description, 'limits': limits, 'choices': choices, 'runtime': runtime,
        'name': name}})


def specifications(kind: type) -> dict[str, Specification]:
    """Give the specification of every parameter of a dataclass, by its name in ROS."""
    made = [_specification(item) for item in fields(kind)]
    return {specification.name: specification for specification in made}


def _specification(item: Field) -> Specification:
    declared = item.metadata.get(_KEY)
    if declared is None or item.default is MISSING:
        raise TypeError(f'{item.name} is no parameter(...)')
    return Specification(
        name=declared['name'] or item.name, attribute=item.name, default=item.default,
        description=declared['description'], limits=declared['limits'],
        choices=declared['choices'], runtime=declared['runtime'])


def _is_list_of_texts(value: Any) -> bool:
    return (isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            and all(isinstance(text, str) for text in value))
