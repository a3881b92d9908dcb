"""Compiled kernels for children: read from beside the code, written to the child's own folder.

Numba keeps what it compiled beside the source, and takes a folder only if it may write there. A
child may not, and must not: others would run what it left. So it gets a folder of its own in which
links lead to the kernels that are there already; compiling them takes many seconds.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "stiefel.unitary"


def lend(folder: Path) -> None:
    """Make ``folder`` numba's cache, filled with links to the compiled kernels of the package.

    Call before numba is imported. Costs a directory listing and a link per kernel.
    """
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin).parent
    # The name that numba gives to the cache of a source folder.
    digest = hashlib.sha1(str(source).encode(), usedforsecurity=False).hexdigest()
    target = folder / f"{source.name}_{digest}"
    target.mkdir(parents=True, exist_ok=True)
    for kernel in (source / "__pycache__").glob("*.nb[ci]"):
        (target / kernel.name).symlink_to(kernel)
