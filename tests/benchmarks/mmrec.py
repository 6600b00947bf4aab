"""MMRec's own code, from the checkout that SCALE_MMREC names, made to run on today's numpy, scipy and torch.

MMRec: Zhou, *MMRec: Simplifying Multimodal Recommendation*, https://github.com/enoche/MMRec. It is imported into the
process that runs it, and nothing is written into the checkout.
"""

import os
import subprocess
import sys
from contextlib import chdir
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from model.base import RecData

MISSING = "set SCALE_MMREC to the folder of a checkout of https://github.com/enoche/MMRec"
MODELS: dict[str, dict[str, Any]] = {  # settings of which MMRec's files list several
    "LightGCN": {"n_layers": 1, "reg_weight": 1e-4},
    "FREEDOM": {"dropout": 0.8, "reg_weight": 1e-3},
}


def checkout() -> Path | None:
    """The folder with MMRec's sources, or None where no checkout is named."""
    named = os.environ.get("SCALE_MMREC")
    if not named:
        return None
    sources = Path(named).expanduser().resolve() / "src"
    if not (sources / "utils" / "configurator.py").is_file():
        raise FileNotFoundError(f"SCALE_MMREC names {named}, which has no src/utils/configurator.py: {MISSING}")
    return sources


def revision() -> str:
    """Hash of the checkout's commit, with `-dirty` where a file was changed since."""
    sources = checkout()
    if sources is None or not (sources.parent / ".git").exists():
        raise FileNotFoundError(f"the checkout's commit is not known, for it has no .git: {MISSING}")
    command = ["git", "-C", str(sources.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_dataset(folder: Path, data: "RecData") -> None:
    """A dataset in MMRec's form, with the items' text and image vectors where it has them, under `made/`."""
    import pandas as pd

    (folder / "made").mkdir()
    parts = [getattr(data, split).tocoo() for split in ("train", "valid", "test")]
    columns = {
        "userID": np.concatenate([part.row for part in parts]),
        "itemID": np.concatenate([part.col for part in parts]),
        "x_label": np.repeat(range(3), [part.nnz for part in parts]),
    }
    pd.DataFrame(columns | {"rating": 1.0, "timestamp": 0}).to_csv(
        folder / "made" / "made.inter", sep="\t", index=False
    )
    for name, features in (("text", data.text), ("image", data.visual)):
        if features is not None:
            np.save(folder / "made" / f"{name}_feat.npy", features)


@cache
def _import_from(sources: Path) -> None:
    """Fill in what MMRec imports or calls and what is no longer there, or not on a CPU."""
    import scipy.sparse
    import torch

    vars(np)["float"] = float
    scipy.sparse.dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment]
    for name in ("lmdb", "torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = ModuleType(name)  # for reading images, of which there are none
    vision = sys.modules["torchvision"]
    vision.transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    functional = sys.modules["torchvision.transforms.functional"]
    functional.pad = functional.resize = None  # type: ignore[attr-defined]
    scatter = sys.modules["torch_scatter"] = ModuleType("torch_scatter")
    scatter.scatter = None  # type: ignore[attr-defined]  # imported, never called
    scatter.scatter_add = _scatter_add  # type: ignore[attr-defined]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(sources))
    import common.abstract_recommender
    import common.loss

    for module in (common, common.abstract_recommender, common.loss):  # LayerGCN looks for them elsewhere
        sys.modules[f"models.{module.__name__}"] = module


def _scatter_add(values: "Tensor", places: "Tensor", dim: int, dim_size: int) -> "Tensor":
    """Sums (dim_size,) of the values (n,) that have the same place."""
    return values.new_zeros(dim_size).index_add(dim, places, values)


class MMRec:
    """One of MMRec's models with its trainer and loaders, on the CPU.

    Parameters
    ----------
    name
        One of MMRec's classes.
    folder
        Where `write_dataset` wrote to.
    seed
        Of the weights and of everything else that is drawn.
    settings
        On top of MMRec's files, and of `MODELS`.
    """

    def __init__(self, name: str, folder: Path, seed: int = 0, **settings: Any) -> None:
        folder, sources = folder.resolve(), checkout()
        if sources is None:
            raise FileNotFoundError(MISSING)
        _import_from(sources)
        from utils.configurator import Config
        from utils.dataloader import EvalDataLoader, TrainDataLoader
        from utils.dataset import RecDataset
        from utils.utils import get_model, get_trainer, init_seed

        files = {
            "data_path": f"{folder}/",
            "inter_file_name": "made.inter",
            "USER_ID_FIELD": "userID",
            "ITEM_ID_FIELD": "itemID",
            "TIME_FIELD": "timestamp",
            "vision_feature_file": "image_feat.npy",
            "text_feature_file": "text_feat.npy",
        }
        with chdir(sources):  # its settings are found from there
            config = Config(name, "made", {**files, **MODELS.get(name, {}), "use_gpu": False, **settings})
        train, valid, _ = parts = RecDataset(config).split()
        for part in parts:
            str(part)  # counts its interactions, which the loaders read
        self._train_loader = TrainDataLoader(config, train, batch_size=config["train_batch_size"], shuffle=True)
        self._valid_loader = EvalDataLoader(
            config, valid, additional_dataset=train, batch_size=config["eval_batch_size"]
        )
        init_seed(seed)
        self._train_loader.pretrain_setup()
        self.model = get_model(name)(config, self._train_loader)
        self._trainer = get_trainer()(config, self.model, False)
        self._epoch = 0
        self.steps = len(self._train_loader)  # of an epoch

    def epoch(self) -> float:
        """Train one epoch as `Trainer.fit` does; the sum of its losses."""
        self.model.pre_epoch_processing()
        loss, _ = self._trainer._train_epoch(self._train_loader, self._epoch)
        self._trainer.lr_scheduler.step()
        self.model.post_epoch_processing()
        self._epoch += 1
        return float(loss)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the validation split: `recall@20` -> a value of 4 decimals."""
        return {name: float(value) for name, value in self._trainer.evaluate(self._valid_loader).items()}
