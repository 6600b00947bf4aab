"""What `vllm` is to an engine's actor: it says back some of what it was told, by the attempt's seed."""

from pathlib import Path

VLLM = """
from types import SimpleNamespace as Space

class SamplingParams(Space): pass

class LLM:
    def __init__(self, **settings):
        if settings["dtype"] == "float16":
            raise RuntimeError("no such kernel")
        self.waiting, self.count = [], 0
        scheduler = Space(max_num_seqs=4)
        core = Space(shutdown=lambda: None)
        self.llm_engine = Space(
            vllm_config=Space(scheduler_config=scheduler), step=self.step, engine_core=core
        )

    def enqueue(self, prompts, parameters, use_tqdm):
        self.count += 1
        self.waiting.append((str(self.count), prompts[0]["prompt_token_ids"], parameters))
        return [f"{self.count}-x"]

    def step(self):
        number, tokens, parameters = self.waiting.pop()
        text = '{"summary": "%s", "reasoning": "seed %d"}' % (sum(tokens), parameters.seed)
        if sum(tokens) % 5 == 0 and parameters.seed == 0 or sum(tokens) % 7 == 0:
            text = text[:-4]
        completion = Space(text=text, token_ids=[1, 2], finish_reason="length")
        return [Space(finished=True, request_id=number, prompt_token_ids=tokens, outputs=[completion])]
"""


def save_fake_vllm(folder: Path) -> Path:
    """Save a package `vllm` in a folder, which is to be on the path of every process that starts an engine."""
    package = folder / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(VLLM)
    (package / "platforms.py").write_text("class current_platform:\n    is_cpu = staticmethod(lambda: True)\n")
    (package / "sampling_params.py").write_text("from types import SimpleNamespace as StructuredOutputsParams\n")
    (package / "distributed.py").write_text("def cleanup_dist_env_and_memory(): pass\n")
    return folder
