"""Errors a user can cause and mend; each message names the cause, the value and the remedy."""


class NerfmatchError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(NerfmatchError):
    """A configuration file or option is wrong."""


class DataError(NerfmatchError):
    """An image, pose, camera or data set cannot be used."""


class MapError(NerfmatchError):
    """
    A map on disk is missing, damaged, incomplete or of another version.

    part: what of it is at fault, the 'folder', the 'description' or the 'data'.
    """

    def __init__(self, text: str, part: str = 'data'):
        super().__init__(text)
        self.part = part
