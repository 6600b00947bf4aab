"""The answer a chat model must give: a JSON object with a summary and its reasoning."""

import re
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pipeline.profiles.text import clean_text

# Guided decoding holds the model to these. `pattern`, because `maxLength` alone lets raw control characters through,
# and a JSON string with one of those does not parse. In hundreds, because xgrammar 0.2.8 (vLLM 0.32) cannot compile a
# repetition of more than 128. Both strings together stay under 512 tokens of English.
_CHARACTER = r'[^"\\\u0000-\u001f\u007f]'
_STRING = f"^({_CHARACTER}{{{{100}}}}){{{{0,{{}}}}}}{_CHARACTER}{{{{1,100}}}}$"
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "pattern": _STRING.format(8)},
        "reasoning": {"type": "string", "pattern": _STRING.format(4)},
    },
    "required": ["summary", "reasoning"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a prompt has no usable answer, the last answer as the model gave it, and how often it was asked."""

    reason: str
    answer: str | None = None
    attempts: int = 1


class Answer(BaseModel):
    """A validated answer. Both strings are cleaned; the summary is never empty."""

    model_config = ConfigDict(frozen=True, strict=True)

    summary: str
    reasoning: str | None = None

    @field_validator("summary", "reasoning")
    @classmethod
    def _plain_text(cls, text: str | None) -> str | None:
        return None if text is None else clean_text(text)

    @field_validator("summary")
    @classmethod
    def _says_something(cls, summary: str) -> str:
        if not summary:
            raise ValueError("the summary is empty")
        return summary


def parse_answer(content: str) -> Answer | Failure:
    """Read a model's answer; a fence or a preamble around the JSON object is passed over."""
    found = re.search(r"\{.*\}", content, re.DOTALL)
    if found is None:
        return Failure(f"no JSON object in the answer {content[:80]!r}", content)
    try:
        return Answer.model_validate_json(found[0])
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "answer"
        return Failure(f"not the JSON asked for: {field}: {problem['msg']}", content)
