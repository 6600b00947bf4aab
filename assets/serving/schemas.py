"""What goes into the service and what comes out of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_ITEMS = 100  # of a list that is asked for
MOST_GIVEN = 200  # items that a new user may bring
MOST_SHOWN = 200  # of a history, or of semantic neighbours
ID_CHARACTERS = 1_000
TEXT_CHARACTERS = 4_000

RawId = Annotated[str, StringConstraints(min_length=1, max_length=ID_CHARACTERS)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=TEXT_CHARACTERS)]
User = Annotated[RawId, Field(description="Raw id of a user, as in the source data.")]
Item = Annotated[RawId, Field(description="Raw id of an item, as in the source data.")]
Count = Annotated[int, Field(ge=1, le=MOST_ITEMS, description="How many items.")]
Model = Annotated[str | None, Field(max_length=100, description="Name of a model; default: the first of `/v1/models`.")]


class Request(BaseModel):
    """What is asked for; a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class UserSearch(Request):
    prefix: str = Field("", max_length=ID_CHARACTERS, description="How the raw id starts; case counts.")
    limit: Count = 20


class UserRequest(Request):
    user: User


class ForUser(Request):
    user: User
    k: Count = 10
    model: Model = None
    explain: bool = Field(False, description="Give `why` with each item: its profile and semantic neighbours.")


class ForItems(Request):
    items: Annotated[list[Item], Field(min_length=1, max_length=MOST_GIVEN)] = Field(
        description="What the new user has; an item counts once. These items are not recommended."
    )
    k: Count = 10
    model: Model = None


class ForText(Request):
    text: Text = Field(description="What the new user likes, best in the manner of the dataset's profiles.")
    k: Count = 10
    model: Model = None


class SimilarTo(Request):
    item: Item
    k: Count = 10
    by: Literal["model", "text"] = Field(
        "model", description="`model`: cosine of the model's embeddings; `text`: of the profile texts' vectors."
    )
    model: Model = None


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    dataset: str
    models: list[str]
    users: int
    items: int
    interactions: int = Field(description="Of the training split.")


class ModelInfo(BaseModel):
    name: str
    title: str
    dimensions: int = Field(description="Of the embeddings.")
    test: dict[str, float] = Field(description="Test metric -> mean over users, as measured after the training.")


class Models(BaseModel):
    models: list[ModelInfo]


class FoundUser(BaseModel):
    user: str
    items: int = Field(description="In the training split.")


class FoundUsers(BaseModel):
    users: list[FoundUser]
    more: bool = Field(description="Whether further users start so.")


class ItemShown(BaseModel):
    item: str
    title: str | None = Field(description="None where the data has none.")


class NearItem(ItemShown):
    similarity: float = Field(description="Cosine.")


class UserNeighbour(BaseModel):
    user: str
    profile: str


class Neighbours(BaseModel):
    """Nodes beside the user in the semantic graph, in either direction; at most 200 of a kind."""

    users: list[UserNeighbour]
    items: list[ItemShown]


class UserShown(BaseModel):
    user: str
    profile: str = Field(description="Empty where no profile was written.")
    history: list[ItemShown] = Field(description="Items of the training split, at most 200.")
    history_size: int
    neighbours: Neighbours


class Why(BaseModel):
    profile: str = Field(description="Of the item; empty where none was written.")
    beside_user: bool = Field(description="Whether the semantic graph joins the item and the user.")
    beside_history: list[ItemShown] = Field(description="Items of the history that the graph joins it to.")


class Recommendation(ItemShown):
    rank: int = Field(description="From 1.")
    score: float
    reasons: list[NearItem] = Field(description="Nearest items of the history by text, at most two.")
    why: Why | None = None


class Recommendations(BaseModel):
    model: str
    recommendations: list[Recommendation] = Field(description="Best first; fewer than `k` where no more are left.")


class TextRecommendations(Recommendations):
    nearest: list[NearItem] = Field(description="The items among which the text was placed, nearest first.")


class Similar(BaseModel):
    item: ItemShown
    similar: list[NearItem] = Field(description="Most similar first.")


class Fault(BaseModel):
    field: str | None = Field(description="What is wrong; None where it is no single field.")
    value: str | None = Field(description="What was given, cut at 100 characters.")
    message: str = Field(description="What is wrong with it, and what to do.")


class Faults(BaseModel):
    errors: list[Fault]
