"""A vLLM engine on every GPU, or set of GPUs, of a cluster."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.profiles.answer import Failure
from pipeline.profiles.tokens import ChatTokenizer
from pipeline.profiles.vllm import NO_COUNTS, VLLMChat
from pipeline.settings import ProfileSettings

if TYPE_CHECKING:
    from pipeline.compute import Cluster

# Prompts that an engine takes at a time, and answers again if it is lost: several for each that it works on at once,
# since it waits at the end of them.
PROMPTS = 1024
ANSWERS = pa.schema(
    [("row", pa.int64()), ("answer", pa.string()), ("reason", pa.string()), ("attempts", pa.int64())]
    + [(name, pa.float64()) for name in ("repeated", "prompt_tokens", "completion_tokens", "seconds_starting")]
)


class SpreadChat:
    """A `ChatModel` in engines on the nodes of a cluster; they start with the first prompts and end with the last.

    A prompt has the answer that an engine here gives, as far as vLLM rounds alike: on a CPU with several threads last
    bits depend on what else is in a batch, and the choice between two words may hang on them. `seconds_starting` are
    the longest of any of them.
    """

    origin = VLLMChat.origin

    def __init__(self, settings: ProfileSettings, cluster: "Cluster") -> None:
        self.settings, self._profiles, self._cluster = settings.model, settings, cluster
        self.counts: dict[str, float] = dict(NO_COUNTS)

    def answers(self, prompts: Iterable[tuple[int, str]]) -> Generator[tuple[int, str | Failure]]:
        """See `ChatModel.answers`; all prompts are rendered first, into Ray's object store."""
        gpus = self._profiles.vllm.tensor_parallel_size
        for made in self._cluster.batches(_Engine, [self._profiles], _tables(prompts), gpus):
            for name in ("repeated", "prompt_tokens", "completion_tokens"):
                self.counts[name] += made[name][0].as_py()
            started = made["seconds_starting"][0].as_py()
            self.counts["seconds_starting"] = max(self.counts["seconds_starting"], started)
            columns = (made[name].to_pylist() for name in ("row", "answer", "reason", "attempts"))
            for row, answer, reason, attempts in zip(*columns, strict=True):
                yield row, answer if reason is None else Failure(reason, answer, attempts)


def _tables(prompts: Iterable[tuple[int, str]]) -> Iterator[pa.Table]:
    rest = iter(prompts)
    while part := list(islice(rest, PROMPTS)):
        yield pa.table({"row": [row for row, _ in part], "prompt": [prompt for _, prompt in part]})


class _Engine:
    """Takes `row` and `prompt`, gives `ANSWERS`; what was counted stands in every row. It ends with its process."""

    def __init__(self, settings: ProfileSettings) -> None:
        self._chat = VLLMChat(settings, ChatTokenizer(settings))
        self._stack = ExitStack()
        self._engine = self._stack.enter_context(self._chat.running())

    def __call__(self, table: pa.Table) -> pa.Table:
        before = dict(self._chat.counts)
        prompts = zip(table["row"].to_pylist(), table["prompt"].to_pylist(), strict=True)
        answers = list(self._chat.answer_all(self._engine, prompts))
        counted = {name: self._chat.counts[name] - before[name] for name in before}
        counted["seconds_starting"] = self._chat.counts["seconds_starting"]
        rows: list[dict[str, Any]] = []
        for row, answer in answers:
            told = (answer.answer, answer.reason, answer.attempts) if isinstance(answer, Failure) else (answer, None, 1)
            rows.append({"row": row, **dict(zip(("answer", "reason", "attempts"), told, strict=True)), **counted})
        return pa.Table.from_pylist(rows, schema=ANSWERS)
