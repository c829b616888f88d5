"""Declares the parameters of a node from a dataclass and keeps a checked snapshot of them."""

from collections.abc import Callable
from dataclasses import replace
import difflib
import threading
import traceback
from typing import Generic, TypeVar

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.ros.parameter_field import Specification, specifications
from nerfmatch_ros.ros.parameters import SharedParameters
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import ParameterNotDeclaredException
from rclpy.node import Node
from rclpy.parameter import Parameter

Values = TypeVar('Values', bound=SharedParameters)


class ParameterSet(Generic[Values]):
    """
    The parameters of one node; declared when it is made, checked when they are set.

    A wrong value at the start does not stop the construction of the node: its default stands in
    its place until `checked` raises what is wrong. A set at run time is taken whole or refused.
    """

    def __init__(self, node: Node, kind: type[Values]):
        """Declare every parameter; kind: LocalizerParameters or RefinerParameters."""
        self._node = node
        self._specifications = specifications(kind)
        self._lock = threading.Lock()
        self._errors: dict[str, str] = {}  # of values given at the start, by parameter
        self._listeners: list[Callable[[Values], None]] = []
        self._values = kind(**dict(map(self._declare, self._specifications.values())))
        self._warn_of_unknown()
        self._listen()

    @property
    def values(self) -> Values:
        """Give all values as they are now; a later change leaves this snapshot as it is."""
        return self._values

    def checked(self) -> Values:
        """Give all values, or raise ConfigError: every wrong one and every contradiction."""
        with self._lock:
            values, errors = self._values, list(self._errors.values())
        errors += values.faults()
        if errors:
            raise ConfigError('\n'.join(errors))
        return values

    def on_change(self, listener: Callable[[Values], None]):
        """Call the listener with all values after each change, in the thread that made it."""
        self._listeners.append(listener)

    def _declare(self, specification: Specification) -> tuple[str, object]:
        """Declare one parameter with the value given at the start; give attribute and value."""
        name, value = specification.name, specification.default
        # The only source of what was given, and private. Declaring with it would raise on the
        # first wrong value, and on a whole number for a number.
        given = getattr(self._node, '_parameter_overrides', {}).get(name)
        if given is not None and not (specification.kind is tuple and given.value is None):
            try:
                value = specification.checked(given.value)
            except ConfigError as error:
                self._errors[name] = str(error)
        self._node.declare_parameter(
            name, _for_ros(value), _descriptor(specification), ignore_override=True)
        return specification.attribute, value

    def _warn_of_unknown(self):
        """Name what was given but does not exist: rclpy is silent about it."""
        for name in getattr(self._node, '_parameter_overrides', {}):
            if not self._node.has_parameter(name) and not name.startswith('qos_overrides.'):
                self._node.get_logger().warning(
                    f"parameter '{name}' does not exist and is ignored{self._hint(name)}")

    def _hint(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._specifications, n=1)
        return f'; did you mean {near[0]}?' if near else ''

    def _listen(self):
        node = self._node
        if hasattr(node, 'add_pre_set_parameters_callback'):
            node.add_pre_set_parameters_callback(self._prepare)
            node.add_on_set_parameters_callback(self._validate)
            node.add_post_set_parameters_callback(self._apply)
            return
        # Humble knows the middle one of the three only.
        take = node.set_parameters_atomically
        node.set_parameters_atomically = lambda parameters: take(self._prepare(parameters))
        node.add_on_set_parameters_callback(self._validate_and_apply)

    def _prepare(self, parameters: list[Parameter]) -> list[Parameter]:
        """Turn whole numbers into numbers where those are meant; refuse unknown names."""
        unknown = [name + self._hint(name) for name in (item.name for item in parameters)
                   if not self._node.has_parameter(name)]
        if unknown:
            raise ParameterNotDeclaredException(unknown)
        return [
            Parameter(item.name, Parameter.Type.DOUBLE, float(item.value))
            if item.type_ == Parameter.Type.INTEGER and self._is_number(item.name) else item
            for item in parameters]

    def _is_number(self, name: str) -> bool:
        specification = self._specifications.get(name)
        return specification is not None and specification.kind is float

    def _validate(self, parameters: list[Parameter]) -> SetParametersResult:
        """Judge a set as a whole; changes nothing."""
        before = self._values
        try:
            after = self._changed(before, parameters)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        # A contradiction from the start must not keep other parameters from being set.
        faults = [fault for fault in after.faults() if fault not in before.faults()]
        return SetParametersResult(successful=not faults, reason='\n'.join(faults))

    def _apply(self, parameters: list[Parameter]):
        """Take over a set that was accepted, in one step."""
        with self._lock:
            before = self._values
            self._values = after = self._changed(before, parameters)
            for item in parameters:
                self._errors.pop(item.name, None)
        if after == before:
            return
        for listener in self._listeners:
            try:
                listener(after)
            except Exception:  # noqa: BLE001 - rclpy would end the node
                self._node.get_logger().error(
                    f'a change of parameters failed:\n{traceback.format_exc()}')

    def _validate_and_apply(self, parameters: list[Parameter]) -> SetParametersResult:
        result = self._validate(parameters)
        if result.successful:
            self._apply(parameters)
        return result

    def _changed(self, values: Values, parameters: list[Parameter]) -> Values:
        changes = {}
        for item in parameters:
            specification = self._specifications.get(item.name)
            if specification is not None:
                changes[specification.attribute] = specification.checked(item.value)
        return replace(values, **changes)


def _for_ros(value: object) -> object:
    """Give a value whose type ROS recognizes: an empty list has none."""
    return (list(value) or ['']) if isinstance(value, tuple) else value


def _descriptor(specification: Specification) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=specification.description, read_only=not specification.runtime)
    if specification.choices:
        descriptor.additional_constraints = specification.constraint
    if specification.limits:
        low, high = specification.limits
        if specification.kind is int:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        else:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    return descriptor
