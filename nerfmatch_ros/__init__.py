"""Camera localization in a NeRF map: NeRFMatch for robots."""

import os

__version__ = '0.1.0'

# Threads that wait for one another spin for a while before they sleep, and take the cores that
# others need: beside as many busy processes as cores a pose takes several times as long
# (docs/performance.md). It is read when PyTorch is first imported, so it stands here; what the
# environment says goes first.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')
