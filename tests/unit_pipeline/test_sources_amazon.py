import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.settings import DatasetSettings, validate
from pipeline.sources import RawTables, SourceError, read_source
from pipeline.sources.amazon import IMAGE_SIZE, item, review
from pipeline.sources.lines import MAX_LINE_BYTES

REVIEW = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1529193600, "reviewText": "good"}


def read(folder: Path, bad_share: float = 1.0, **files: bytes) -> RawTables:
    source: dict = {"kind": "amazon"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        source[name] = {"path": str(folder / name)}
    content = {"title": "t", "source": source, "raw": {"max_bad_share": bad_share}}
    return read_source(validate(DatasetSettings, content, "test"), folder / "out", folder / "downloads")


def json_lines(*records: dict) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def image(asin: str, values: np.ndarray) -> bytes:
    return asin.encode().ljust(10) + values.astype("<f4").tobytes()


def test_reviews_and_metadata_of_2018(tmp_path):
    metadata = {
        "asin": "B1",
        "title": "Gift &amp; Card",
        "description": ["<b>Good</b> for", "a <br/>year, 1 &lt; 2 &lt;br&gt;"],
        "category": ["Gift Cards", "<span>Cards</span>", "</span>", "Gift Cards"],
        "brand": "",
        "price": "$5.00",
    }
    tables = read(tmp_path, reviews=json_lines(REVIEW), metadata=json_lines(metadata))
    assert pl.read_parquet(tables.reviews).rows() == [("A1", "B1", 5.0, 1529193600, None, "good", None)]
    assert pl.read_parquet(tables.items).rows() == [
        ("B1", "Gift & Card", "Good for a year, 1 < 2", ["Gift Cards", "Cards"], None, "$5.00")
    ]


def test_python_literal_metadata_of_2014_in_gzip(tmp_path):
    line = "{'asin': 'B1', 'title': \"Baby's\", 'price': 12.99, 'categories': [['Baby', 'Seats'], ['Toys', 'Baby']]}\n"
    tables = read(tmp_path, reviews=gzip.compress(json_lines(REVIEW)), metadata=gzip.compress(line.encode()))
    assert tables.rows == {"reviews": 1, "items": 1, "profiles": 0, "images": 0, "quarantine": 0}
    assert pl.read_parquet(tables.items).row(0) == ("B1", "Baby's", None, ["Baby", "Seats", "Toys"], None, "12.99")


def test_every_raw_table_exists_with_its_columns(tmp_path):
    tables = read(tmp_path, reviews=json_lines(REVIEW))
    assert pl.read_parquet(tables.items).schema["categories"] == pl.List(pl.String)
    assert pl.read_parquet(tables.images).schema == {"item": pl.String, "vector": pl.Array(pl.Float32, 1)}
    assert pl.read_parquet(tables.profiles).columns == ["kind", "id", "profile"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.parquet" for name in ("reviews", "items", "profiles", "images", "quarantine")
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"reviewerID": "A1", ', "neither JSON nor a Python literal"),
        (b"[1, 2]", "not an object"),
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b"{'a': __import__('os').getcwd()}", "neither JSON nor a Python literal"),
        (b"[" * 100_000, "neither JSON nor a Python literal"),
        (b'{"asin": "B1"}', "missing reviewerID"),
        (b'{"reviewerID": "A1", "asin": " "}', "missing asin"),
        (b'{"reviewerID": "A1", "asin": "B\\ud800"}', "asin is not valid Unicode"),
        (b'{"reviewerID": "A1", "asin": "B1", "overall": "good"}', "overall is not a number"),
        (b'{"reviewerID": "A1", "asin": "B1", "overall": true}', "overall is not a number"),
        (
            b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1529193600000}',
            "unixReviewTime is not in the years 1970 to 9999 in seconds",
        ),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": "soon"}', "unixReviewTime is not a time"),
        (b'{"reviewerID": "A1", "asin": "B1", "reviewTime": "13 40, 2018"}', "reviewTime is not a time"),
        (b'{"text": "' + b"x" * MAX_LINE_BYTES + b'"}', f"line longer than {MAX_LINE_BYTES} bytes"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "line",
)
def test_malformed_line_is_set_aside_and_the_next_one_read(tmp_path, line, reason):
    good = json_lines(REVIEW)
    tables = read(tmp_path, reviews=good + line + b"\n\n" + good)
    assert tables.rows["reviews"] == 2
    assert tables.read == {"reviews": 3}
    assert tables.rejected == {"reviews": {reason: 1}}
    file, number, found, content = pl.read_parquet(tables.quarantine).row(0)
    assert (file, number, found) == ("reviews", 2, reason)
    assert content == line.decode("utf-8", "replace")[:1000]


def test_too_many_bad_rows_stop_the_run_and_can_be_looked_at(tmp_path):
    good = json_lines(*[REVIEW] * 98)
    read(tmp_path, bad_share=0.02, reviews=good + b"bad\nbad\n")
    earlier = (tmp_path / "out" / "reviews.parquet").read_bytes()
    with pytest.raises(SourceError, match=r"reviews: 3 of 101 rows \(3.0%\).*neither JSON.*\(3\).*raw.max_bad_share"):
        read(tmp_path, bad_share=0.02, reviews=good + b"bad\n" * 3)
    assert pl.read_parquet(tmp_path / "out" / "quarantine.parquet").height == 3
    assert (tmp_path / "out" / "reviews.parquet").read_bytes() == earlier
    assert not list((tmp_path / "out").glob(".*"))


def test_missing_fields_are_null():
    assert review({"reviewerID": "A1", "asin": "B1", "overall": float("nan"), "reviewText": ""}) == (
        *("A1", "B1"),
        *[None] * 5,
    )
    assert item({"asin": "B1", "title": float("nan"), "price": ".a-box{margin: 0 12px}", "category": []}) == (
        "B1",
        *[None] * 5,
    )


def test_day_of_review_is_read_where_there_is_no_time():
    assert review({"reviewerID": "A1", "asin": "B1", "reviewTime": "06 17, 2018"})[3] == 1529193600


def test_script_is_no_title():
    assert item({"asin": "B1", "title": "var aPageStart = (new Date()).getTime();"})[1] is None
    assert item({"asin": "B1", "description": "Soft<style>p{x}</style> wool <script>a<b</script>"})[2] == "Soft wool"


def test_half_a_surrogate_pair_does_not_stop_the_run(tmp_path):
    tables = read(tmp_path, reviews=b'{"reviewerID": "A1", "asin": "B1", "reviewText": "ok \\ud83d"}\n')
    assert pl.read_parquet(tables.reviews)["text"].to_list() == ["ok �"]


def test_first_metadata_row_of_an_item_wins_and_the_second_is_not_bad(tmp_path):
    metadata = json_lines({"asin": "B1", "title": "first"}, {"asin": "B1", "title": "second"})
    tables = read(tmp_path, bad_share=0.0, reviews=json_lines(REVIEW), metadata=metadata)
    assert pl.read_parquet(tables.items)["title"].to_list() == ["first"]
    assert tables.set_aside == {"metadata": {"second row of an item": 1}}
    assert pl.read_parquet(tables.quarantine)["line"].to_list() == [2]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_images_of_reviewed_items_are_read_and_damaged_ones_set_aside(tmp_path, pack):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, IMAGE_SIZE)).astype(np.float32)
    content = (
        image("B1", first)
        + image("OTHER", second)
        + image("B2", np.where(np.arange(IMAGE_SIZE) == 7, np.nan, second))
        + image("B3", second)
        + image("B1", second)
        + image("B4", second)[:5000]
    )
    reviews = json_lines(*(REVIEW | {"asin": name} for name in ("B1", "B2", "B3", "B4")))
    tables = read(tmp_path, reviews=reviews, images=pack(content))
    images = pl.read_parquet(tables.images)
    assert images["item"].to_list() == ["B1", "B3"]
    np.testing.assert_array_equal(images["vector"].to_numpy(), [first, second])
    assert tables.rejected["images"] == {"vector is not finite": 1, "record cut off: 5000 of 16394 bytes": 1}
    assert tables.set_aside["images"] == {"second row of an item": 1, "image of an item without reviews": 1}
    assert pl.read_parquet(tables.quarantine)["line"].to_list() == [3, 5, 6]


def test_images_beyond_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.amazon.RECORDS_AT_ONCE", 2)
    names = [f"B{number}" for number in range(5)]
    reviews = json_lines(*(REVIEW | {"asin": name} for name in names))
    content = b"".join(image(name, np.full(IMAGE_SIZE, place)) for place, name in enumerate(names))
    images = pl.read_parquet(read(tmp_path, reviews=reviews, images=content).images)
    assert images["item"].to_list() == names
    assert images["vector"].to_numpy()[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_gzip_that_is_cut_off_is_named(tmp_path):
    packed = gzip.compress(json_lines(*(REVIEW | {"asin": str(number)} for number in range(1000))))
    with pytest.raises(SourceError, match="reviews: the gzip file is damaged or cut off"):
        read(tmp_path, reviews=packed[:-100])
    assert not list((tmp_path / "out").iterdir())


def test_missing_file_is_named(tmp_path):
    source = {"kind": "amazon", "reviews": {"path": "/nowhere/${NO_SUCH}/reviews.json.gz"}}
    settings = validate(DatasetSettings, {"title": "t", "source": source}, "test")
    with pytest.raises(SourceError, match=r"reviews.json.gz: no such file.*environment variable"):
        read_source(settings, tmp_path, tmp_path)


def test_batches_and_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.writer.BATCH_ROWS", 3)
    monkeypatch.setattr("pipeline.sources.lines.TELL_EVERY", 2)
    (tmp_path / "reviews").write_bytes(json_lines(*(REVIEW | {"asin": str(number)} for number in range(10))))
    source = {"kind": "amazon", "reviews": {"path": str(tmp_path / "reviews")}}
    calls: list[tuple[int, int]] = []
    settings = validate(DatasetSettings, {"title": "t", "source": source}, "test")
    tables = read_source(settings, tmp_path / "out", tmp_path, lambda *call: calls.append(call))
    assert pl.read_parquet(tables.reviews)["item"].to_list() == [str(number) for number in range(10)]
    size = (tmp_path / "reviews").stat().st_size
    assert calls == sorted(calls)
    assert calls[-1] == (size, size)


@pytest.fixture
def gift_cards(tmp_path, shared) -> RawTables:
    folder = shared / "data" / "amazon18-gift-cards"
    source = {
        "kind": "amazon",
        "reviews": {"path": str(folder / "Gift_Cards_5.json.gz")},
        "metadata": {"path": str(folder / "meta_Gift_Cards.json.gz")},
    }
    settings = validate(DatasetSettings, {"title": "t", "source": source}, "test")
    return read_source(settings, tmp_path / "out", tmp_path)


def test_published_gift_cards_are_read_whole(gift_cards):
    assert gift_cards.rows["reviews"] == 2972
    assert gift_cards.rows["items"] == 1547
    assert not gift_cards.rejected
    reviews = pl.read_parquet(gift_cards.reviews)
    assert reviews["user"].n_unique() == 458
    assert reviews["item"].n_unique() == 148
    texts = pl.read_parquet(gift_cards.items).select("title", "description").unpivot()["value"]
    assert not texts.str.contains(r"</?(?:div|br|p|a|span)\b|&amp;|&quot;").any()
