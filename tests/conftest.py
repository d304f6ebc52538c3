"""Settings of all tests."""

import os

# As the command line does, before torch is imported: waiting threads that spin starve each other on a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a process per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("lrzip", deadline=None)
settings.load_profile("lrzip")
