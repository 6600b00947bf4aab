"""Hashes of settings, and of source code: of syntax trees, in which comments, docstrings and layout do not count."""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

LENGTH = 16  # bytes of a digest: a collision among 10^9 contents has odds below 10^-20


def hash_of(*parts: object) -> hashlib.blake2b:
    """A hash of the parts as text, to which bytes can be added."""
    hasher = hashlib.blake2b(digest_size=LENGTH)
    for part in parts:
        hasher.update(str(part).encode() + b"\0")
    return hasher


def settings_version(*settings: BaseModel | Mapping[str, Any] | Sequence[Any]) -> str:
    """Hash of settings by value; the order of keys makes no difference."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in settings]
    return hash_of("settings", json.dumps(plain, sort_keys=True, default=str)).hexdigest()


def file_states(path: Path) -> dict[str, str]:
    """Size and time (UTC) of a file by its name, or of every file below a folder; empty where there is none.

    It stands for the content of files that are too large to be hashed at every look.
    """
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*"))} if path.is_dir() else {}
    found = {}
    for name, file in (files or {path.name: path}).items():
        if file.is_file():
            stat = file.stat()
            found[name] = f"{stat.st_size:,} bytes of {datetime.fromtimestamp(stat.st_mtime, UTC)}"
    return found


def code_version(*sources: str) -> str:
    """Hash of syntax trees of Python source texts: an edited comment, docstring or line break leaves it as it was."""
    hasher = hash_of("code")
    for source in sources:
        hasher.update(ast.dump(_without_docstrings(ast.parse(source))).encode())
    return hasher.hexdigest()


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
