"""The tokenizer of a chat model: how long a prompt is to it, and what text it would take for a control token."""

import re
from typing import Any

from pipeline.profiles.chat import ChatModelError
from pipeline.profiles.prompts import Budget
from pipeline.settings import ProfileSettings, local_folder

# Some chat templates (Llama 3's) print today's date unless they are told one: the same prompt must stay the same.
DATE = "26 Jul 2024"


class ChatTokenizer:
    """The tokenizer that the settings name, with the chat template that comes with it.

    Attributes
    ----------
    location
        Hub name, or folder with `~` resolved.
    budget
        How long a prompt may be: `profiles.prompt_tokens`, less where the model's context has no room for that.

    Raises
    ------
    ChatModelError
        If it cannot be loaded, has no chat template, or its model has no room for prompts.
    """

    def __init__(self, settings: ProfileSettings) -> None:
        name = settings.tokenizer
        if name is None:
            raise ValueError("these settings name no tokenizer")
        folder = local_folder(name)
        if folder is not None and not folder.is_dir():
            raise ChatModelError(f"profiles.model: there is no folder {folder}; name a model folder, or a hub model")
        self.location = name if folder is None else str(folder)
        self.revision = settings.model.revision if folder is None and name == settings.model.name else None
        self._tokenizer = self._load("AutoTokenizer")
        if not self._tokenizer.chat_template:
            raise ChatModelError(
                f"{name} is not a chat model: its tokenizer has no chat template. Choose one that was trained to "
                "follow instructions (often named -Instruct or -chat)"
            )
        self._last: tuple[str | None, list[int]] = None, []
        self.budget = self._budget(settings)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt as the model reads it: in the chat template, up to where its answer starts."""
        if prompt != self._last[0]:
            message = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(
                message, add_generation_prompt=True, tokenize=False, date_string=DATE
            )
            self._last = prompt, self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._last[1]

    def count(self, prompt: str) -> int:
        """Number of tokens of a prompt with the chat template around it."""
        return len(self.encode(prompt))

    def _budget(self, settings: ProfileSettings) -> Budget:
        context = self._context()
        if context is None or context - settings.model.max_tokens >= settings.prompt_tokens:
            return Budget(settings.prompt_tokens, self.count, "profiles.prompt_tokens", self._control_tokens())
        rest = context - settings.model.max_tokens
        if rest <= 0:
            raise ChatModelError(
                f"profiles.model.max_tokens = {settings.model.max_tokens} takes all of the {context} tokens that "
                f"{settings.model.name} can read and write; lower it"
            )
        return Budget(
            rest, self.count, "what profiles.model.max_tokens leaves of the model's context", self._control_tokens()
        )

    def _context(self) -> int | None:
        """How many tokens the model can read and write, None where the tokenizer comes without a model."""
        try:
            config = self._load("AutoConfig")
        except ChatModelError:
            return None
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def _control_tokens(self) -> re.Pattern[str] | None:
        added = self._tokenizer.added_tokens_decoder.values()
        template = str(self._tokenizer.chat_template)
        tokens = {token.content for token in added if token.special or token.content in template}
        tokens |= set(self._tokenizer.all_special_tokens)
        spelled = sorted((token for token in tokens if token.strip()), key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, spelled))) if spelled else None

    def _load(self, kind: str) -> Any:
        import transformers

        try:
            return getattr(transformers, kind).from_pretrained(self.location, revision=self.revision)
        except Exception as error:  # whatever kind: this model cannot be used, and the message says why
            raise ChatModelError(_not_loaded(self.location, self.revision, error)) from error


def _not_loaded(name: str, revision: str | None, error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    at = f" at revision {revision}" if revision else ""
    if "gated" in said.lower() or "401" in said or "403" in said:
        return (
            f"{name}{at}: access is refused ({said}). Ask for access on the model's page, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    return f"{name}{at}: cannot be loaded ({said}). Check profiles.model.name, revision and tokenizer"
