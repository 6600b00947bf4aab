import json
from pathlib import Path

import polars as pl

from pipeline.settings import DatasetSettings, validate
from pipeline.sources import RawTables, read_source
from pipeline.sources.yelp import business

REVIEW = {"user_id": "u1", "business_id": "b1", "stars": 4.0, "text": "nice\n\ntea", "date": "2018-06-17 12:30:05"}
BUSINESS = {
    "business_id": "b1",
    "name": "Tea & Co",
    "address": "1 High St",
    "city": "Tampa",
    "state": "FL",
    "categories": "Coffee & Tea, Food",
    "attributes": {
        "WiFi": "u'free'",
        "RestaurantsPriceRange2": "2",
        "OutdoorSeating": "True",
        "HasTV": "False",
        "Ambience": "{'romantic': False, 'casual': True, u'hipster': True}",
        "NoiseLevel": "'very_loud'",
        "Alcohol": "u'none'",
    },
}


def read(folder: Path, reviews: list[dict], businesses: list[dict]) -> RawTables:
    source: dict = {"kind": "yelp"}
    for name, records in (("reviews", reviews), ("business", businesses)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        source[name] = {"path": str(folder / name)}
    content = {"title": "t", "source": source, "raw": {"max_bad_share": 1}}
    return read_source(validate(DatasetSettings, content, "test"), folder / "out", folder)


def test_reviews_and_businesses(tmp_path):
    reviews = [REVIEW, REVIEW | {"date": "yesterday"}, REVIEW | {"user_id": None}]
    tables = read(tmp_path, reviews, [BUSINESS])
    assert pl.read_parquet(tables.reviews).rows() == [("u1", "b1", 4.0, 1529238605, None, "nice tea", None)]
    assert tables.rejected == {"reviews": {"date is not a time": 1, "missing user_id": 1}}
    item = pl.read_parquet(tables.items).row(0, named=True)
    assert item["title"] == "Tea & Co"
    assert item["categories"] == ["Coffee & Tea", "Food"]
    assert item["price"] == "$$"
    assert item["description"] == (
        "1 High St, Tampa, FL. wi fi: free, outdoor seating, ambience: casual and hipster, noise level: very loud"
    )


def test_business_with_nothing_but_an_id():
    assert business({"business_id": "b1", "attributes": None, "categories": None}) == ("b1", *[None] * 5)
    assert business({"business_id": "b1", "attributes": {"WiFi": "not a literal("}})[2] == "wi fi: not a literal("
