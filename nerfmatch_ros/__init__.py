"""Camera localization in a NeRF map: NeRFMatch for robots."""

import os

__version__ = '0.1.0'

# Threads that wait for one another by spinning take the cores that others need: with one more busy
# process than cores a pose takes many times as long (docs/performance.md). It is read when
# PyTorch is first imported, so it stands here; what the environment says goes first.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
