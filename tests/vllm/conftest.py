"""The engine inside the test's own process, on a CPU, quick to start; a tiny model for it."""

import importlib.util
import os
from pathlib import Path

import pytest

# Fixtures, for the service that runs vLLM.
from tests.docker.conftest import compose, services, tool  # noqa: F401
from tests.tiny_llama import save_tiny_llama

if importlib.util.find_spec("vllm") is not None:  # elsewhere these would reach other tests' processes
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # With more, an engine may round by what else is in a batch, and a random model's next word hangs on the last bits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model."""
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))
