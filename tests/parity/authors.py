"""Code that a paper's authors have published, run for its numbers: checkout, shims, command line."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.parity import golden

Step = dict[str, Any]


@dataclass(frozen=True)
class Authors:
    """A repository, and what of it is computed.

    Parameters
    ----------
    name
        The model's; `SCALE_NAME` in the environment names a clone, and `tests/parity/NAME.py` runs it.
    repository
        Address.
    sources
        Folder in it that holds its modules.
    steps
        By part, from the reference's name to a function that computes its numbers.
    """

    name: str
    repository: str
    sources: str
    steps: Mapping[str, tuple[str, Callable[[], Step]]]

    @property
    def variable(self) -> str:
        return f"SCALE_{self.name.upper()}"

    @property
    def missing(self) -> str:
        return f"set {self.variable} to the folder of a clone of {self.repository}"

    def checkout(self) -> Path | None:
        """The clone's folder, or None where none is named."""
        named = os.environ.get(self.variable)
        return Path(named).resolve() if named and (Path(named) / self.sources).is_dir() else None

    def stored(self, part: str) -> Step:
        """What `main` wrote of a part."""
        step: Step = golden.read(f"{self.name}-{part}")["step"]
        return step

    def main(self, description: str | None) -> None:
        """Write what one part comes to, as the command line says."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("part", choices=self.steps)
        parser.add_argument("--out", type=Path, default=golden.FOLDER)
        arguments = parser.parse_args()
        checkout = self.checkout()
        if checkout is None:
            parser.error(self.missing)
        self._prepare(checkout)
        reference, step = self.steps[arguments.part]
        revision = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        golden.write(
            arguments.out / f"{self.name}-{arguments.part}.json",
            f"{reference}, {self.repository}",
            subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip(),
            f"{self.variable}=CHECKOUT python tests/parity/{self.name}.py {arguments.part}",
            {"step": step()},
        )

    def _prepare(self, checkout: Path) -> None:
        """Let this process import the sources; what they send to a GPU stays, and nothing is written into them."""
        torch.Tensor.cuda = lambda tensor, *_: tensor  # type: ignore[method-assign, assignment]
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(checkout / self.sources))
