"""Registry, settings and data checks: what goes wrong is said before anything is trained."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.sparse import csr_array

from model.base import DataError, RecData
from model.config import TrainingConfig
from model.registry import entry


def test_light_modules_import_no_torch() -> None:
    code = "import sys, model.config, model.registry; assert not {'torch', 'numba', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean lightgcn"):
        entry("LightGNC")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batchsize": 3}, "batchsize"),
        ({"top_k": (10,)}, "recall_at_20.*is not computed"),
        ({"top_k": (0, 20)}, "distinct cut-offs"),
        ({"selection_metric": "precision_at_20"}, "is not computed"),
    ],
)
def test_training_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**settings)


def test_data_that_does_not_fit_is_named(checkerboard: RecData) -> None:
    empty = csr_array(checkerboard.train.shape, dtype=np.float32)
    semantic = checkerboard.semantic
    assert semantic is not None
    unsorted = checkerboard.train.copy()
    unsorted.indices[:2] = unsorted.indices[1::-1].copy()
    unsorted.has_canonical_format = False
    cases = {
        r"checkerboard: train has no interactions": {"train": empty},
        r"test has shape \(3, 3\), expected \(30, 22\)": {"test": csr_array(np.eye(3, dtype=np.float32))},
        r"valid holds the value 2\.0": {"valid": checkerboard.valid * 2},
        r"train has unsorted or repeated entries": {"train": unsorted},
        r"text has shape \(5, 2\), expected 22 rows": {"text": np.zeros((5, 2), dtype=np.float32)},
        r"visual has shape \(22,\)": {"visual": np.zeros(22, dtype=np.float32)},
        r"semantic\.users has shape": {"semantic": replace(semantic, users=semantic.items)},
        r"semantic\.fused has no edges": {"semantic": replace(semantic, fused=semantic.fused * 0)},
    }
    cases[r"semantic\.fused has no edges"]["semantic"].fused.eliminate_zeros()
    for message, change in cases.items():
        with pytest.raises(DataError, match=message):
            replace(checkerboard, **change)
