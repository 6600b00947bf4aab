"""Key terms and key sentences of many documents at once.

Terms are scored by TF-IDF over the documents given. A sentence is as good as the key terms in it. Scores are whole
numbers, so that sums, and with them the choice, do not depend on the order in which threads add.
"""

from collections.abc import Iterator

import polars as pl

PART_SCHEMA = {"document": pl.Int32, "weight": pl.Int32, "quotable": pl.Boolean, "text": pl.String}

_TOKEN = r"\p{L}[\p{L}\p{M}\p{N}]{2,}"
_CONTRACTION = r"n['’]t\b|['’](?:s|re|ve|ll|d|m)\b"
_SENTENCE_END = r"([.!?])\s+"
# Beside scikit-learn's stop words, which leave out some of the commonest words of reviews.
_MORE_STOP_WORDS = ("did", "does", "doing", "just", "got", "really", "thing", "things", "way", "lot")
# In a corpus of at least this many documents, a term must occur in two of them and in at most a third.
_CORPUS_TO_FILTER = 20
_LARGEST_SHARE = 3
_FEWEST_TOKENS = 3  # different ones, of a sentence worth quoting
_CHUNK = 4096  # documents whose tokens are in memory at once


def key_terms_and_sentences(
    parts: pl.DataFrame, documents: int, term_count: int, sentence_count: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Pick the best terms and sentences of each document.

    Parameters
    ----------
    parts
        The documents' texts, sorted by document: document (from 0), weight (how often each word counts), quotable
        (whether its sentences may be picked), text.
    documents
        Number of documents, those without a text included.

    Returns
    -------
    terms, sentences
        Per document: terms, best first; sentences, in the order of the text.
    """
    counts = [_tokens(chunk).group_by("document", "token").agg(pl.col("weight").sum()) for chunk in _chunks(parts)]
    if not counts:
        return [[] for _ in range(documents)], [[] for _ in range(documents)]
    terms = _best_terms(pl.concat(counts), documents, term_count)
    sentences = pl.concat(
        [_best_sentences(chunk.filter("quotable"), terms, sentence_count) for chunk in _chunks(parts)]
    )
    return _lists(terms, "token", documents), _lists(sentences, "text", documents)


def _chunks(parts: pl.DataFrame) -> Iterator[pl.DataFrame]:
    count = int(parts["document"][-1]) + 1 if parts.height else 0
    for start in range(0, count, _CHUNK):
        yield parts.filter(pl.col("document").is_between(start, start + _CHUNK, closed="left"))


def _tokens(texts: pl.DataFrame) -> pl.DataFrame:
    """`texts` with one row per word of `text`, in lower case and without stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = pl.col("text").str.to_lowercase().str.replace_all(_CONTRACTION, "").str.extract_all(_TOKEN)
    return (
        texts.with_columns(token=words)
        .drop("text")
        .explode("token")
        .filter(pl.col("token").is_not_null() & ~pl.col("token").is_in([*ENGLISH_STOP_WORDS, *_MORE_STOP_WORDS]))
    )


def _best_terms(counts: pl.DataFrame, documents: int, limit: int) -> pl.DataFrame:
    """(document, token, score) of the best `limit` terms of each document, best first.

    The score is (1 + ln tf) (1 + ln((1 + n) / (1 + df))), in thousandths.
    """
    frequency = counts.group_by("token").agg(df=pl.len())
    if documents >= _CORPUS_TO_FILTER:
        frequency = frequency.filter(pl.col("df").is_between(2, documents // _LARGEST_SHARE))
    importance = (1 + pl.col("weight").log()) * (1 + ((1 + documents) / (1 + pl.col("df"))).log())
    return (
        counts.join(frequency, on="token")
        .select("document", "token", score=(1000 * importance).round().cast(pl.Int64))
        .sort("document", "score", "token", descending=[False, True, False])
        .group_by("document", maintain_order=True)
        .head(limit)
    )


def _best_sentences(texts: pl.DataFrame, terms: pl.DataFrame, limit: int) -> pl.DataFrame:
    """(document, text) of the best `limit` sentences of each document, in the order of the text.

    The score is the sum of the scores of the key terms in the sentence over the root of its number of tokens.
    """
    sentences = (
        texts.select("document", pl.col("text").str.replace_all(_SENTENCE_END, "${1}\n").str.split("\n"))
        .explode("text")
        .unique(["document", "text"], keep="first", maintain_order=True)
        .with_row_index("sentence")
    )
    tokens = _tokens(sentences)
    lengths = tokens.group_by("sentence").agg(tokens=pl.len(), distinct=pl.col("token").n_unique())
    best = (
        tokens.unique(["sentence", "token"])
        .join(terms, on=["document", "token"])
        .group_by("document", "sentence")
        .agg(pl.col("score").sum())
        .join(lengths.filter(pl.col("distinct") >= _FEWEST_TOKENS), on="sentence")
        .with_columns(pl.col("score") / pl.col("tokens").sqrt())
        .sort("document", "score", "sentence", descending=[False, True, False])
        .group_by("document", maintain_order=True)
        .head(limit)
    )
    return (
        sentences.join(best.select("sentence"), on="sentence", how="semi").sort("sentence").select("document", "text")
    )


def _lists(rows: pl.DataFrame, column: str, documents: int) -> list[list[str]]:
    lists: list[list[str]] = [[] for _ in range(documents)]
    for document, text in rows.select("document", column).iter_rows():
        lists[document].append(text)
    return lists
