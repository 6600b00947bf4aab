"""The graph of all stages, which is kept while nobody edits the project: a look needs to import none of them then."""

import sys
from collections.abc import Iterable
from typing import Any

import dagster as dg

from assets.home import PROJECT
from assets.kept import kept
from assets.nodes import Asset, AssetGraph, graph_of
from pipeline import fingerprint

ROOMS = ("assets", "model", "pipeline")
SUFFIXES = (".py", ".yaml", ".j2")  # of what counts in a code version


def asset_graph() -> AssetGraph:
    """Every stage and every group of settings, as the code stands; a process that has loaded the stages goes by these.

    To import the stages takes a second, with all that they compute with.
    """
    if _are_loaded():
        return _loaded()
    graph: AssetGraph = kept(
        "graph",
        _state,
        lambda: {key.to_user_string(): _plain(asset) for key, asset in _loaded().items()},
        lambda found: {dg.AssetKey.from_user_string(key): _asset(fields) for key, fields in found.items()},
    )
    return graph


def _are_loaded() -> bool:
    return "assets.stages" in sys.modules


def _loaded() -> AssetGraph:
    from assets.progress import Progress
    from assets.stages import stages

    return graph_of(stages(Progress()).resolve_asset_graph())


def _state() -> str:
    """Version of Python and of all text that a code version may be made of."""
    files = [path for room in ROOMS for path in sorted((PROJECT / room).rglob("*")) if path.suffix in SUFFIXES]
    texts = {path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    return fingerprint.settings_version([sys.version], texts)


def _plain(asset: Asset) -> dict[str, Any]:
    return vars(asset) | {"parents": _names(asset.parents), "together": _names(asset.together)}


def _asset(fields: dict[str, Any]) -> Asset:
    keys = {name: tuple(map(dg.AssetKey.from_user_string, fields[name])) for name in ("parents", "together")}
    return Asset(**{**fields, **keys, "models": tuple(fields["models"])})


def _names(keys: Iterable[dg.AssetKey]) -> list[str]:
    return [key.to_user_string() for key in keys]
