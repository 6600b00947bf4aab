"""The model as MLflow serves it: raw user ids in, ranked raw item ids with scores out.

MLflow copies this one file into the model's folder and runs it there, so it stands alone and needs no pickle.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from safetensors.numpy import load_file


class RankedItems(mlflow.pyfunc.PythonModel):
    """Dot products of final embeddings, the user's training items left out."""

    def load_context(self, context: Any) -> None:
        """Read embeddings, raw ids and seen items from the model's artifacts."""
        embeddings = load_file(context.artifacts["embeddings"])
        self.users, self.items = embeddings["users"], embeddings["items"]  # (M, d), (N, d)
        ids = {name: pq.read_table(context.artifacts[f"{name}_ids"])["raw_id"].to_pylist() for name in ("user", "item")}
        self.user_rows = {raw: row for row, raw in enumerate(ids["user"])}
        self.item_ids = np.array(ids["item"], dtype=object)
        seen = pq.read_table(context.artifacts["seen"])
        order = np.argsort(seen["user"].to_numpy(), kind="stable")
        self.seen_items = seen["item"].to_numpy()[order]
        counts = np.bincount(seen["user"].to_numpy(), minlength=len(self.users))
        self.seen_starts = np.concatenate([[0], np.cumsum(counts)])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Rank items for each row's `user`.

        Parameters
        ----------
        model_input
            A column `user` of raw user ids.
        params
            `k`: items per user, 20 by default.

        Returns
        -------
        pandas.DataFrame
            Columns user, rank (from 1), item, score; k rows per user, best first.
        """
        k = min(int((params or {}).get("k", 20)), len(self.item_ids))
        ranked = [self._rank(str(user), k) for user in model_input["user"]]
        return (
            pd.concat(ranked, ignore_index=True) if ranked else pd.DataFrame(columns=["user", "rank", "item", "score"])
        )

    def _rank(self, user: str, k: int) -> pd.DataFrame:
        if user not in self.user_rows:
            raise ValueError(f"user {user!r} was not in the training data")
        row = self.user_rows[user]
        scores = self.items @ self.users[row]  # (N,)
        scores[self.seen_items[self.seen_starts[row] : self.seen_starts[row + 1]]] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        best = best[np.isfinite(scores[best])]
        ranks = np.arange(1, len(best) + 1)
        return pd.DataFrame({"user": user, "rank": ranks, "item": self.item_ids[best], "score": scores[best]})


if __name__ != "assets.served_model":  # run by MLflow, not imported by the project
    mlflow.models.set_model(RankedItems())
