from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# What a helper asserts is reported in full, as in a test.
pytest.register_assert_rewrite("tests.helpers")
pytest_plugins = ["tests.helpers.stores"]

# Whoever starts the tests may ignore signals (nohup, a shell's background); the tests send them.
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    if hasattr(signal, name):
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(getattr(signal, name), usual)

# Results are thousands of small files, each made sure of on the disk: in memory that takes no time.
# A passed test's files are removed at once (pyproject.toml); those that last for a session need 2 GB.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Networks in tests are small: threads would only wait for each other, and for whatever else is running.
torch.set_num_threads(1)

# The same examples each time, so that a change is judged by what it changes. HYPOTHESIS_PROFILE=search looks
# for new ones; what it finds becomes an @example.
# How long an example takes says something of the machine, and nothing of the program.
timeless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", timeless, derandomize=True)
settings.register_profile("search", timeless, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
