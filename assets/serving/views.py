"""Rows of the catalogue as what the service answers."""

import numpy as np

from assets.serving import schemas
from assets.serving.catalogue import Catalogue, TrainedModel
from assets.serving.ranking import Ranked


class Views:
    """Raw ids, titles and texts in the place of rows."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def model(self, model: TrainedModel) -> schemas.ModelInfo:
        """What is told of a model."""
        return schemas.ModelInfo(name=model.name, title=model.title, dimensions=model.items.shape[1], test=model.test)

    def found(self, prefix: str, limit: int) -> schemas.FoundUsers:
        """Users whose raw id starts with `prefix`."""
        found = self.catalogue.users.starting_with(prefix, limit + 1)
        rows = self.catalogue.users.rows
        users = [schemas.FoundUser(user=raw, items=len(self.catalogue.history_of(rows[raw]))) for raw in found[:limit]]
        return schemas.FoundUsers(users=users, more=len(found) > limit)

    def user(self, row: int) -> schemas.UserShown:
        """A user's profile, history and semantic neighbours."""
        catalogue = self.catalogue
        history = catalogue.history_of(row)
        users, items = (part[: schemas.MOST_SHOWN] for part in catalogue.neighbours(row))
        neighbours = schemas.Neighbours(
            users=[
                schemas.UserNeighbour(user=catalogue.users.raw[near], profile=catalogue.user_profiles[near])
                for near in users
            ],
            items=[self.item(item) for item in items],
        )
        return schemas.UserShown(
            user=catalogue.users.raw[row],
            profile=catalogue.user_profiles[row],
            history=[self.item(item) for item in history[: schemas.MOST_SHOWN]],
            history_size=len(history),
            neighbours=neighbours,
        )

    def item(self, row: int) -> schemas.ItemShown:
        """An item's id and title."""
        return schemas.ItemShown(item=self.catalogue.items.raw[row], title=self.catalogue.titles[row])

    def near(self, rows: np.ndarray, cosines: np.ndarray) -> list[schemas.NearItem]:
        """Items with their similarity to something."""
        ids, titles = self.catalogue.items.raw, self.catalogue.titles
        pairs = zip(rows.tolist(), cosines.tolist(), strict=True)
        return [schemas.NearItem(item=ids[row], title=titles[row], similarity=cosine) for row, cosine in pairs]

    def recommendations(self, ranked: Ranked, user: int | None = None) -> list[schemas.Recommendation]:
        """Ranked items with their reasons; for a known `user`, with profile and semantic neighbours of each item."""
        ids, titles = self.catalogue.items.raw, self.catalogue.titles
        shown = []
        for place, (item, score) in enumerate(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True)):
            reasons = ranked.reasons[place]
            reasons = reasons[(reasons >= 0) & (reasons != item)]  # a text may be answered with an item that is near it
            shown.append(
                schemas.Recommendation(
                    rank=place + 1,
                    item=ids[item],
                    title=titles[item],
                    score=score,
                    reasons=self.near(reasons, self.catalogue.text[reasons] @ self.catalogue.text[item]),
                    why=None if user is None else self._why(user, item),
                )
            )
        return shown

    def _why(self, user: int, item: int) -> schemas.Why:
        users, items = self.catalogue.neighbours(len(self.catalogue.users) + item)
        shared = np.intersect1d(items, self.catalogue.history_of(user), assume_unique=True)
        return schemas.Why(
            profile=self.catalogue.item_profiles[item],
            beside_user=user in users,
            beside_history=[self.item(row) for row in shared],
        )
