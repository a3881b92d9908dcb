"""The offered methods, found by walking this package: each module may define ``METHOD``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from stiefel.methods.protocol import Method

METHODS: dict[str, Method] = {}

for _info in iter_modules(__path__):
    _method = getattr(import_module(f"{__name__}.{_info.name}"), "METHOD", None)
    if isinstance(_method, Method):
        METHODS[_method.name] = _method

__all__ = ["METHODS"]
