"""
Localizer and refiner in one process, which saves the memory of a second map of CUDA kernels.

    python -m nerfmatch_ros.ros.combined --ros-args -p map_path:=FOLDER

A crash of the refiner takes the pose stream down with it: two processes are the safer choice.
"""

if __name__ == '__main__':
    # Before rclpy, whose threads bring arenas of their own into which no large block fits.
    from nerfmatch_ros.memory import keep_freed_memory
    keep_freed_memory()

import sys

from nerfmatch_ros.ros.localizer_node import LocalizerNode
from nerfmatch_ros.ros.refiner_node import RefinerNode
from nerfmatch_ros.ros.run_node import run_nodes


def main(args: list[str] | None = None) -> int:
    """Run both nodes until told to stop; give the exit code."""
    return run_nodes([LocalizerNode, RefinerNode], 'nerfmatch', args)


if __name__ == '__main__':
    sys.exit(main())
