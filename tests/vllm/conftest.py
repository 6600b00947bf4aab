"""The engine inside the test's own process, on a CPU, quick to start."""

import importlib.util
import os

# Fixtures, for the service that runs vLLM.
from tests.docker.conftest import compose, services, tool  # noqa: F401

if importlib.util.find_spec("vllm") is not None:  # elsewhere these would reach other tests' processes
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # With more, an engine may round by what else is in a batch, and a random model's next word hangs on the last bits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
