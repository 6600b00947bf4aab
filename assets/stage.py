"""One decorator for every data stage: it adds versions, timing, checks and settings to a plain function.

The body loads nothing and stores nothing: it takes its inputs as arguments, calls one function of `pipeline` and
returns a `Result`.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from scipy.sparse import csr_array

from assets.nodes import WHATEVER_THERE_IS
from assets.partitions import DATASETS
from assets.storage import content_version
from assets.versions import code_of, settings_key


@dataclass(frozen=True)
class Check:
    """Outcome of one asset check; a failed one warns, it does not stop the run."""

    passed: bool
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a stage produced: the value to store, figures to show, and the outcome of its checks by name."""

    value: Any
    shown: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Check] = field(default_factory=dict)


def stage(
    *,
    group: str,
    code: Sequence[str],
    settings: Sequence[str] = (),
    checks: Mapping[str, str] | None = None,
    tables: Mapping[str, str] | None = None,
    reads: Sequence[dg.AssetKey] = (),
    whatever_there_is: bool = False,
    pool: str | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Make a dataset-partitioned asset of a function `(context, **inputs) -> Result`, named like the function.

    Parameters
    ----------
    code
        Modules whose source, with what they import in this project, is the asset's code version; the function's
        own source always is.
    settings
        Groups of settings (see `assets.versions.SETTINGS`) on which the result depends.
    checks
        Check name -> what it asserts.
    tables
        For a function that makes several assets at once and returns their `Result`s by name: name -> description.
        The checks are those of the first.
    reads
        Assets that the function reads for itself.
    whatever_there_is
        It reads as much of `reads` as has been made: asking for it asks for none of them.
    pool
        Of whose stages as many run at a time, over all runs, as dagster.yaml allows: `nodes.GPU`.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        name = function.__name__
        described = tables or {name: inspect.getdoc(function) or ""}
        version = code_of(*code, function=function)

        def body(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[dg.MaterializeResult]:
            started = time.perf_counter()
            made = function(context, **inputs)
            for key, result in (made if tables else {name: made}).items():
                yield publish(result, started, [key])

        inputs = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
        return dg.multi_asset(
            name=name,
            outs={
                key: dg.AssetOut(
                    description=text,
                    group_name=group,
                    kinds={"parquet"},
                    code_version=version,
                    tags={WHATEVER_THERE_IS: ""} if whatever_there_is else None,
                )
                for key, text in described.items()
            },
            deps=[*(settings_key(each) for each in settings), *reads],
            partitions_def=DATASETS,
            check_specs=check_specs([next(iter(described))], checks or {}),
            pool=pool,
        )(takes(body, inputs))

    return decorate


def takes(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Callable[..., Any]:
    """Give a `**inputs` function the parameters and annotations that Dagster is to see, and no return annotation."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in inputs.items()]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = dict(inputs)
    return function


def check_specs(key: list[str], checks: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    """Dagster's declaration of an asset's checks."""
    return [dg.AssetCheckSpec(name, asset=dg.AssetKey(key), description=text) for name, text in checks.items()]


def publish(result: Result, started: float, key: Sequence[str]) -> dg.MaterializeResult:
    """Dagster's record of a result, with its content version, row count and seconds since `started`."""
    return dg.MaterializeResult(
        asset_key=dg.AssetKey(list(key)),
        value=result.value,
        data_version=dg.DataVersion(content_version(result.value)),
        metadata={**_size(result.value), **result.shown, "seconds": round(time.perf_counter() - started, 2)},
        check_results=[
            dg.AssetCheckResult(
                passed=check.passed,
                check_name=name,
                asset_key=dg.AssetKey(list(key)),
                severity=dg.AssetCheckSeverity.WARN,
                metadata=dict(check.shown),
            )
            for name, check in result.checks.items()
        ],
    )


def _size(value: Any) -> dict[str, Any]:
    if isinstance(value, pl.DataFrame):
        return {"dagster/row_count": value.height}
    if isinstance(value, np.ndarray):
        return {"dagster/row_count": value.shape[0], "dimensions": value.shape[1]}
    if isinstance(value, csr_array):
        return {"dagster/row_count": value.nnz}  # a graph is stored as its edges
    return {}
