"""`scale serve`: every endpoint, what it refuses, and that it says what the pipeline has stored."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from numpy.testing import assert_allclose
from scipy.sparse import csr_array

from assets import home
from assets.model_groups import group_of
from assets.results import NothingThereError
from assets.serving import guard, protocol, ranking, schemas, server
from assets.serving.app import make_app
from assets.serving.catalogue import Catalogue, Ids, TrainedModel, load_catalogue, load_models
from assets.serving.endpoints import Service
from assets.serving.texts import TextEncoder
from assets.settings import dataset as load_dataset
from assets.store import stored_path
from pipeline.embeddings import EmbeddingError, embed_texts, normalised
from pipeline.embeddings.lsa import LatentSemanticEncoder
from pipeline.settings import EmbeddingSettings

USERS = ["007", "7", "a,b", "quo\"te's", "ünïcödé 用户 🧶", "a/b?c=d&e#f", "<script>alert(1)</script>", "../../etc"]
TEXTS = [
    "yarn bowl for knitting", "merino yarn for knitting socks", "circular needles for knitting", "yarn winder",
    "telephoto lens for birds", "camera lens cover", "portrait lens for a camera", "bean bag camera rest",
    "sourdough baking stone", "dough scraper for baking", "baking paper", "",
]  # fmt: skip
ITEMS = [f"0{place}" for place in range(9)] + ["it,em", "<img src=x onerror=alert(1)>", "last"]
TITLES = [*TEXTS[:10], "</script><script>alert(2)</script>", None]
LSA = EmbeddingSettings(encoder="lsa", dimensions=8)
AS_JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Ids and titles of the kind that a careless service trips over; user u has the items u and u + 1."""
    users, items = len(USERS), len(ITEMS)
    history = csr_array(np.eye(users, items, dtype=np.float32) + np.eye(users, items, 1, dtype=np.float32))
    graph = np.zeros((users + items, users + items), np.float32)
    graph[0, [1, users, users + 5]] = graph[users + 5, users + 1] = 1  # user 0: user 1, items 0 and 5; item 5: item 1
    edges = csr_array(graph)
    return Catalogue(
        dataset="hostile",
        users=Ids(USERS),
        items=Ids(ITEMS),
        titles=TITLES,
        user_profiles=[f"Profile of <b>{name}</b>" for name in USERS],
        item_profiles=TEXTS,
        history=history,
        degrees=np.bincount(history.indices, minlength=items),
        text=normalised(LatentSemanticEncoder(TEXTS, LSA).encode(TEXTS)),
        semantic=edges.maximum(edges.T).sorted_indices(),
    )


@pytest.fixture(scope="module")
def models() -> dict[str, TrainedModel]:
    rng = np.random.default_rng(5)
    made = {}
    for name in ("scale", "lightgcn"):
        users, items = (rng.standard_normal((rows, 4)).astype(np.float32) for rows in (len(USERS), len(ITEMS)))
        made[name] = TrainedModel(name, name.upper(), users, items, normalised(items), {"recall_at_20": 0.25})
    return made


@pytest.fixture(scope="module")
def encode(catalogue: Catalogue) -> TextEncoder:
    return TextEncoder(LSA, catalogue.item_profiles, catalogue.text)


@pytest.fixture
def client(catalogue, models, encode) -> TestClient:
    return TestClient(make_app(Service(catalogue, models, encode)), raise_server_exceptions=False)


def fault(response, status: int) -> dict[str, str]:
    """The one error of an answer."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert "Traceback" not in response.text
    (error,) = response.json()["errors"]
    assert set(error) == {"field", "value", "message"}
    return error


# ------------------------------------------------------------------------------------------------- what is answered


def test_health_and_models(client):
    about = client.get("/v1/health").json()
    assert about == {
        "status": "ok", "dataset": "hostile", "models": ["scale", "lightgcn"], "users": 8, "items": 12,
        "interactions": 16,
    }  # fmt: skip
    first, second = client.get("/v1/models").json()["models"]
    assert first == {"name": "scale", "title": "SCALE", "dimensions": 4, "test": {"recall_at_20": 0.25}}
    assert second["name"] == "lightgcn"


@pytest.mark.parametrize("user", USERS)
def test_ids_go_in_and_come_out_as_they_are(client, catalogue, models, user):
    row = USERS.index(user)
    shown = client.get("/v1/user", params={"user": user}).json()
    assert shown["user"] == user
    assert shown["profile"] == f"Profile of <b>{user}</b>"
    assert [each["item"] for each in shown["history"]] == [ITEMS[row], ITEMS[row + 1]]
    assert shown["history_size"] == 2
    (found,) = (
        each for each in client.get("/v1/users", params={"prefix": user}).json()["users"] if each["user"] == user
    )
    assert found == {"user": user, "items": 2}
    scores = models["lightgcn"].items @ models["lightgcn"].users[row]
    scores[[row, row + 1]] = -np.inf
    answer = client.get("/v1/recommendations", params={"user": user, "k": 100, "model": "lightgcn"}).json()
    assert answer["model"] == "lightgcn"
    assert [each["item"] for each in answer["recommendations"]] == [ITEMS[item] for item in np.argsort(-scores)[:10]]
    assert [each["rank"] for each in answer["recommendations"]] == list(range(1, 11))
    assert [each["score"] for each in answer["recommendations"]] == pytest.approx(np.sort(scores)[:1:-1])


def test_users_are_found_by_how_they_start(client):
    def found(**query):
        answer = client.get("/v1/users", params=query).json()
        return [each["user"] for each in answer["users"]], answer["more"]

    assert found(prefix="a") == (["a,b", "a/b?c=d&e#f"], False)
    assert found(prefix="a", limit=1) == (["a,b"], True)
    assert found() == (sorted(USERS), False)
    assert found(prefix="A") == ([], False)


def test_semantic_neighbours_are_told_in_both_directions(client):
    first, second = (client.get("/v1/user", params={"user": user}).json()["neighbours"] for user in USERS[:2])
    assert [near["user"] for near in first["users"]] == ["7"]
    assert [near["item"] for near in first["items"]] == [ITEMS[0], ITEMS[5]]
    assert [near["user"] for near in second["users"]] == ["007"]
    assert second["items"] == []


def test_reasons_are_the_nearest_items_of_the_history_by_text(client, catalogue):
    answer = client.get("/v1/recommendations", params={"user": "007", "k": 10, "explain": True}).json()
    for each in answer["recommendations"]:
        item = ITEMS.index(each["item"])
        cosines = sorted(((catalogue.text[own] @ catalogue.text[item], own) for own in (0, 1)), reverse=True)
        expected = [(ITEMS[own], pytest.approx(cosine)) for cosine, own in cosines if cosine >= 0.1]
        assert [(reason["item"], reason["similarity"]) for reason in each["reasons"]] == expected
        assert each["why"]["profile"] == TEXTS[item]
        assert each["why"]["beside_user"] == (item == 5)
        assert each["why"]["beside_history"] == ([{"item": "01", "title": TITLES[1]}] if item == 5 else [])
    seventh = client.get("/v1/recommendations", params={"user": "7", "k": 10}).json()["recommendations"]
    assert all(each["why"] is None for each in seventh)
    assert any(each["reasons"] for each in seventh)


def test_a_new_user_by_items_is_one_propagation_step(client, catalogue, models):
    items, given = models["scale"].items, [3, 9, 10]
    user = sum(items[item] / np.sqrt(3 * (catalogue.degrees[item] + 1)) for item in given)
    scores = items @ user
    scores[given] = -np.inf
    for asked in ([ITEMS[item] for item in given], [ITEMS[item] for item in (10, 3, 9, 3)]):
        answer = client.post("/v1/recommendations/items", json={"items": asked, "k": 5}).json()
        assert answer["model"] == "scale"
        assert [each["item"] for each in answer["recommendations"]] == [ITEMS[item] for item in np.argsort(-scores)[:5]]
        assert [each["score"] for each in answer["recommendations"]] == pytest.approx(
            np.sort(scores)[::-1][:5], rel=1e-5
        )
    reasons = {reason["item"] for each in answer["recommendations"] for reason in each["reasons"]}
    assert reasons <= {ITEMS[item] for item in given}


def test_a_new_user_by_a_text_is_the_mean_of_the_nearest_items(client, catalogue, models, encode):
    answer = client.post("/v1/recommendations/text", json={"text": " yarn for knitting ", "k": 4}).json()
    cosines = catalogue.text @ encode("yarn for knitting")
    near = [item for item in np.argsort(-cosines) if cosines[item] > 0]
    assert [each["item"] for each in answer["nearest"]] == [ITEMS[item] for item in near]
    assert {TEXTS[item] for item in near[:4]} == set(TEXTS[:4])
    user = cosines[near] @ models["scale"].items[near] / cosines[near].sum()
    best = np.argsort(-(models["scale"].items @ user))[:4]
    assert [each["item"] for each in answer["recommendations"]] == [ITEMS[item] for item in best]
    assert all(reason["item"] != each["item"] for each in answer["recommendations"] for reason in each["reasons"])


def test_similar_items_leave_the_item_out(client, catalogue, models):
    for by, vectors in (("model", models["lightgcn"].directions), ("text", catalogue.text)):
        query = {"item": "it,em", "by": by, "k": 3, "model": "lightgcn"}
        answer = client.get("/v1/similar-items", params=query).json()
        cosines = vectors @ vectors[9]
        cosines[9] = -np.inf
        assert answer["item"] == {"item": "it,em", "title": TITLES[9]}
        expected = pytest.approx(np.sort(cosines)[::-1][:3], abs=1e-6)
        assert [each["similarity"] for each in answer["similar"]] == expected


def test_equal_items_score_equally_and_the_first_comes_first(catalogue, models):
    rng = np.random.default_rng(0)
    row = rng.standard_normal(64).astype(np.float32)
    alike = np.tile(row, (1001, 1))
    best, scores = ranking.similar(alike, 0, 1000)
    assert best.tolist() == list(range(1, 1001))
    assert len(set(scores.tolist())) == 1


def test_metrics_count_requests_errors_and_latencies(client):
    for query in ({"user": "007"}, {"user": "007"}, {"user": "nobody"}, {"user": "007", "k": 0}):
        client.get("/v1/recommendations", params=query)
    client.get("/v1/nothing")
    text = client.get("/v1/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    endpoint = 'endpoint="/v1/recommendations"'
    assert samples[f'scale_requests_total{{{endpoint},status="200"}}'] == "2"
    assert samples[f'scale_requests_total{{{endpoint},status="404"}}'] == "1"
    assert samples['scale_requests_total{endpoint="other",status="404"}'] == "1"
    assert samples[f"scale_errors_total{{{endpoint}}}"] == "2"
    buckets = [
        float(value) for name, value in samples.items() if name.startswith(f"scale_request_seconds_bucket{{{endpoint}")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == float(samples[f"scale_request_seconds_count{{{endpoint}}}"]) == 4
    assert float(samples[f"scale_request_seconds_sum{{{endpoint}}}"]) > 0


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "query", "status", "field", "value", "message"),
    [
        ("recommendations", {"user": "nobody"}, 404, "user", "nobody", "no such user"),
        ("recommendations", {"user": "07"}, 404, "user", "07", "every character counts"),
        ("recommendations", {"user": "7", "model": "bpr"}, 404, "model", "bpr", "there are: scale, lightgcn"),
        ("recommendations", {"user": "7", "k": 101}, 422, "k", "101", "less than or equal to 100"),
        ("recommendations", {"user": "7", "k": 0}, 422, "k", "0", "greater than or equal to 1"),
        ("recommendations", {"user": "7", "k": "many"}, 422, "k", "many", "valid integer"),
        ("recommendations", {"user": "7", "explian": 1}, 422, "explian", "1", "did you mean explain?"),
        ("recommendations", {}, 422, "user", None, "user is missing"),
        ("recommendations", {"user": "u" * 1001}, 422, "user", "u" * 100, "at most 1000 characters"),
        ("user", {"user": ""}, 422, "user", "", "at least 1 character"),
        ("users", {"limit": 101}, 422, "limit", "101", "less than or equal to 100"),
        ("similar-items", {"item": "nothing"}, 404, "item", "nothing", "no such item"),
        ("similar-items", {"item": "00", "by": "taste"}, 422, "by", "taste", "'model' or 'text'"),
        ("nothing", {}, 404, "path", "GET /v1/nothing", "/v1/openapi.json"),
        ("recommendations/text", {}, 405, "path", "GET /v1/recommendations/text", "method"),
    ],
)
def test_a_wrong_query_is_told_by_field_value_and_remedy(client, path, query, status, field, value, message):
    error = fault(client.get(f"/v1/{path}", params=query), status)
    assert (error["field"], error["value"]) == (field, value)
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "message"),
    [
        ("items", '{"items": ["00", "no such"]}', 404, "items.1", "no such item"),
        ("items", '{"items": []}', 422, "items", "at least 1 item"),
        ("items", json.dumps({"items": ["00"] * 201}), 422, "items", "at most 200 items"),
        ("items", '{"items": [1]}', 422, "items.0", "valid string"),
        ("items", '{"items": ["00"], "itmes": 1}', 422, "itmes", "did you mean items?"),
        ("items", "[]", 422, "body", "valid dictionary"),
        ("items", "{", 422, "body", "no JSON"),
        ("items", "", 422, "body", "missing"),
        ("text", '{"text": "   "}', 422, "text", "at least 1 character"),
        ("text", json.dumps({"text": "a" * 4001}), 422, "text", "at most 4000 characters"),
        ("text", '{"text": "\\ud800"}', 422, "text", "unicode"),
        ("items", b'{"items": ["\xff"]}', 400, "body", "no JSON in UTF-8"),
        ("text", '{"text": "xyzzy"}', 404, "text", "nothing in this text is like the items' texts"),
        ("text", '{"text": "yarn", "k": NaN}', 422, "k", "finite"),
        ("text", json.dumps({"text": "a" * guard.BODY_BYTES}), 413, "body", "65,536 bytes"),
    ],
)
def test_a_wrong_body_is_told_by_field_and_remedy(client, path, body, status, field, message):
    error = fault(client.post(f"/v1/recommendations/{path}", content=body, headers=AS_JSON), status)
    assert error["field"] == field
    assert message in error["message"]


def test_a_long_body_in_pieces_is_refused_too(client):
    pieces = (b" " * 1024 for _ in range(100))
    assert fault(client.post("/v1/recommendations/text", content=pieces, headers=AS_JSON), 413)["field"] == "body"


def test_a_failure_inside_is_one_line_outside_and_a_traceback_in_the_log(catalogue, models, encode, caplog):
    broken = TrainedModel("scale", "SCALE", models["scale"].users[:, :2], *[models["scale"].items] * 2, test={})
    client = TestClient(make_app(Service(catalogue, {"scale": broken}, encode)), raise_server_exceptions=False)
    error = fault(client.get("/v1/recommendations", params={"user": "7"}), 500)
    assert error["message"] == "the service failed at this request; its log says why"
    assert "Traceback" in caplog.text
    assert 'status="500"} 1' in client.get("/v1/metrics").text


def test_an_encoder_that_cannot_be_used_is_told(catalogue, models):
    other = TextEncoder(LSA.model_copy(update={"dimensions": 4}), catalogue.item_profiles, catalogue.text)
    client = TestClient(make_app(Service(catalogue, models, other)), raise_server_exceptions=False)
    error = fault(client.post("/v1/recommendations/text", json={"text": "yarn"}), 503)
    assert "another encoder than the one that made its item vectors" in error["message"]
    assert not other.is_quick
    blank = TextEncoder(LSA, [""] * 12, np.zeros_like(catalogue.text))
    with pytest.raises(EmbeddingError, match="no item of this dataset has a text"):
        blank("yarn")


def test_a_text_is_as_well_placed_on_a_thread_as_without_one(catalogue, models):
    """LSA learns its space on a thread; after that a thread would take longer than the text."""
    encode = TextEncoder(LSA, catalogue.item_profiles, catalogue.text)
    client, asked = TestClient(make_app(Service(catalogue, models, encode))), {"text": "yarn for knitting", "k": 4}
    assert not encode.is_quick
    first = client.post("/v1/recommendations/text", json=asked).json()
    assert encode.is_quick
    assert client.post("/v1/recommendations/text", json=asked).json() == first


@pytest.mark.skipif("SCALE_TEST_ENCODER" not in os.environ, reason="the extra `dev` brings an encoder")
def test_a_sentence_encoder_places_a_text_where_the_pipeline_would(tmp_path):
    chosen = EmbeddingSettings(model=os.environ["SCALE_TEST_ENCODER"], device="cpu")
    stored = embed_texts(TEXTS, chosen, TEXTS, tmp_path, "items").vectors
    encode = TextEncoder(chosen, TEXTS, stored)
    for text, vector in zip(TEXTS[:3], stored, strict=False):
        assert_allclose(encode(text), vector, atol=1e-6)  # another batch, so other last bits
    assert not encode.is_quick
    assert int(np.argmax(stored @ encode("I knit with needles that are round"))) == 2
    with pytest.raises(EmbeddingError, match="another encoder"):
        TextEncoder(chosen, TEXTS, np.roll(stored, 1, axis=0))("yarn")


def test_a_token_is_asked_for_where_there_is_one(catalogue, models, encode):
    client = TestClient(make_app(Service(catalogue, models, encode), token="s3cret"))
    for path in ("/v1/models", "/v1/user?user=7", "/v1/metrics", "/v1/openapi.json", "/v1/nothing"):
        for credentials in (None, "s3cret", "Basic s3cret", "Bearer s3cre", "Bearer s3cret2", "Bearer ", "Bearer §"):
            headers = {} if credentials is None else {"authorization": credentials.encode()}
            answer = client.get(path, headers=headers)
            assert fault(answer, 401)["field"] == "Authorization"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "s3cre" not in answer.text
        assert client.get(path, headers={"authorization": "bearer s3cret"}).status_code != 401
    assert client.get("/").status_code == client.get("/v1/health").status_code == 200


def test_a_service_on_this_machine_answers_to_its_own_names_only(catalogue, models, encode):
    client = TestClient(make_app(Service(catalogue, models, encode), hosts=server.LOOPBACK_NAMES))
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert client.get("/v1/health", headers={"host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1@evil.example", "[::1", ""):
        assert fault(client.get("/v1/health", headers={"host": host}), 400)["field"] == "Host"


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_holds_no_data_asks_nobody_else_and_writes_data_as_text_only(client):
    answer = client.get("/")
    page, policy = answer.text, answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}';", policy)
    assert not any(name in page for name in (*USERS[2:], "hostile"))
    addresses = set(re.findall(r"""(?:https?:)?//[\w.]+[^\s"'`]*""", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    for way_in in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc", " style="):
        assert way_in not in page
    assert not re.search(r"<[^>]+\son\w+=", page)
    assert '<html lang="en">' in page
    for landmark in ("<header>", "<nav ", "<main ", 'class="skip"', ":focus-visible"):
        assert landmark in page
    fields = set(re.findall(r'<(?:input|textarea|select) id="(\w+)"', page))
    assert fields == set(re.findall(r'<label for="(\w+)"', page))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="install chromium to see the page in a browser")
def test_a_browser_shows_hostile_ids_and_titles_as_text(catalogue, models, encode, tmp_path):
    service = server.uvicorn.Server(
        server.uvicorn.Config(make_app(Service(catalogue, models, encode)), port=0, log_level="warning")
    )
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        while not service.started:
            thread.join(0.05)
            assert thread.is_alive()
        (port,) = (each.getsockname()[1] for each in service.servers[0].sockets)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        address = f"http://127.0.0.1:{port}/#user=%3Cscript%3Ealert(1)%3C%2Fscript%3E"
        command = ["chromium", *options, "--virtual-time-budget=10000", "--dump-dom", address]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        service.should_exit = True
        thread.join()
    assert '<span class="id">&lt;script&gt;alert(1)&lt;/script&gt;</span>' in shown
    assert '<span class="id">&lt;img src=x onerror=alert(1)&gt;</span>' in shown
    assert '<span class="title">&lt;/script&gt;&lt;script&gt;alert(2)&lt;/script&gt;</span>' in shown
    assert "<img" not in shown
    assert shown.count("<script>") == 1  # the page's own


def test_answers_cannot_be_taken_for_a_page(client):
    for path in ("/v1/user?user=%3Cscript%3Ealert(1)%3C/script%3E", "/v1/user?user=%3Cb%3E", "/%3Cscript%3E"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


# ------------------------------------------------------------------------------------------------- its description


def test_the_description_states_limits_and_errors(client):
    described = client.get("/v1/openapi.json").json()
    assert set(described["paths"]) == {
        f"/v1/{name}"
        for name in (
            "health", "metrics", "models", "users", "user", "recommendations", "recommendations/items",
            "recommendations/text", "similar-items",
        )
    }  # fmt: skip
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert {"401", "422"} <= set(operation["responses"])
            assert all(parameter["description"] for parameter in operation.get("parameters", []))
    k = next(each for each in described["paths"]["/v1/recommendations"]["get"]["parameters"] if each["name"] == "k")
    assert (k["schema"]["minimum"], k["schema"]["maximum"]) == (1, schemas.MOST_ITEMS)
    assert described["components"]["schemas"]["ForItems"]["properties"]["items"]["maxItems"] == schemas.MOST_GIVEN


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_every_endpoint_keeps_to_its_description(catalogue, models, encode, mode):
    described = schemathesis.openapi.from_asgi("/v1/openapi.json", make_app(Service(catalogue, models, encode)))
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:
        if mode == schemathesis.GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # takes nothing that could be wrong

        @settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate()

        check()


# ------------------------------------------------------------------------------------------------- what is stored


def loaded(pipeline, names: list[str] | None = None) -> tuple[Catalogue, dict[str, TrainedModel]]:
    catalogue = load_catalogue("tiny")
    return catalogue, load_models(pipeline.instance, catalogue, names)


@pytest.mark.parametrize("model", ["scale", "lightgcn", "bpr"])
def test_what_is_served_equals_the_stored_recommendations(finished, model):
    catalogue, models = loaded(finished)
    assert list(models) == ["scale", "bpr", "lightgcn"]
    embeddings = load_dataset("tiny").embeddings
    encode = TextEncoder(embeddings, catalogue.item_profiles, catalogue.text)
    client = TestClient(make_app(Service(catalogue, models, encode)))
    stored = pl.read_parquet(stored_path(group_of(model).key("recommendations"), f"tiny|{model}"))
    names = {raw: title or raw for raw, title in zip(catalogue.items.raw, catalogue.titles, strict=True)}
    users, close = set(), 0
    for (user,), table in stored.sort("rank").group_by("user_raw_id"):
        users.add(user)
        answer = client.get("/v1/recommendations", params={"user": user, "k": 21, "model": model}).json()
        scores = np.array([np.inf, *(each["score"] for each in answer["recommendations"])])
        # Both sum in an order of their own: scores this close may change places.
        apart = -np.diff(scores) > 1e-6 * np.abs(scores[1:])
        rows = zip(table.iter_rows(named=True), answer["recommendations"][:20], apart[:-1] & apart[1:], strict=True)
        for row, served, is_apart in rows:
            assert (served["rank"], served["score"]) == (row["rank"], pytest.approx(row["score"], rel=1e-5, abs=1e-6))
            if is_apart:
                assert (served["item"], served["title"]) == (row["item_raw_id"], row["title"])
                assert [names[reason["item"]] for reason in served["reasons"]] == row["reasons"]
            close += not is_apart
    assert users == set(catalogue.users.raw)
    assert close < 0.01 * stored.height
    own = catalogue.item_profiles[0]
    answer = client.post("/v1/recommendations/text", json={"text": own, "k": 5, "model": model}).json()
    assert answer["nearest"][0] == {
        "item": catalogue.items.raw[0], "title": catalogue.titles[0], "similarity": pytest.approx(1, abs=1e-5),
    }  # fmt: skip


def test_the_graph_and_profiles_are_those_of_the_pipeline(finished):
    catalogue, _ = loaded(finished, ["bpr"])
    stored = pl.read_parquet(stored_path(dg.AssetKey("semantic_graph"), "tiny"))
    mine = {
        frozenset((row, column))
        for row in range(catalogue.semantic.shape[0])
        for column in catalogue.semantic.indices[catalogue.semantic.indptr[row] : catalogue.semantic.indptr[row + 1]]
    }
    assert mine == {frozenset(edge) for edge in stored.select("row", "column").iter_rows()}
    assert all(catalogue.user_profiles)


def test_what_is_not_there_is_told(finished, open_pipeline, tmp_path):
    with pytest.raises(NothingThereError, match="vbpr is not trained on tiny; train it with: scale run"):
        loaded(finished, ["vbpr"])
    with pytest.raises(ValueError, match="did you mean lightgcn"):
        loaded(finished, ["lightgnc"])
    with (
        open_pipeline(tmp_path),
        pytest.raises(NothingThereError, match="tiny has no users yet; start with: scale run"),
    ):
        load_catalogue("tiny")


def test_a_model_of_other_users_or_items_is_refused(built, open_pipeline, tmp_path):
    copied = Path(shutil.copytree(built, tmp_path / "copied"))
    with open_pipeline(copied) as pipeline:
        assert set(load_models(pipeline.instance, load_catalogue("tiny"))) == {"scale", "lightgcn", "bpr"}
        pipeline.run("tiny", ["lightgcn"], interactions__core=6)  # leaves what else there is to the users of before
        with pytest.raises(NothingThereError, match="semantic_graph of tiny has 208 rows where there are 202"):
            load_catalogue("tiny")
        for asset in ("semantic_graph", "user_profiles"):
            stored_path(dg.AssetKey(asset), "tiny").unlink()
        catalogue = load_catalogue("tiny")
        assert catalogue.semantic is None
        assert not any(catalogue.user_profiles)
        assert set(load_models(pipeline.instance, catalogue, ["lightgcn"])) == {"lightgcn"}
        with pytest.raises(NothingThereError, match="bpr was trained on other users or items than tiny has now"):
            load_models(pipeline.instance, catalogue, ["bpr"])
        for model in ("lightgcn", "bpr", "scale"):
            stored_path(group_of(model).key("trained_model"), f"tiny|{model}").unlink()
        with pytest.raises(NothingThereError, match="no model is trained on tiny yet; train one with: scale run"):
            load_models(pipeline.instance, catalogue)


# ------------------------------------------------------------------------------------------------- the command


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(home.TOKEN_VARIABLE, raising=False)
    assert server.read_token(None) is None
    monkeypatch.setenv(home.TOKEN_VARIABLE, "from-outside")
    assert server.read_token(None) == "from-outside"
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    assert server.read_token(file) == "from-a-file"
    for content, message in (
        ("\n", "holds no token"),
        ("two words", "printable ASCII"),
        ("schlüssel", "printable ASCII"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            server.read_token(file)
    with pytest.raises(ValueError, match="the token cannot be read"):
        server.read_token(tmp_path / "nothing")


def test_an_address_that_cannot_be_taken_is_told(finished):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            RuntimeError, match=f"127.0.0.1:{port} cannot be taken: Address already in use.*--port {port + 1}"
        ):
            server.serve("tiny", None, "127.0.0.1", port, None)
    with pytest.raises(RuntimeError, match=r"--host no\.such\.host\.invalid: there is no such address"):
        server.serve("tiny", None, "no.such.host.invalid", 0, None)


@pytest.fixture
def address(catalogue, models, encode, monkeypatch) -> Iterator[tuple[str, int]]:
    """Where the service listens, with a token and half a second for a request."""
    monkeypatch.setattr(protocol, "REQUEST_SECONDS", 0.5)
    running = server.uvicorn.Server(server.bounded(make_app(Service(catalogue, models, encode), token="s3cret")))
    with contextlib.closing(server._bound("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=running.run, args=([bound],))
        thread.start()
        yield bound.getsockname()
        running.should_exit = True
        thread.join()


def said(connection: socket.socket) -> bytes:
    """All that the service sends until it closes the connection, waited for 10 s at most."""
    connection.settimeout(10)
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # it closed while there was more to be read; what came counts
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "start",
    [
        "GET /v1/models HTTP/1.1\r\nhost: here\r\nx: ",
        "GET /",
        "POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
    ],
    ids=["header", "path", "trailer"],
)
def test_a_head_without_end_is_cut_off(address, start, monkeypatch):
    monkeypatch.setattr(protocol, "REQUEST_SECONDS", 60.0)
    sent, most = 0, 20 * 2**20  # of what is sent, the buffers of both sockets take a part
    with socket.create_connection(address, timeout=10) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(start.encode())
        while sent < most:
            sent += connection.send(b"a" * 65536)
    assert sent < most


def test_a_head_that_is_too_long_is_refused(address):
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * protocol.HEAD_BYTES)
        head, _, body = said(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert "more than 65,536 bytes" in json.loads(body)["errors"][0]["message"]


@pytest.mark.parametrize(
    ("first", "drip", "status"),
    [
        ("", "", 408),
        ("", "\r\n" * 25, 408),
        ("GET / HT", "", 408),
        ("GET / HTTP/1.1\r\n", "x: y\r\n" * 10, 408),
        ("POST /v1/health HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\n\r\n", "a" * 50, 408),
        ("POST /v1/user HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\n\r\n", "a" * 50, 401),
        ("POST /v1/user HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n", "abc", 401),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET", "", 200),
    ],
    ids=[
        "nothing",
        "empty lines",
        "start",
        "headers",
        "body",
        "body without token",
        "late body without token",
        "second",
    ],
)
def test_a_request_that_takes_too_long_is_refused(address, first, drip, status):
    with socket.create_connection(address) as connection:
        started = time.monotonic()
        connection.sendall(first.encode())

        def dripping() -> None:
            with contextlib.suppress(OSError):
                for character in drip:
                    time.sleep(0.1)
                    connection.sendall(character.encode())

        thread = threading.Thread(target=dripping)
        thread.start()
        answer = said(connection)
        seconds = time.monotonic() - started
        thread.join()
    assert seconds < 4  # uvicorn's own wait for a next request is 5 s
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    if status == 408:
        assert b"had not come after 0.5 s" in answer


def test_requests_one_after_another_and_a_long_body_are_no_long_head(address):
    request = b"POST /v1/recommendations/text HTTP/1.1\r\nhost: a\r\nauthorization: Bearer s3cret\r\ncontent-length: "
    text = json.dumps({"text": "yarn" + " " * (guard.BODY_BYTES - 20)}).encode()
    with socket.create_connection(address) as connection:
        reading = connection.makefile("rb")
        for _ in range(3):
            connection.sendall(request + str(len(text)).encode() + b"\r\n\r\n" + text)
            assert reading.readline() == b"HTTP/1.1 422 Unprocessable Entity\r\n"  # more than 4,000 characters
            lengths = [line for line in iter(reading.readline, b"\r\n") if line.startswith(b"content-length")]
            reading.read(int(lengths[0].split(b":")[1]))


def test_a_connection_too_many_is_told_so(address):
    with contextlib.ExitStack() as opened:
        for _ in range(server.CONNECTIONS):
            connection = opened.enter_context(socket.create_connection(address))
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert said(connection).startswith(b"HTTP/1.1 503 ")


def test_the_bounds_are_those_of_the_docs():
    text = " ".join((home.PROJECT / "docs" / "serving.md").read_text().split())
    assert f"A request has {protocol.REQUEST_SECONDS:g} seconds to come" in text
    assert protocol.HEAD_BYTES == guard.BODY_BYTES
    assert f"may have {guard.BODY_BYTES // 1024} KiB each" in text
    assert f"While {server.CONNECTIONS} connections are open" in text
    assert f"`k` may go up to {schemas.MOST_ITEMS}" in text


def test_a_service_starts_answers_and_stops(finished, monkeypatch, capsys):
    import httpx

    started: list[server.uvicorn.Server] = []
    original = server.uvicorn.Server.run

    def run(self, sockets):
        started.append(self)
        return original(self, sockets)

    monkeypatch.setattr(server.uvicorn.Server, "run", run)
    monkeypatch.delenv(home.TOKEN_VARIABLE, raising=False)
    thread = threading.Thread(target=server.serve, args=("tiny", ["bpr"], "127.0.0.1", 0, None))
    thread.start()
    try:
        for _ in range(600):
            if started and started[0].started:
                break
            thread.join(0.05)
        (address,) = re.findall(r"http://\S+", capsys.readouterr().out)
        answer = httpx.get(f"{address}/v1/health").json()
    finally:
        started[0].should_exit = True
        thread.join()
    assert answer["models"] == ["bpr"]
    assert started[0].config.http is protocol.BoundedProtocol
