"""Packaging for pip and for colcon; the one place where dependencies are listed."""

from glob import glob
from pathlib import Path
import re

from setuptools import find_packages, setup

NAME = 'nerfmatch_ros'
HERE = Path(__file__).parent

REQUIREMENTS = [
    'torch>=2.6',  # the first whose safe loading lists classes by the names they were saved with
    'timm>=1.0.3',  # the first with features of ConvFormer
    'numpy>=1.23',
    'scipy>=1.9',
    'opencv-python-headless>=4.8',  # the first whose SIFT scales up precisely
    'poselib>=2.0.4',
    'safetensors>=0.4',
    'lightning-fabric>=2.4',  # trainings on several processes
    'pillow>=9.1',  # resizes as the published models' pictures were resized
    'pyyaml>=5.4',
    'numba>=0.57',
    'tyro>=0.8',
    'rich>=12',
    'matplotlib>=3.5',
    'rosbags>=0.11',  # bags without a ROS installation; the first that knows ROS 2 Kilted
]

EXTRAS = {
    # ROS 2 Kilted from PyPI, for machines without a ROS installation. rclpy brings lifecycle_msgs,
    # rosgraph_msgs and the interfaces of rcl. tf2_msgs is not among it:
    # tools/generate_tf2_msgs.py makes it, with catkin-pkg.
    'ros-wheels': [
        'ros-rclpy[fastrtps]==9.1.2',
        'ros-kilted-rmw-fastrtps-cpp==9.3.3',
        'ros-kilted-sensor-msgs==5.5.1',
        'ros-kilted-geometry-msgs==5.5.1',
        'ros-kilted-nav-msgs==5.5.1',
        'ros-kilted-diagnostic-msgs==5.5.1',
        'ros-kilted-std-msgs==5.5.1',
        'ros-kilted-std-srvs==5.5.1',
        'ros-kilted-visualization-msgs==5.5.1',
        'catkin-pkg>=1.0',
    ],
    'sfm': ['pycolmap>=3.11'],
    'scale': ['faiss-cpu>=1.8'],  # retrieval among more views than are compared one by one
    'dev': ['pytest>=7', 'hypothesis>=6', 'ruff>=0.5'],
}


def version() -> str:
    """Read the version from the package without importing it."""
    text = (HERE / NAME / '__init__.py').read_text()
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE).group(1)


def demo_map() -> list[str]:
    """List the files of the demo map relative to the package."""
    package = HERE / NAME
    return [str(path.relative_to(package)) for path in sorted(package.glob('demo_map/**/*'))
            if path.is_file()]


setup(
    name=NAME,
    version=version(),
    description='Camera localization in a NeRF map: NeRFMatch for robots',
    long_description=(HERE / 'README.md').read_text() if (HERE / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    maintainer='nerfmatch_ros maintainers',
    maintainer_email='maintainers@example.org',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: demo_map()},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{NAME}/config', sorted(glob('config/*'))),
        # Under plain pip, entry points go to bin/ only, where ros2 run does not look.
        (f'lib/{NAME}', sorted(glob('scripts/*'))),
    ],
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': [
            'nerfmatch = nerfmatch_ros.cli:main',
            'localizer = nerfmatch_ros.ros.localizer_node:main',
            'refiner = nerfmatch_ros.ros.refiner_node:main',
            'combined = nerfmatch_ros.ros.combined:main',
            'doctor = nerfmatch_ros.cli:doctor_main',
        ],
    },
    zip_safe=False,
)
