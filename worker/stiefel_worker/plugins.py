"""Methods from outside the house: ``STIEFEL_PLUGINS=package,other`` names packages to load.

A plug-in package has a module ``specs`` (no torch: the API imports it too) and a module
``methods`` whose module-level ``Method`` objects join the registry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stiefel.methods.protocol import Method

PLUGINS_VARIABLE = "STIEFEL_PLUGINS"


def load_methods(plugins: str) -> dict[str, Method]:
    """Every offered method by name, those of the comma-separated ``plugins`` included.

    Raises:
        ImportError: a plug-in cannot be imported.
    """
    # Here and not above: the worker reads this module too, and loads no torch.
    from stiefel.methods import METHODS
    from stiefel.methods.protocol import Method

    for package in filter(None, (name.strip() for name in plugins.split(","))):
        import_module(f"{package}.specs")
        module = import_module(f"{package}.methods")
        METHODS.update(
            {item.name: item for item in vars(module).values() if isinstance(item, Method)}
        )
    return METHODS
