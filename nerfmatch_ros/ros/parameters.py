"""The parameters of the localizer node: defaults, descriptions, ranges, checks."""

from dataclasses import dataclass
import difflib

from nerfmatch_ros.errors import ConfigError
from rcl_interfaces.msg import IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node


@dataclass(frozen=True)
class LocalizerParameters:
    """What the node was started with."""

    map_path: str
    device: str
    global_frame_id: str
    camera_frame_id: str
    tf_broadcast: bool
    threads: int


# name: default, description, range of whole numbers, read only
DECLARATIONS = {
    'map_path': ('', 'Folder of the map that `nerfmatch build` wrote. Required.', None, True),
    'device': ('auto', "Where to compute: 'cpu', 'cuda', 'cuda:N' or 'auto', which takes a GPU "
               'where there is one.', None, True),
    'global_frame_id': ('map', 'Frame in which poses are given, parent of the transform.', None,
                        True),
    'camera_frame_id': ('', 'Child frame of the transform. Empty: the frame_id of the image.',
                        None, True),
    'tf_broadcast': (True, 'Publish global_frame_id -> camera on /tf.', None, True),
    'threads': (0, 'CPU threads of one inference. 0: as many as PyTorch chooses.', (0, 256), True),
    'use_prior': (False, 'Start the search for an image at the previous pose. False: every image '
                  'is answered by itself, as `nerfmatch evaluate` does.', None, False),
}
_OF_RCLPY = ('use_sim_time', 'start_type_description_service')


def declare_parameters(node: Node) -> LocalizerParameters:
    """Declare every parameter of the node and give the checked values of those that are fixed."""
    for name, (default, description, limits, read_only) in DECLARATIONS.items():
        descriptor = ParameterDescriptor(description=description, read_only=read_only)
        if limits:
            descriptor.integer_range = [
                IntegerRange(from_value=limits[0], to_value=limits[1], step=1)]
        try:
            node.declare_parameter(name, default, descriptor)
        except InvalidParameterTypeException as error:
            raise ConfigError(f'parameter {name} has the wrong type: {error}; '
                              f'it is a {type(default).__name__}: {description}') from error
        except InvalidParameterValueException as error:
            raise ConfigError(f'parameter {name} is out of range: {error}; it lies in '
                              f'{limits}: {description}') from error
    _warn_of_unknown(node)
    values = {name: node.get_parameter(name).value
              for name in LocalizerParameters.__dataclass_fields__}
    parameters = LocalizerParameters(**values)
    if not parameters.map_path:
        raise ConfigError('parameter map_path is empty; give the folder of a map: '
                          '--ros-args -p map_path:=FOLDER')
    for name in ('global_frame_id', 'camera_frame_id'):
        frame = getattr(parameters, name)
        if frame.startswith('/'):
            raise ConfigError(f"parameter {name} is '{frame}'; frame names have no leading slash")
    if not parameters.global_frame_id:
        raise ConfigError("parameter global_frame_id is empty; name the map's frame")
    if parameters.global_frame_id == parameters.camera_frame_id:
        raise ConfigError("global_frame_id and camera_frame_id are both "
                          f"'{parameters.global_frame_id}'; they must differ")
    return parameters


def _warn_of_unknown(node: Node):
    """Name the parameters that were given but do not exist: rclpy is silent about them."""
    for name in getattr(node, '_parameter_overrides', {}):
        if name in DECLARATIONS or name in _OF_RCLPY or name.startswith('qos_overrides.'):
            continue
        near = difflib.get_close_matches(name, DECLARATIONS, n=1)
        hint = f'; did you mean {near[0]}?' if near else ''
        node.get_logger().warning(f"parameter '{name}' does not exist and is ignored{hint}")
