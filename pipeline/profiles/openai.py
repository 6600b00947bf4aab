"""A chat model behind an OpenAI-compatible server, `vllm serve` among them."""

import asyncio
import contextlib
import email.utils
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.profiles.answer import ANSWER_SCHEMA, Failure
from pipeline.profiles.chat import ChatModelError, sampling, usable
from pipeline.settings import ProfileSettings

if TYPE_CHECKING:
    import httpx

FIRST_WAIT_SECONDS = 0.5
CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 60.0
ANSWER_BYTES = 4 * 2**20  # far above what a profile takes, a model's thoughts before it included

Emit = Callable[[tuple[int, str | Failure]], None]


class OpenAIChat:
    """A `ChatModel` over `POST {base_url}/chat/completions`.

    A request is tried `attempts` times: after 429, 5xx, a timeout, a broken connection or an answer without end with
    growing, jittered waits (or as long as `Retry-After` says), after an answer that is not the JSON asked for at once
    and with another seed.
    """

    origin = "openai"

    def __init__(self, settings: ProfileSettings) -> None:
        self.settings, self.server = settings.model, settings.openai
        self.counts: dict[str, float] = {"repeated": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._url = self.server.base_url.rstrip("/") + "/chat/completions"
        self._key = os.environ.get(self.server.api_key_variable, "").strip()
        if urlsplit(self._url).scheme not in ("http", "https"):
            raise ChatModelError(
                f"profiles.openai.base_url = {self.server.base_url!r}: expected http://... or https://..."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise ChatModelError(
                f"the key in the environment variable {self.server.api_key_variable} is not printable ASCII"
            )
        self._jitter = random.Random(self.settings.seed)

    def answers(self, prompts: Iterable[tuple[int, str]]) -> Generator[tuple[int, str | Failure]]:
        """See `ChatModel.answers`; requests run in an event loop of their own, on a thread of their own."""
        arrived: queue.SimpleQueue[tuple[int, str | Failure] | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        work = loop.create_task(self._answer_all(iter(prompts), arrived.put))

        def run() -> None:
            try:
                loop.run_until_complete(work)
                arrived.put(None)
            except BaseException as error:  # handed to the consumer, whatever it is
                arrived.put(error)
            finally:
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

        thread = threading.Thread(target=run, name="openai-requests", daemon=True)
        thread.start()
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                loop.call_soon_threadsafe(work.cancel)
            thread.join()

    async def _answer_all(self, prompts: Iterator[tuple[int, str]], emit: Emit) -> None:
        import httpx

        reading = asyncio.Lock()

        async def following() -> tuple[int, str] | None:
            # On a thread: between two prompts there can be thousands of rows that need no answer.
            async with reading:
                return await asyncio.to_thread(next, prompts, None)

        first = await following()
        if first is None:
            return
        client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # Connecting fails before the whole request does: no server is another error than a slow one.
            timeout=httpx.Timeout(
                self.server.timeout_seconds, connect=min(CONNECT_SECONDS, self.server.timeout_seconds / 2)
            ),
            limits=httpx.Limits(max_connections=self.server.concurrency),
            trust_env=urlsplit(self._url).hostname not in ("127.0.0.1", "localhost", "::1"),  # no proxy to oneself
        )

        async def worker() -> None:
            while (pair := await following()) is not None:
                emit((pair[0], await self._answer(client, pair[1])))

        async with client:
            # One prompt alone comes first: a server that is away or refuses shows without a flood of requests.
            emit((first[0], await self._answer(client, first[1])))
            workers = [asyncio.ensure_future(worker()) for _ in range(self.server.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for each in workers:
                    each.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, client: "httpx.AsyncClient", prompt: str) -> str | Failure:
        """Ask until there is a valid answer or the attempts are used up."""
        import httpx

        result = Failure("never asked")
        for attempt in range(self.settings.attempts):
            last = attempt + 1 == self.settings.attempts
            self.counts["repeated"] += attempt > 0
            wait = self._wait(attempt)
            try:
                async with asyncio.timeout(self.server.timeout_seconds):  # httpx's own is for each read
                    response = await self._post(client, prompt, attempt)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if last:
                    raise ChatModelError(self._unreachable(error)) from error
                result = Failure(f"no connection: {error}")
            except (httpx.TimeoutException, TimeoutError):
                result = Failure(f"no answer within profiles.openai.timeout_seconds = {self.server.timeout_seconds:g}")
            except httpx.RequestError as error:  # among them a body that is not in the encoding that it claims
                result = Failure(f"connection broken: {type(error).__name__} {error}")
            else:
                if response is None:
                    result = Failure(
                        f"an answer of more than {ANSWER_BYTES:,} bytes; is base_url that of a chat model?"
                    )
                elif response.status_code == 200:
                    answer = self._read(response)
                    if isinstance(answer, str):
                        return answer
                    result, wait = answer, 0.0
                else:
                    self._refuse(response)
                    result = Failure(f"HTTP {response.status_code}: {self._message(response)}")
                    if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
                        return replace(result, attempts=attempt + 1)
                    wait = max(wait, _retry_after(response.headers.get("Retry-After")))
            if not last:
                await asyncio.sleep(min(wait, LONGEST_WAIT_SECONDS))
        attempts = self.settings.attempts
        return Failure(f"{result.reason} (after {attempts} attempts)", result.answer, attempts)

    async def _post(self, client: "httpx.AsyncClient", prompt: str, attempt: int) -> "httpx.Response | None":
        """Ask once; None where the answer is longer than `ANSWER_BYTES`."""
        import httpx

        content = b""
        async with client.stream("POST", self._url, json=self._body(prompt, attempt)) as response:
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > ANSWER_BYTES:
                    return None
        headers = httpx.Headers(response.headers)
        headers.pop("Content-Encoding", None)  # it is decoded
        return httpx.Response(response.status_code, headers=headers, content=content)

    def _body(self, prompt: str, attempt: int) -> dict[str, Any]:
        return {
            "model": self.settings.name,
            "messages": [{"role": "user", "content": prompt}],
            **sampling(self.settings, attempt),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "profile", "schema": ANSWER_SCHEMA, "strict": True},
            },
        }

    def _read(self, response: "httpx.Response") -> str | Failure:
        try:
            completion = response.json()
            choice = completion["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return Failure(f"not a chat completion: {response.text[:80]!r}", response.text)
        usage = completion.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            tokens = usage.get(name) if isinstance(usage, dict) else None
            self.counts[name] += tokens if isinstance(tokens, int) else 0
        if not isinstance(content, str):
            return Failure("the model gave no text")
        return usable(content, choice.get("finish_reason") == "length", self.settings)

    def _wait(self, attempt: int) -> float:
        """Seconds before the next attempt: doubling, with a jitter of half to one and a half."""
        return FIRST_WAIT_SECONDS * 2**attempt * (0.5 + self._jitter.random())

    def _refuse(self, response: "httpx.Response") -> None:
        """Raise for what no other prompt would get past: a missing key, an unknown model, a wrong address."""
        said = f"HTTP {response.status_code}: {self._message(response)}"
        if response.status_code in (401, 403):
            state = "is not accepted" if self._key else "is not set"
            raise ChatModelError(
                f"{self._url}: {said}. The key in the environment variable {self.server.api_key_variable} {state}"
            )
        if response.status_code == 404:
            raise ChatModelError(
                f"{self._url}: {said}. Does the server offer {self.settings.name}? Start it with "
                f"`vllm serve {self.settings.name}`, or set profiles.model.name; base_url usually ends in /v1"
            )

    def _unreachable(self, error: Exception) -> str:
        return (
            f"{self.server.base_url}: no server there ({error or type(error).__name__}). Start one with "
            f"`vllm serve {self.settings.name}`, or set profiles.openai.base_url"
        )

    def _message(self, response: "httpx.Response") -> str:
        """The start of what the server said, without the key should it repeat it."""
        text = " ".join(response.text.split())
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _retry_after(header: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, given in seconds or as a date; 0 without a usable one."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        parsed = email.utils.parsedate_tz(header)
        return max(0.0, email.utils.mktime_tz(parsed) - time.time()) if parsed else 0.0
