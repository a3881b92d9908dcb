"""The version of the installed software."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("stiefel")
