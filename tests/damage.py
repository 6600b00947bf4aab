"""What happens to files on a disk."""

from pathlib import Path


def cut_off(path: Path) -> None:
    """Take the end of a file away."""
    path.write_bytes(path.read_bytes()[:-40])


def flip_a_bit(path: Path) -> None:
    """Change one bit, a third of the way into a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
