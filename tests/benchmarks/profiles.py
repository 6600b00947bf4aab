"""Profiles by the vLLM backend beside one `LLM.chat` call over the same prompts, in one engine, interleaved.

    python tests/benchmarks/profiles.py [--model NAME_OR_FOLDER] [--revision COMMIT] [--rows 400] [--rounds 5]

Ours is the whole way: clean, render and cut to the token budget, look into an empty cache, ask, parse, write the
cache. `LLM.chat` is given all prompts ready-made and at once. Both meet an engine with an empty prefix cache, and take
the first turn in every other round. Without a model, a tiny random Llama: there the engine does so little that our
share of the work looks largest. On a CPU set VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1
HF_HUB_OFFLINE=1.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from pipeline.profiles.answer import Failure
from pipeline.profiles.chat import answer_prompts
from pipeline.profiles.prompts import load_template, render_item
from pipeline.profiles.tokens import ChatTokenizer
from pipeline.profiles.vllm import VLLMChat, _stop
from pipeline.settings import ChatModelSettings, ProfileSettings, VLLMSettings
from tests.tiny_llama import save_tiny_llama


class Running(VLLMChat):
    """The backend in an engine that is already there."""

    llm: Any

    def answers(self, prompts: Iterable[tuple[int, str]]) -> Generator[tuple[int, str | Failure]]:
        yield from self._answer_all(self.llm, iter(prompts))


def made_items(count: int) -> list[dict[str, Any]]:
    """Records of which about half are longer than the budget."""
    rng = random.Random(0)
    words = ["a", "nice", "card", "gift", "for", "people", "who", "like", "music", "long", "needs", "occasions"]
    return [
        {"title": f"Item {n}", "description": " ".join(rng.choices(words, k=rng.randrange(10, 900)))}
        for n in range(count)
    ]


def ours(settings: ProfileSettings, llm: Any, rows: list[dict[str, Any]]) -> float:
    """Tokens per second of a whole run of the backend."""
    template, tokenizer = load_template("item.md.j2", "item"), ChatTokenizer(settings)
    model = Running(settings, tokenizer)
    model.llm = llm
    llm.reset_prefix_cache()
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        answer_prompts(
            "item", lambda row: render_item(template, rows[row], tokenizer.budget).text, len(rows), model, Path(cache)
        )
        seconds = time.perf_counter() - started
    return (model.counts["prompt_tokens"] + model.counts["completion_tokens"]) / seconds


def theirs(settings: ProfileSettings, llm: Any, rows: list[dict[str, Any]]) -> float:
    """Tokens per second of `LLM.chat`."""
    template, tokenizer = load_template("item.md.j2", "item"), ChatTokenizer(settings)
    prompts = [render_item(template, row, tokenizer.budget).text for row in rows]
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    parameters = Running(settings, tokenizer)._parameters(0)
    llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = llm.chat(conversations, parameters, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.prompt_token_ids) + len(output.outputs[0].token_ids) for output in outputs) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--revision")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = arguments.model or str(save_tiny_llama(Path(folder)))
        settings = ProfileSettings(
            backend="vllm",
            # One attempt: `LLM.chat` does not ask again either.
            model=ChatModelSettings(name=name, revision=arguments.revision, max_tokens=128, attempts=1),
            vllm=VLLMSettings(enforce_eager=arguments.model is None),
            prompt_tokens=1024,
        )
        rows = made_items(arguments.rows)
        llm = Running(settings, ChatTokenizer(settings))._start()
        systems = {"backend": ours, "LLM.chat": theirs}
        for system in systems.values():
            system(settings, llm, rows[:20])  # the engine's first prompts cost more
        ratios = []
        for number in range(arguments.rounds):
            order = list(systems) if number % 2 == 0 else list(reversed(systems))
            speed = {name: systems[name](settings, llm, rows) for name in order}
            ratios.append(speed["backend"] / speed["LLM.chat"])
            shown = ", ".join(f"{name} {speed[name]:,.0f} tokens/s" for name in systems)
            print(f"round {number + 1}: {shown}; ratio {ratios[-1]:.3f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); goal 0.90")
        _stop(llm)


if __name__ == "__main__":
    main()
