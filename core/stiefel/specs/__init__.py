"""What a caller may ask for: one closed model per method. Importing this loads no torch.

Every module of this package is imported, so a new spec module is found by being here.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from stiefel.specs.base import SPECS, InvalidSpecError, MethodSpec, parse_spec

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["SPECS", "InvalidSpecError", "MethodSpec", "parse_spec"]
