"""
Plays a bag to the localizer and the refiner and ends when the bag does.

    ros2 launch nerfmatch_ros replay.launch.py bag:=FOLDER map:=FOLDER image_topic:=TOPIC

Takes every argument of localize.launch.py besides.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

LOCALIZE = Path(__file__).with_name('localize.launch.py')


def generate_launch_description() -> LaunchDescription:
    """Demand a bag; the rest is what localize.launch.py does with one."""
    # What has no default must be handed on by name; all other arguments find their way.
    required = {
        'bag': 'Bag to play, with images and camera_info.',
        'map': 'Folder of the map that `nerfmatch build` wrote.',
    }
    given = {name: LaunchConfiguration(name) for name in required}
    return LaunchDescription([
        *(DeclareLaunchArgument(name, description=description)
          for name, description in required.items()),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(LOCALIZE)),
            launch_arguments={**given, 'use_sim_time': 'true'}.items()),
    ])
