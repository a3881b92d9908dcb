"""The `stiefel` command line."""

from __future__ import annotations

from stiefel_client.cli.main import main

__all__ = ["main"]
