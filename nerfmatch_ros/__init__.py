"""Camera localization in a NeRF map: NeRFMatch for robots."""

__version__ = '0.1.0'
