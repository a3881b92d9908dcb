"""A package named in STIEFEL_PLUGINS adds its methods to what the API offers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLUGINS = Path(__file__).parents[1] / "worker" / "plugins"
SCRIPT = """
import sys
from stiefel_api.app import create_app
create_app()
from stiefel.specs import SPECS
assert "test.trial" in SPECS
assert "torch" not in sys.modules
"""


def test_a_plugins_specs_are_offered_without_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ
        | {
            "STIEFEL_PLUGINS": "trial",
            "STIEFEL_DATA_DIR": str(tmp_path),
            "PYTHONPATH": str(PLUGINS),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
