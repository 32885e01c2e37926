"""Command lines."""

import os

# Must be set before torch is imported. Threads of a CPU operation that wait for each other then sleep. By default they
# spin, and take the cores from the processes that decode audio, and from whatever else the machine does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
