"""
Starts the localizer and the refiner for one camera, live or from a bag.

    ros2 launch nerfmatch_ros localize.launch.py map:=FOLDER image_topic:=/camera/image_raw
"""

import os
from pathlib import Path

from ament_index_python.packages import (
    get_package_prefix,
    get_package_share_directory,
    PackageNotFoundError,
)
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState

PACKAGE, LOCALIZER, REFINER = 'nerfmatch_ros', 'nerfmatch_localizer', 'nerfmatch_refiner'
MANAGER = 'nav2_lifecycle_manager'
RESPAWN_SECONDS = 2.0
ASK_SECONDS = 1.0  # between two questions whether a node is active
LAST_SECONDS = 3.0  # after the end of a bag, for the last refinement
RECORDED = ('pose', 'pose_with_covariance', 'refined_pose', f'{LOCALIZER}/pose_raw',
            f'{LOCALIZER}/status', 'tf', 'tf_static')

YES_NO = ['true', 'false', 'True', 'False']
MODES = ['', 'map_to_odom', 'map_to_base', 'map_to_camera', 'none']
LOCALIZERS = ['', 'map', 'nerfmatch', 'scene_geometry', 'hybrid']
LEVELS = ['debug', 'info', 'warn', 'error', 'fatal']

# name, default (None: required), description, choices
ARGUMENTS = [
    ('map', None, 'Folder of the map that `nerfmatch build` wrote.', None),
    ('image_topic', 'image',
     'Topic of the images; for compressed ones without its ending /compressed.', None),
    ('camera_info_topic', '',
     'Topic of the CameraInfo; empty: camera_info beside the image topic.', None),
    ('image_transport', '', 'Kind of the images; empty: as in params_file.',
     ['', 'raw', 'compressed']),
    ('namespace', '', 'Namespace of the nodes, their topics and, where it is set, of /tf.', None),
    ('params_file', '', 'YAML file of parameters; empty: config/localize.yaml.', None),
    ('device', '', "Where to compute: 'auto', 'cpu', 'cuda:0'; empty: as in params_file.", None),
    ('localizer', '', 'What finds where an image is; empty: as in params_file.', LOCALIZERS),
    ('tf_mode', '', 'Transform to broadcast; empty: as in params_file.', MODES),
    ('global_frame', '', 'Frame in which poses are given; empty: as in params_file.', None),
    ('odom_frame', '', 'Frame of the odometry; empty: as in params_file.', None),
    ('base_frame', '', 'Frame of the robot; empty: as in params_file.', None),
    ('refine', 'true', 'Start the refiner, too.', YES_NO),
    ('autostart', '', 'Configure and activate at the start; empty: as in params_file.',
     ['', *YES_NO]),
    ('use_lifecycle_manager', 'false',
     'Leave the transitions to a lifecycle manager; one of nav2 is started where installed.',
     YES_NO),
    ('use_respawn', 'false', f'Start a node that ended anew, after {RESPAWN_SECONDS:g} s.',
     YES_NO),
    ('use_sim_time', 'false', 'Take the time from /clock, as for a simulation.', YES_NO),
    ('rviz', 'false', 'Start RViz with config/nerfmatch.rviz.', YES_NO),
    ('bag', '', 'Bag to play once the localizer is active; sets use_sim_time, and its end is the '
     'end of all. Empty: none.', None),
    ('bag_rate', '1.0', 'How many times faster the bag is played.', None),
    ('bag_loop', 'false', 'Play the bag again and again.', YES_NO),
    ('record', '', 'Bag to record poses and transforms in, a folder that does not exist yet; '
     'empty: none.', None),
    ('log_level', 'info', 'What the nodes log at least.', LEVELS),
]

# launch argument -> parameter, of both nodes and of the localizer alone
PARAMETERS = {'image_transport': 'image_transport', 'device': 'device', 'tf_mode': 'tf_mode',
              'global_frame': 'global_frame_id', 'base_frame': 'base_frame_id'}
LOCALIZER_PARAMETERS = {'odom_frame': 'odom_frame_id', 'localizer': 'localizer'}


class Settings:
    """The launch arguments as they are at launch, checked, and what several actions share."""

    def __init__(self, context):
        """Read and check the arguments; a RuntimeError says which one is wrong."""
        self.values = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
        self.share = get_package_share_directory(PACKAGE)
        self.map = checked_map(self['map'])
        self.params_file = self['params_file'] or os.path.join(
            self.share, 'config', 'localize.yaml')
        if not os.path.isfile(self.params_file):
            raise RuntimeError(f"params_file:='{self.params_file}' does not exist")
        self.bag_rate = checked_rate(self['bag_rate'])
        if self['bag'] and not os.path.exists(self['bag']):
            raise RuntimeError(f"bag:='{self['bag']}' does not exist; give the folder or the file "
                               'of a ROS 2 bag')
        if self['record'] and os.path.exists(self['record']):
            raise RuntimeError(f"record:='{self['record']}' exists already; give another folder")
        self.namespace = self['namespace'].strip('/')
        self.prefix = f'/{self.namespace}' if self.namespace else ''
        self.use_sim_time = self.on('use_sim_time') or bool(self['bag'])
        self.environment = transport_environment(self.share)

    def __getitem__(self, name: str) -> str:
        """Give an argument."""
        return self.values[name]

    def on(self, name: str) -> bool:
        """Tell whether an argument says true."""
        return self[name].lower() == 'true'

    @property
    def nodes(self) -> list[str]:
        """The nodes to start."""
        return [LOCALIZER, REFINER] if self.on('refine') else [LOCALIZER]

    @property
    def remappings(self) -> list[tuple[str, str]]:
        """What connects the nodes, and RViz, to the camera and to the transforms."""
        image = self['image_topic']
        remappings = [
            ('image', image), ('image/compressed', f'{image}/compressed'),
            ('camera_info', self['camera_info_topic'] or camera_info_beside(image))]
        if self.namespace:
            # Robots that share a network keep their frames apart.
            remappings += [('/tf', 'tf'), ('/tf_static', 'tf_static')]
        return remappings


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


def checked_rate(text: str) -> float:
    """Give the rate of a bag, a positive number."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float('inf'):
        raise RuntimeError(f"bag_rate:='{text}' is no positive number; 1.0 is the speed of life")
    return rate


def transport_environment(share: str) -> dict[str, str]:
    """Give Fast DDS room for images in shared memory, unless the user has a profile already."""
    names = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
    if any(name in os.environ for name in names):
        return {}
    # Kilted and newer read the first name and warn of the second; before, only the second exists.
    old = os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
    return {names[old]: os.path.join(share, 'config', 'fastdds_large_images.xml')}


def make_node(settings: Settings, name: str) -> LifecycleNode:
    """Give the localizer or the refiner."""
    arguments = PARAMETERS if name == REFINER else {**PARAMETERS, **LOCALIZER_PARAMETERS}
    given = {parameter: settings[argument] for argument, parameter in arguments.items()}
    given['map_path'] = settings.map
    # What was given here goes before the file; ParameterValue keeps a map named 12 a text.
    parameters = {parameter: ParameterValue(value, value_type=str)
                  for parameter, value in given.items() if value}
    parameters['use_sim_time'] = settings.use_sim_time
    if settings.on('use_lifecycle_manager'):
        parameters['autostart'] = False
    elif settings['autostart']:
        parameters['autostart'] = settings.on('autostart')
    # A logger is named after the namespace and the node.
    logger = '.'.join([*filter(None, settings.namespace.split('/')), name])
    return LifecycleNode(
        package=PACKAGE,
        executable=name.replace('nerfmatch_', ''),
        name=name,
        namespace=settings['namespace'],
        parameters=[ParameterFile(settings.params_file, allow_substs=True), parameters],
        remappings=settings.remappings,
        ros_arguments=['--log-level', f'{logger}:={settings["log_level"]}'],
        additional_env=settings.environment,
        respawn=settings.on('use_respawn'),
        respawn_delay=RESPAWN_SECONDS,
        output='screen',
        emulate_tty=True,
    )


def make_manager(settings: Settings) -> list:
    """Give the lifecycle manager of nav2, or a word about its absence."""
    if not settings.on('use_lifecycle_manager'):
        return []
    try:
        get_package_prefix(MANAGER)
    except PackageNotFoundError:
        return [LogInfo(msg=f'{MANAGER} is not installed: {" and ".join(settings.nodes)} wait for '
                            'another lifecycle manager; give it bond_timeout 0.0')]
    return [Node(
        package=MANAGER, executable='lifecycle_manager', name='lifecycle_manager_nerfmatch',
        namespace=settings['namespace'], output='screen',
        parameters=[{
            'use_sim_time': settings.use_sim_time,
            'autostart': settings['autostart'].lower() != 'false',
            'bond_timeout': 0.0,  # bonds of Python nodes need bondpy, which may be missing
            'node_names': settings.nodes,
        }])]


def make_rviz(settings: Settings) -> list:
    """Give RViz, if it is asked for."""
    if not settings.on('rviz'):
        return []
    return [Node(
        package='rviz2', executable='rviz2', name='rviz2', namespace=settings['namespace'],
        arguments=['-d', os.path.join(settings.share, 'config', 'nerfmatch.rviz')],
        parameters=[{'use_sim_time': settings.use_sim_time}], remappings=settings.remappings,
        additional_env=settings.environment, output='screen')]


def make_recorder(settings: Settings) -> list:
    """Give the recorder of poses, if it is asked for."""
    if not settings['record']:
        return []
    # By a pattern, as the way to list topics differs between distributions.
    pattern = '|'.join(f'{settings.prefix}/{topic}' for topic in RECORDED)
    command = ['ros2', 'bag', 'record', '--output', settings['record'],
               '--regex', f'^({pattern})$']
    if settings.use_sim_time:
        command.append('--use-sim-time')
    return [ExecuteProcess(cmd=command, name='recorder', output='screen')]


def make_player(settings: Settings, localizer: LifecycleNode) -> list:
    """Give what plays the bag when the localizer is active and ends all afterwards."""
    if not settings['bag']:
        return []
    # Often enough that no image is ahead of the clock by much.
    clock = 100.0 * max(1.0, settings.bag_rate)
    command = ['ros2', 'bag', 'play', settings['bag'], '--clock', f'{clock:g}',
               '--rate', f'{settings.bag_rate:g}', '--delay', '1.0']
    if settings.on('bag_loop'):
        command.append('--loop')
    end = TimerAction(period=LAST_SECONDS, actions=[end_all('the bag has ended')])
    player = ExecuteProcess(cmd=command, name='player', output='screen',
                            additional_env=settings.environment, on_exit=[end])
    actions = [when_active(f'{settings.prefix}/{LOCALIZER}', player)]
    if not settings.on('use_respawn'):
        actions.append(RegisterEventHandler(OnProcessExit(
            target_action=localizer, on_exit=[end_all('the localizer has ended')])))
    return actions


def when_active(node: str, action) -> OpaqueFunction:
    """Give an action that asks a lifecycle node again and again and goes on when it is active."""
    # The event of the transition is sent once, perhaps before this process is known to the node.
    clients, answers = [], []

    def ask(context):
        if not clients:
            clients.append(get_ros_node(context).create_client(GetState, f'{node}/get_state'))
        if any(answer.done() and answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE
               for answer in answers):
            return [action]
        if clients[0].service_is_ready():
            answers.append(clients[0].call_async(GetState.Request()))
        return [TimerAction(period=ASK_SECONDS, actions=[OpaqueFunction(function=ask)])]

    return OpaqueFunction(function=ask)


def end_all(reason: str) -> OpaqueFunction:
    """Give an action that shuts everything down, unless that is under way already."""
    return OpaqueFunction(
        function=lambda context: [] if context.is_shutdown else [Shutdown(reason=reason)])


def make_actions(context) -> list:
    """Give all there is to start for the arguments as they are at launch."""
    settings = Settings(context)
    nodes = [make_node(settings, name) for name in settings.nodes]
    # The handlers go first, so that they miss nothing.
    return [*make_player(settings, nodes[0]), *make_recorder(settings), *nodes,
            *make_manager(settings), *make_rviz(settings)]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the nodes."""
    arguments = []
    for name, default, description, choices in ARGUMENTS:
        options = {'description': description}
        if default is not None:
            options['default_value'] = default
        if choices:
            options['choices'] = choices
        arguments.append(DeclareLaunchArgument(name, **options))
    return LaunchDescription([*arguments, OpaqueFunction(function=make_actions)])
