"""Our Adam takes torch's steps, bit for bit, and imports less."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from model.optimizer import Adam


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).requires_grad_() for size in ((40, 16), (16,), (3, 5))]


def set_gradients(step: int, *several: list[Tensor]) -> None:
    """The same gradients for all; the last parameter has one in every other step."""
    for given in several:
        generator = torch.Generator().manual_seed(step)
        for place, parameter in enumerate(given):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient if place < len(given) - 1 or step % 2 else None


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_torch_also_after_a_restart(fused: bool) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = Adam(ours, fused), torch.optim.Adam(theirs, fused=fused)
    for step in range(8):
        learning_rate = 0.1 * 0.9**step
        reference.param_groups[0]["lr"] = learning_rate
        optimizer.zero_grad()
        reference.zero_grad()
        assert all(parameter.grad is None for parameter in ours)
        set_gradients(step, ours, theirs)
        if step == 4:
            kept = {name: value.clone() for name, value in optimizer.state().items()}
            optimizer = Adam(ours, fused)
            optimizer.restore(kept)
        optimizer.step(learning_rate)
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other), step


def test_a_training_does_not_wait_for_the_import_of_torchs_compiler() -> None:
    code = """
import sys
import torch
from model.optimizer import Adam
weight = torch.ones(3, requires_grad=True)
weight.sum().backward()
Adam([weight], fused=True).step(0.1)
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
