"""The plugin's version: that of the one distribution it comes in."""

from higgs_voice._version import __version__

__all__ = ["__version__"]
