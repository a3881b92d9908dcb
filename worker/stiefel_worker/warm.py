"""What the fork server loads once, so that a child starts in milliseconds.

Imported by the fork server alone, after the environment was scrubbed. CUDA is not touched here: a
process that has initialised it cannot be forked.
"""

from __future__ import annotations

import os
import signal

import torch

# Unused here. torch.optim loads the compiler with a process's first optimizer, and a job's curves
# the writer of event files: together 2.4 of the 3.1 s that a training of 88 steps took.
import torch._dynamo
import torch.utils.tensorboard

from stiefel_worker.plugins import PLUGINS_VARIABLE, load_methods

# A signal to the whole process group (an init system's stop, Ctrl-C) is the worker's to answer.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

TORCH_VERSION = torch.__version__
METHODS = load_methods(os.environ.get(PLUGINS_VARIABLE, ""))
