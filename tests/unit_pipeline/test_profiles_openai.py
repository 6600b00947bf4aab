"""Profiles from an OpenAI-compatible server: a real one on the loopback interface that can misbehave."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from pipeline import row_cache
from pipeline.profiles import answer, openai
from pipeline.profiles.answer import ANSWER_SCHEMA, Answer, Failure, parse_answer
from pipeline.profiles.chat import ChatModelError
from pipeline.profiles.write import ProfileResult, write_item_profiles, write_user_profiles
from pipeline.row_cache import IN_USE
from pipeline.settings import ChatModelSettings, OpenAISettings, ProfileSettings
from tests.conftest import answering

GOOD = {"summary": "For cooks.", "reasoning": "The title says so."}
ITEM_SCHEMA = {
    "item": pl.Int32,
    "raw_id": pl.String,
    "title": pl.String,
    "description": pl.String,
    "categories": pl.List(pl.String),
    "brand": pl.String,
    "price": pl.String,
}

Reply = tuple[int, dict[str, str], bytes | Iterable[bytes]]


def completion(content: object, finish_reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 100, "completion_tokens": 20}}).encode()


def good(request: dict) -> Reply:
    """An answer that names the item it was asked about."""
    title = re.search(r"Title: (.*)", request["messages"][0]["content"])
    return 200, {}, completion(json.dumps(GOOD | {"summary": f"About {title[1] if title else 'a user'}."}))


def openai_settings(**values: object) -> ProfileSettings:
    """Settings by name, whether they are the server's or the model's."""
    server = {name: value for name, value in values.items() if name in OpenAISettings.model_fields}
    model = {name: value for name, value in values.items() if name not in server}
    return ProfileSettings(backend="openai", openai=OpenAISettings(**server), model=ChatModelSettings(**model))


class Server:
    """Records every request to /v1/chat/completions and answers with `reply`, given how often it saw that prompt."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.reply: Callable[[dict, int], Reply] = lambda request, attempt: good(request)
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    attempt = sum(seen["messages"] == request["messages"] for seen in owner.requests)
                    owner.requests.append(request)
                    owner.headers.append(dict(self.headers))
                    owner.in_flight += 1
                    owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
                try:
                    known = self.path == "/v1/chat/completions"
                    status, headers, body = owner.reply(request, attempt) if known else (404, {}, b"no such path")
                finally:
                    with owner.lock:
                        owner.in_flight -= 1
                self.send_response(status)
                length = {"Content-Length": str(len(body))} if isinstance(body, bytes) else {"Connection": "close"}
                for name, value in (length | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client has had enough
                    for piece in [body] if isinstance(body, bytes) else body:
                        self.wfile.write(piece)
                if "Connection" in headers:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Keep the test output quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def settings(self, **changes: object) -> ProfileSettings:
        values = {"base_url": self.url, "timeout_seconds": 5, "api_key_variable": "TEST_API_KEY", "name": "tiny"}
        return openai_settings(**values | changes)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    made = Server()
    with answering(made.http):
        yield made


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(openai, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.delenv("TEST_API_KEY", raising=False)
    with running() as made:
        yield made


def items_table(*titles: str | None) -> pl.DataFrame:
    rows = [{"item": number, "raw_id": f"i{number}", "title": title} for number, title in enumerate(titles)]
    return pl.DataFrame(rows, schema=ITEM_SCHEMA)


def write(settings: ProfileSettings, titles: list[str | None], cache: Path | None = None) -> ProfileResult:
    return write_item_profiles(items_table(*titles), None, settings, cache)


# ------------------------------------------------------------------------------------------------- answers


def test_profiles_come_back_in_id_order_with_a_concurrent_server(server: Server) -> None:
    def slow_start(request: dict, attempt: int) -> Reply:
        time.sleep(0.05 if "Title: t1\n" in request["messages"][0]["content"] else 0.01)
        return good(request)

    server.reply = slow_start
    titles = [f"t{number}" for number in range(30)]
    done: list[tuple[int, int, str]] = []
    result = write_item_profiles(
        items_table(*titles), None, server.settings(concurrency=4), progress=lambda *step: done.append(step)
    )
    assert result.table["summary"].to_list() == [f"About {title}." for title in titles]
    assert result.table["reasoning"].unique().to_list() == [GOOD["reasoning"]]
    assert result.table["origin"].unique().to_list() == ["openai"]
    assert 1 < server.most_in_flight <= 4
    assert [step[:2] for step in done] == [(number, 30) for number in range(1, 31)]
    assert re.fullmatch(r"[\d.,]+ prompts/s, [\d.,]+ tokens/s, about \d+ s left", done[20][2])
    assert {"prompt_tokens": 3000, "completion_tokens": 600}.items() <= result.counts.items()
    assert result.counts["prompts_per_second"] == pytest.approx(30 / result.counts["seconds_asking"], rel=0.2)
    assert result.counts["tokens_per_second"] == pytest.approx(120 * result.counts["prompts_per_second"], rel=0.01)
    assert result.counts["asked"] == 30


def test_a_request_names_model_sampling_and_schema(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", "secret-key")
    write(server.settings(temperature=0.25, max_tokens=99, seed=5), ["Pan"])
    (request,) = server.requests
    assert "Title: Pan" in request["messages"][0]["content"]
    expected = {"model": "tiny", "temperature": 0.25, "max_tokens": 99, "seed": 5}
    assert expected.items() <= request.items()
    assert request["response_format"]["json_schema"]["schema"] == ANSWER_SCHEMA
    assert server.headers[0]["Authorization"] == "Bearer secret-key"


def test_user_profiles_show_the_item_profiles_and_reviews(server: Server) -> None:
    items = items_table("Pan", "Pot")
    profiles = write(server.settings(), ["Pan", "Pot"]).table
    users = pl.DataFrame({"user": [0, 1], "raw_id": ["a", "b"]}).cast({"user": pl.Int32})
    history = pl.DataFrame(
        {"user": [0, 0], "item": [0, 1], "timestamp": [1, 2], "summary": [None, "Nice"], "text": ["Sears well.", None]},
        schema={"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64, "summary": pl.String, "text": pl.String},
    )
    server.requests.clear()
    result = write_user_profiles(users, items, profiles, history, None, server.settings())
    assert result.table["summary"].to_list() == ["About a user.", ""]
    assert result.counts["empty"] == 1
    (request,) = server.requests
    prompt = request["messages"][0]["content"]
    parts = ("1. Pot", "About the item: About Pot.", '"Nice"', "2. Pan", "Sears well.")
    places = [prompt.index(part) for part in parts]
    assert places == sorted(places)


def test_items_without_any_text_are_not_asked_about_and_equal_ones_once(server: Server) -> None:
    result = write(server.settings(), ["Pan", None, "Pan", "nan"])
    assert len(server.requests) == 1
    assert result.table["summary"].to_list() == ["About Pan.", "", "About Pan.", ""]
    assert result.counts["duplicate_prompts"] == 1
    assert result.counts["empty"] == 2
    assert result.counts["fallbacks"] == 0


def test_long_texts_are_cut_and_counted(server: Server) -> None:
    items = items_table("Pan", "Pot").with_columns(description=pl.Series(["word " * 900, "short"]))
    settings = server.settings().model_copy(update={"prompt_words": 300})
    result = write_item_profiles(items, None, settings)
    assert result.counts["prompts_cut"] == 1
    shown = server.requests[0]["messages"][0]["content"].split().count("word")
    assert result.counts["words_cut"] == 900 - shown > 600


# -------------------------------------------------------------------------------------- a server in trouble

BROKEN = [
    pytest.param((429, {"Retry-After": "0"}, b"slow down"), id="429"),
    pytest.param((500, {}, b"oops"), id="500"),
    pytest.param((503, {"Retry-After": "not a date"}, b""), id="503"),
    pytest.param((200, {}, completion("I would say it is a pan.")), id="prose"),
    pytest.param((200, {}, completion('{"summary": "cut off in the mid', "length")), id="cut"),
    pytest.param((200, {}, completion('{"summary": "a\nb", "reasoning": "raw newline"}')), id="control character"),
    pytest.param((200, {}, completion('{"summary": "  ", "reasoning": "r"}')), id="empty summary"),
    pytest.param((200, {}, completion('{"summary": 3, "reasoning": "r"}')), id="number"),
    pytest.param((200, {}, completion('{"reasoning": "r"}')), id="no summary"),
    pytest.param((200, {}, completion(None)), id="no content"),
    pytest.param((200, {}, b'{"choices": []}'), id="no choices"),
    pytest.param((200, {}, b"<html>"), id="html"),
    pytest.param((200, {}, b""), id="nothing"),
    pytest.param((200, {"Content-Encoding": "gzip"}, b"no gzip"), id="broken encoding"),
    pytest.param((200, {"Content-Length": "5000", "Connection": "close"}, b'{"choices": [{"mess'), id="half an answer"),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_bad_answer_is_asked_for_again(server: Server, broken: Reply) -> None:
    server.reply = lambda request, attempt: broken if attempt == 0 else good(request)
    result = write(server.settings(), ["Pan", "Pot"])
    assert result.table["summary"].to_list() == ["About Pan.", "About Pot."]
    assert len(server.requests) == 4
    assert {"asked": 2, "repeated": 2, "failed": 0}.items() <= result.counts.items()
    assert result.counts["fallbacks"] == 0


@pytest.mark.parametrize("broken", BROKEN)
def test_a_row_that_keeps_failing_falls_back_to_its_metadata(server: Server, broken: Reply) -> None:
    server.reply = lambda request, attempt: broken if "Title: Pot" in str(request) else good(request)
    result = write(server.settings(attempts=2), ["Pan", "Pot"])
    assert result.table["summary"].to_list() == ["About Pan.", "Pot."]
    assert result.table["origin"].to_list() == ["openai", "metadata"]
    assert result.table["error"][0] is None
    assert result.table["error"][1].endswith("(after 2 attempts)")
    assert {"fallbacks": 1, "origin_metadata": 1, "repeated": 1, "failed": 1}.items() <= result.counts.items()
    ((item, error, prompt, answer, attempts),) = result.failures.iter_rows()
    assert (item, error, attempts) == (1, result.table["error"][1], 2)
    assert "Title: Pot" in prompt
    if broken[0] == 200 and b"message" in broken[2] and broken[1] == {}:
        assert answer == json.loads(broken[2])["choices"][0]["message"]["content"]


@pytest.mark.parametrize("end", ['"', '"}'])
def test_half_a_surrogate_pair_in_an_answer_stops_nothing(server: Server, tmp_path: Path, end: str) -> None:
    """A server's JSON can hold one, as a string that no file and no cache can."""
    answer = '{"summary": "Keeps \ud83d tea hot' + end
    server.reply = lambda request, attempt: (200, {}, completion(answer))
    found = write(server.settings(attempts=1), ["Pan"], tmp_path)
    found.table.write_parquet(tmp_path / "profiles.parquet")
    found.failures.write_parquet(tmp_path / "failures.parquet")
    assert (found.failures.height == 0) == end.endswith("}")


def test_a_new_try_after_invalid_json_can_come_out_differently(server: Server) -> None:
    server.reply = lambda request, attempt: (200, {}, completion("no")) if attempt < 2 else good(request)
    write(server.settings(temperature=0, seed=3), ["Pan"])
    assert [request["seed"] for request in server.requests] == [3, 4, 5]
    assert server.requests[0]["temperature"] == 0
    assert all(request["temperature"] > 0 for request in server.requests[1:])


def test_a_server_that_is_too_slow_is_given_up_on(server: Server) -> None:
    def slow(request: dict, attempt: int) -> Reply:
        time.sleep(0.6 if "Title: Pot" in str(request) else 0)
        return good(request)

    server.reply = slow
    result = write(server.settings(attempts=2, timeout_seconds=0.2), ["Pan", "Pot"])
    assert result.table["summary"].to_list() == ["About Pan.", "Pot."]
    assert "timeout_seconds = 0.2" in result.table["error"][1]


def test_retry_after_is_honoured_in_seconds_and_as_a_date(server: Server) -> None:
    server.reply = lambda request, attempt: (429, {"Retry-After": "0.4"}, b"") if attempt == 0 else good(request)
    started = time.perf_counter()
    write(server.settings(), ["Pan"])
    assert time.perf_counter() - started >= 0.4
    in_a_minute = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 50 < openai._retry_after(in_a_minute) <= 60
    assert openai._retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    assert openai._retry_after(None) == openai._retry_after("soon") == 0


def test_a_refused_prompt_is_not_repeated(server: Server) -> None:
    server.reply = lambda request, attempt: (400, {}, b"too long") if "Pot" in str(request) else good(request)
    result = write(server.settings(), ["Pan", "Pot"])
    assert result.table["error"].to_list() == [None, "HTTP 400: too long"]
    assert result.failures["attempts"].to_list() == [1]
    assert len(server.requests) == 2


# --------------------------------------------------------------------------------- a server of no use at all


def test_no_server_is_one_error_that_says_what_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_WAIT_SECONDS", 0.01)
    settings = openai_settings(base_url="http://127.0.0.1:9/v1", name="tiny")
    with pytest.raises(ChatModelError, match=r"http://127.0.0.1:9/v1: no server there .*`vllm serve tiny`"):
        write(settings, [f"t{number}" for number in range(1000)])


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b"The model `tiny` does not exist.", r"HTTP 404: The model `tiny` does not exist.*`vllm serve tiny`"),
        (401, b"who are you", r"HTTP 401: who are you.*environment variable TEST_API_KEY is not set"),
        (403, b"no", r"HTTP 403: no.*TEST_API_KEY is not set"),
    ],
)
def test_a_server_that_refuses_everything_is_asked_once(server: Server, status: int, body: bytes, message: str) -> None:
    server.reply = lambda request, attempt: (status, {}, body)
    with pytest.raises(ChatModelError, match=message):
        write(server.settings(), [f"t{number}" for number in range(1000)])
    assert len(server.requests) == 1


def test_the_key_is_in_no_message(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", "secret-key")
    server.reply = lambda request, attempt: (401, {}, b"Incorrect API key provided: secret-key")
    with pytest.raises(ChatModelError, match=r"provided: \*\*\*.*is not accepted") as caught:
        write(server.settings(), ["Pan"])
    assert "secret-key" not in repr(caught.value)
    monkeypatch.setenv("TEST_API_KEY", "sécret")
    with pytest.raises(ChatModelError, match="TEST_API_KEY is not printable ASCII"):
        write(server.settings(), ["Pan"])


def test_a_server_that_never_gives_a_usable_answer_is_given_up_on(server: Server) -> None:
    server.reply = lambda request, attempt: (200, {}, completion("I cannot do that."))
    with pytest.raises(ChatModelError, match=r"none of the first 20 prompts.*no JSON object in the answer"):
        write(server.settings(attempts=1, concurrency=2), [f"t{number}" for number in range(1000)])
    assert len(server.requests) < 200  # the rest of the thousand is called off


def endless(pieces: list[bytes], pause: float) -> Iterator[bytes]:
    """Spaces, 10 s long; every piece that is sent is noted."""
    for _ in range(int(10 / pause)):
        time.sleep(pause)
        pieces.append(b" " * 100)
        yield pieces[-1]


def test_an_answer_that_drips_is_given_up(server: Server) -> None:
    server.reply = lambda request, attempt: (200, {}, endless([], 0.05))
    started = time.monotonic()
    result = write(server.settings(timeout_seconds=0.4, attempts=2), ["Pan"])
    assert time.monotonic() - started < 5
    assert result.table["error"].to_list() == [
        "no answer within profiles.openai.timeout_seconds = 0.4 (after 2 attempts)"
    ]


def test_an_answer_without_end_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "ANSWER_BYTES", 2000)
    pieces: list[bytes] = []
    server.reply = lambda request, attempt: (
        (200, {}, endless(pieces, 0.01)) if "Title: Pot" in str(request) else good(request)
    )
    result = write(server.settings(timeout_seconds=60, attempts=1), ["Pan", "Pot"])
    assert 20 < len(pieces) < 500
    assert result.table["summary"].to_list() == ["About Pan.", "Pot."]
    assert "an answer of more than 2,000 bytes; is base_url" in result.table["error"][1]


def test_an_address_without_a_scheme_is_an_error() -> None:
    settings = openai_settings(base_url="localhost:8000/v1")
    with pytest.raises(ChatModelError, match=r"base_url = 'localhost:8000/v1': expected http"):
        write(settings, ["Pan"])


# --------------------------------------------------------------------------------------------------- cache


def test_a_second_run_makes_no_request_and_gives_the_same(server: Server, tmp_path: Path) -> None:
    titles = [f"t{number}" for number in range(100)]
    first = write(server.settings(), [*titles, None], tmp_path)
    assert len(server.requests) == 100
    second = write(server.settings(concurrency=3), [*titles, None], tmp_path)
    assert len(server.requests) == 100
    assert second.table.equals(first.table)
    assert {"from_cache": 100, "asked": 0, "rows_computed": 0, "rows_reused": 100}.items() <= second.counts.items()
    assert {"prompts": 100, "seconds_asking": 0, "rows": 101}.items() <= second.counts.items()


def test_one_changed_item_is_one_request_and_another_model_is_all(server: Server, tmp_path: Path) -> None:
    write(server.settings(), ["Pan", "Pot", "Cup"], tmp_path)
    changed = write(server.settings(), ["Pan", "Pottery", "Cup"], tmp_path)
    assert changed.counts["asked"] == 1
    assert changed.table["summary"].to_list() == ["About Pan.", "About Pottery.", "About Cup."]
    for change in ({"name": "other"}, {"revision": "abc"}, {"temperature": 1.0}, {"seed": 1}, {"max_tokens": 50}):
        assert write(server.settings(**change), ["Pan", "Pot", "Cup"], tmp_path).counts["asked"] == 3


def test_a_failed_row_is_tried_again_by_the_next_run(server: Server, tmp_path: Path) -> None:
    server.reply = lambda request, attempt: (500, {}, b"") if "Pot" in str(request) else good(request)
    assert write(server.settings(attempts=1), ["Pan", "Pot"], tmp_path).counts["fallbacks"] == 1
    server.reply = lambda request, attempt: good(request)
    again = write(server.settings(), ["Pan", "Pot"], tmp_path)
    assert {"from_cache": 1, "asked": 1, "fallbacks": 0}.items() <= again.counts.items()


def test_answers_before_a_fatal_error_are_kept(server: Server, tmp_path: Path) -> None:
    server.reply = lambda request, attempt: (
        (404, {}, b"gone") if "Title: t7\n" in request["messages"][0]["content"] else good(request)
    )
    titles: list[str | None] = [f"t{number}" for number in range(10)]
    with pytest.raises(ChatModelError, match="gone"):
        write(server.settings(concurrency=1), titles, tmp_path)
    server.reply = lambda request, attempt: good(request)
    assert write(server.settings(), titles, tmp_path).counts["from_cache"] == 7


def test_a_server_that_goes_away_is_asked_for_the_rest_alone(server: Server, tmp_path: Path) -> None:
    titles: list[str | None] = [f"t{number}" for number in range(100)]

    def leaves(request: dict, attempt: int) -> Reply:
        if len(server.requests) == 30:
            server.http.shutdown()
            server.http.server_close()
        status, _, body = good(request)
        return status, {"Connection": "close"}, body

    server.reply = leaves
    with pytest.raises(ChatModelError, match="no server there"):
        write(server.settings(concurrency=1), titles, tmp_path)
    answered = [request["messages"] for request in server.requests]
    with running() as again:
        result = write(again.settings(), titles, tmp_path)
    assert {"from_cache": 30, "asked": 70}.items() <= result.counts.items()
    assert not [request for request in again.requests if request["messages"] in answered]
    assert result.table["summary"].to_list() == [f"About {title}." for title in titles]


def test_an_interrupted_run_stops_its_requests_and_keeps_its_answers(server: Server, tmp_path: Path) -> None:
    def interrupted(done: int, total: int, detail: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    items = items_table(*(f"t{number}" for number in range(300)))
    with pytest.raises(KeyboardInterrupt):
        write_item_profiles(items, None, server.settings(concurrency=2), tmp_path, interrupted)
    assert not [thread for thread in threading.enumerate() if thread.name == "openai-requests"]
    assert len(server.requests) < 300
    assert write_item_profiles(items, None, server.settings(), tmp_path).counts["from_cache"] == 5


def test_profiles_can_be_written_from_within_an_event_loop(server: Server) -> None:
    async def notebook() -> ProfileResult:
        return write(server.settings(), ["Pan"])

    assert asyncio.run(notebook()).table["summary"].to_list() == ["About Pan."]


KILLED = """
import sys, polars as pl
from pathlib import Path
from pipeline.profiles.write import write_item_profiles
from pipeline.settings import ChatModelSettings, OpenAISettings, ProfileSettings
url, folder, start, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
items = pl.DataFrame({"item": range(count), "raw_id": [str(n) for n in range(count)],
    "title": [f"t{start + n}" for n in range(count)], "description": [None] * count, "categories": [None] * count,
    "brand": [None] * count, "price": [None] * count}, schema_overrides={"item": pl.Int32})
settings = ProfileSettings(
    backend="openai", openai=OpenAISettings(base_url=url, concurrency=8), model=ChatModelSettings(name="tiny"))
print(write_item_profiles(items, None, settings, folder).counts["asked"])
"""


def process(server: Server, folder: Path, start: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, server.url, str(folder), str(start), str(count)]
    root = Path(openai.__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_loses_at_most_one_chunk(server: Server, tmp_path: Path) -> None:
    stop = threading.Event()

    def stalls(request: dict, attempt: int) -> Reply:
        if len(server.requests) > 200:
            stop.wait(20)
        return good(request)

    server.reply = stalls
    running = process(server, tmp_path, 0, 400)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    stop.set()
    server.reply = lambda request, attempt: good(request)
    result = write(server.settings(), [f"t{number}" for number in range(400)], tmp_path)
    assert result.counts["from_cache"] >= 200 - 64
    assert result.table["summary"].to_list() == [f"About t{number}." for number in range(400)]


def test_two_processes_share_one_cache(server: Server, tmp_path: Path) -> None:
    both = [process(server, tmp_path, 0, 150), process(server, tmp_path, 100, 150)]
    outputs = [running.communicate(timeout=60)[0] for running in both]
    assert [running.returncode for running in both] == [0, 0]
    assert 250 <= sum(map(int, outputs)) <= 300
    result = write(server.settings(), [f"t{number}" for number in range(250)], tmp_path)
    assert result.counts["from_cache"] == 250
    assert not list(tmp_path.glob(".*"))


def test_the_cache_holds_answers_as_they_came_and_reads_them_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = '{"summary": "<b>For cooks</b>.", "reasoning": "r"}'
    server.reply = lambda request, attempt: (200, {}, completion(raw))
    write(server.settings(), ["Pan"], tmp_path)
    assert pl.concat(map(pl.read_parquet, tmp_path.glob("*.parquet")))["answer"].to_list() == [raw]
    monkeypatch.setattr(answer, "clean_text", lambda text: text.replace("cooks", "chefs"))
    again = write(server.settings(), ["Pan"], tmp_path)
    assert again.table["summary"].to_list() == ["<b>For chefs</b>."]
    assert again.counts["asked"] == 0
    monkeypatch.setattr(answer, "clean_text", lambda text: text.replace("<b>For cooks</b>.", ""))
    server.reply = lambda request, attempt: (200, {}, completion('{"summary": "Better.", "reasoning": "r"}'))
    stricter = write(server.settings(), ["Pan"], tmp_path)
    assert stricter.table["summary"].to_list() == ["Better."]
    assert stricter.counts["asked"] == 1


def test_answers_in_use_are_marked_by_kind(server: Server, tmp_path: Path) -> None:
    for titles in (["Pan", "Pot"], ["Pot", "Cup", "Pot", None]):
        write(server.settings(), titles, tmp_path)
    assert [path.stem for path in (tmp_path / IN_USE).iterdir()] == ["item"]
    assert row_cache.size(tmp_path).rows == 3
    assert row_cache.size(tmp_path).in_use == 2


def test_a_changed_file_of_a_local_model_asks_anew(server: Server, tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = server.settings(name=str(model))
    assert [write(settings, ["Pan"], cache).counts["asked"] for _ in range(2)] == [1, 0]
    (model / "config.json").write_text("[1]")
    assert write(settings, ["Pan"], cache).counts["asked"] == 1
    (model / "weights").touch()
    assert write(settings, ["Pan"], cache).counts["asked"] == 1


def test_a_row_shows_its_progress_from_the_cache_too(server: Server, tmp_path: Path) -> None:
    write(server.settings(), ["Pan", "Pot"], tmp_path)
    seen: list[tuple[int, int, str]] = []
    items = items_table("Pan", "Pot", "Cup", None)
    write_item_profiles(items, None, server.settings(), tmp_path, lambda *step: seen.append(step))
    assert seen[:2] == [(1, 4, "1 cached"), (2, 4, "2 cached")]
    assert seen[-1][:2] == (4, 4)
    assert seen[-1][2].startswith("2 cached, ")


# ------------------------------------------------------------------------------------------- reading answers


@pytest.mark.parametrize(
    "content",
    [
        '{"summary": "Fine.", "reasoning": "r"}',
        '```json\n{"summary": "Fine.", "reasoning": "r", "extra": 1}\n```',
        '<think>hm</think> Sure: {"summary": "Fine.\\u0000", "reasoning": "r"}',
        '{"summary": "<b>Fine.</b><|eot_id|>", "reasoning": "r"}',
    ],
)
def test_an_answer_is_found_and_cleaned(content: str) -> None:
    assert parse_answer(content) == Answer(summary="Fine.", reasoning="r")


def test_a_failure_says_what_is_wrong() -> None:
    failure = parse_answer('{"summary": ["a"], "reasoning": "r"}')
    assert isinstance(failure, Failure)
    assert re.search("summary: Input should be a valid string", failure.reason)


def test_the_schema_lets_no_control_character_or_escape_through() -> None:
    pattern = re.compile(ANSWER_SCHEMA["properties"]["summary"]["pattern"])  # type: ignore[index]
    assert pattern.match("Likes été, 東京 and 🎷; it's fine (really).")
    assert pattern.match("x" * 900)
    for text in ("", "a\nb", "a\x00b", 'a"b', "a\\b", "x" * 901):
        assert not pattern.match(text)
