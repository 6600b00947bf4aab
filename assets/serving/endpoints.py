"""The endpoints over a catalogue and its models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query

from assets.serving import ranking, schemas
from assets.serving.catalogue import Catalogue, TrainedModel
from assets.serving.texts import TextEncoder
from assets.serving.views import Views
from pipeline.embeddings import EmbeddingError

Responses = dict[int | str, dict[str, Any]]
UNKNOWN: Responses = {
    404: {"model": schemas.Faults, "description": "No such user, item or model, or nothing like a text."}
}
TEXTLESS: Responses = {503: {"model": schemas.Faults, "description": "The dataset's encoder cannot be used."}}


class RequestError(Exception):
    """A request that cannot be answered, with what is told about it."""

    def __init__(self, status: int, field: str, value: str, message: str) -> None:
        super().__init__(message)
        self.status, self.field, self.value, self.message = status, field, value, message


@dataclass(frozen=True)
class Service:
    """What the endpoints answer from, looked up by what a request names.

    Parameters
    ----------
    models
        By name; the first is the default.
    """

    catalogue: Catalogue
    models: Mapping[str, TrainedModel]
    encode: TextEncoder

    @property
    def views(self) -> Views:
        return Views(self.catalogue)

    def model(self, name: str | None) -> TrainedModel:
        """A model by name, or the default."""
        name = next(iter(self.models)) if name is None else name
        if name not in self.models:
            raise RequestError(404, "model", name, f"no such model is served; there are: {', '.join(self.models)}")
        return self.models[name]

    def user(self, raw: str) -> int:
        """Row of a user."""
        return _row(self.catalogue.users.rows, "user", "user", raw)

    def item(self, raw: str, field: str) -> int:
        """Row of an item, which is told by `field` where there is none."""
        return _row(self.catalogue.items.rows, "item", field, raw)


def _row(rows: Mapping[str, int], kind: str, field: str, raw: str) -> int:
    if raw not in rows:
        raise RequestError(
            404, field, raw, f"the dataset has no such {kind} after its core filter; ids are the source data's own, "
            "every character counts"
        )  # fmt: skip
    return rows[raw]


def looking(service: Service) -> APIRouter:
    """Endpoints that tell what there is."""
    router, catalogue = APIRouter(), service.catalogue

    @router.get("/v1/health", summary="Is it up, and what does it serve?")
    async def health() -> schemas.Health:
        return schemas.Health(
            dataset=catalogue.dataset,
            models=list(service.models),
            users=len(catalogue.users),
            items=len(catalogue.items),
            interactions=catalogue.history.nnz,
        )

    @router.get("/v1/models", summary="Models that are served, the default first")
    async def served() -> schemas.Models:
        return schemas.Models(models=[service.views.model(model) for model in service.models.values()])

    @router.get("/v1/users", summary="Users whose raw id starts so")
    async def users(request: Annotated[schemas.UserSearch, Query()]) -> schemas.FoundUsers:
        return service.views.found(request.prefix, request.limit)

    @router.get("/v1/user", summary="A user's profile, history and semantic neighbours", responses=UNKNOWN)
    async def user(request: Annotated[schemas.UserRequest, Query()]) -> schemas.UserShown:
        return service.views.user(service.user(request.user))

    return router


def recommending(service: Service) -> APIRouter:
    """Endpoints that rank items."""
    router, catalogue = APIRouter(), service.catalogue
    # A model's tokenizer is not made for threads, and the more there are, the longer everybody else waits for a turn.
    one_at_a_time = CapacityLimiter(1)

    @router.get("/v1/recommendations", summary="Items for a user of the dataset", responses=UNKNOWN)
    async def for_user(request: Annotated[schemas.ForUser, Query()]) -> schemas.Recommendations:
        """Nothing of the user's training split is recommended."""
        row, model = service.user(request.user), service.model(request.model)
        ranked = ranking.for_user(catalogue, model, row, request.k)
        shown = service.views.recommendations(ranked, row if request.explain else None)
        return schemas.Recommendations(model=model.name, recommendations=shown)

    @router.post("/v1/recommendations/items", summary="Items for a new user, from items", responses=UNKNOWN)
    async def for_items(request: schemas.ForItems) -> schemas.Recommendations:
        """The new user's embedding is one LightGCN-style propagation step from the items that are given."""
        rows = [service.item(raw, f"items.{place}") for place, raw in enumerate(request.items)]
        model = service.model(request.model)
        ranked = ranking.for_items(catalogue, model, rows, request.k)
        return schemas.Recommendations(model=model.name, recommendations=service.views.recommendations(ranked))

    @router.post("/v1/recommendations/text", summary="Items for a new user, from a text", responses=UNKNOWN | TEXTLESS)
    async def for_text(request: schemas.ForText) -> schemas.TextRecommendations:
        """The text is placed among the items by their texts; the nearest items' embeddings are averaged by cosine."""
        model = service.model(request.model)
        try:
            if service.encode.is_quick:
                vector = service.encode(request.text)
            else:
                vector = await to_thread.run_sync(service.encode, request.text, limiter=one_at_a_time)
        except EmbeddingError as error:
            raise RequestError(503, "text", request.text, str(error)) from error
        ranked, nearest, cosines = ranking.for_text(catalogue, model, vector, request.k)
        if not len(nearest):
            told = "nothing in this text is like the items' texts; use words of their titles and descriptions"
            raise RequestError(404, "text", request.text, told)
        return schemas.TextRecommendations(
            model=model.name,
            recommendations=service.views.recommendations(ranked),
            nearest=service.views.near(nearest, cosines),
        )

    @router.get("/v1/similar-items", summary="Items like an item", responses=UNKNOWN)
    async def similar(request: Annotated[schemas.SimilarTo, Query()]) -> schemas.Similar:
        row, model = service.item(request.item, "item"), service.model(request.model)
        vectors = model.directions if request.by == "model" else catalogue.text
        return schemas.Similar(
            item=service.views.item(row), similar=service.views.near(*ranking.similar(vectors, row, request.k))
        )

    return router
