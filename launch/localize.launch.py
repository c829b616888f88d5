"""
Starts the localizer node for one camera.

    ros2 launch nerfmatch_ros localize.launch.py map:=FOLDER image_topic:=/camera/image_raw
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

PACKAGE, NODE = 'nerfmatch_ros', 'nerfmatch_localizer'
LEVELS = ['debug', 'info', 'warn', 'error', 'fatal']

# name, default (None: required), description, choices
ARGUMENTS = [
    ('map', None, 'Folder of the map that `nerfmatch build` wrote.', None),
    ('image_topic', 'image', 'Topic of the images (sensor_msgs/Image).', None),
    ('camera_info_topic', '',
     'Topic of the CameraInfo; empty: camera_info beside the image topic.', None),
    ('device', '', "Where to compute: 'auto', 'cpu', 'cuda:0'; empty: as in params_file.", None),
    ('global_frame', '', 'Frame in which poses are given; empty: as in params_file.', None),
    ('namespace', '', 'Namespace of the node, its topics and, where it is set, of /tf.', None),
    ('use_sim_time', 'false', 'Take the time from /clock, as for a bag.', ['true', 'false']),
    ('params_file', '', 'YAML file of parameters; empty: config/localize.yaml.', None),
    ('log_level', 'info', 'What the node logs at least.', LEVELS),
]


def camera_info_beside(image_topic: str) -> str:
    """Give the topic of the camera_info that belongs to an image topic, by ROS convention."""
    namespace, slash, _ = image_topic.rpartition('/')
    return f'{namespace}{slash}camera_info'


def checked_map(folder: str) -> str:
    """Give the absolute folder of the map; say in plain words if there is none."""
    path = Path(folder).expanduser().absolute()
    if not (path / 'map.yaml').is_file():
        found = 'has no map.yaml' if path.is_dir() else 'is no folder'
        raise RuntimeError(
            f"map:='{folder}' ({path}) {found}; give the folder that `nerfmatch build` wrote")
    return str(path)


def transport_environment(share: str) -> dict[str, str]:
    """Give Fast DDS room for images in shared memory, unless the user has a profile already."""
    names = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
    if any(name in os.environ for name in names):
        return {}
    # Kilted and newer read the first name and warn of the second; before, only the second exists.
    old = os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
    return {names[old]: os.path.join(share, 'config', 'fastdds_large_images.xml')}


def make_node(context):
    """Give the node for the arguments as they are at launch."""
    values = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    share = get_package_share_directory(PACKAGE)
    params_file = values['params_file'] or os.path.join(share, 'config', 'localize.yaml')
    if not os.path.isfile(params_file):
        raise RuntimeError(f"params_file:='{params_file}' does not exist")
    # What was given here goes before the file; ParameterValue keeps a map named 12 a text.
    given = {'map_path': checked_map(values['map']), 'device': values['device'],
             'global_frame_id': values['global_frame']}
    parameters = {name: ParameterValue(value, value_type=str)
                  for name, value in given.items() if value}
    parameters['use_sim_time'] = values['use_sim_time'] == 'true'
    remappings = [
        ('image', values['image_topic']),
        ('camera_info',
         values['camera_info_topic'] or camera_info_beside(values['image_topic'])),
    ]
    if values['namespace'].strip('/'):
        # Robots that share a network keep their frames apart.
        remappings += [('/tf', 'tf'), ('/tf_static', 'tf_static')]
    # A logger is named after the namespace and the node.
    logger = '.'.join([*filter(None, values['namespace'].split('/')), NODE])
    return [Node(
        package=PACKAGE,
        executable='localizer',
        name=NODE,
        namespace=values['namespace'],
        parameters=[ParameterFile(params_file, allow_substs=True), parameters],
        remappings=remappings,
        ros_arguments=['--log-level', f'{logger}:={values["log_level"]}'],
        additional_env=transport_environment(share),
        output='screen',
        emulate_tty=True,
    )]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    arguments = []
    for name, default, description, choices in ARGUMENTS:
        options = {'description': description}
        if default is not None:
            options['default_value'] = default
        if choices:
            options['choices'] = choices
        arguments.append(DeclareLaunchArgument(name, **options))
    return LaunchDescription([*arguments, OpaqueFunction(function=make_node)])
