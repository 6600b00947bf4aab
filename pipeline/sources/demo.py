"""Made data with planted interests, written as raw Amazon files and read back by the same readers.

Texts and image vectors follow from planted places, so what a method should find is known (`pipeline.sources.planted`).
"""

from pathlib import Path

from pipeline.files import atomic_path
from pipeline.settings import DemoSource
from pipeline.sources import Progress
from pipeline.sources.amazon import read_files
from pipeline.sources.demo_files import image_bytes, metadata_bytes, review_bytes
from pipeline.sources.planted import planted
from pipeline.sources.writer import RawWriter


def write_demo(settings: DemoSource, folder: Path) -> tuple[Path, Path, Path]:
    """Write the demo's raw files: the same settings give the same bytes.

    As published files do, they hold items without some fields, items with the same text, pairs reviewed twice,
    metadata given twice, and a few broken lines.

    Returns
    -------
    Paths of the reviews and the metadata (2018 JSON lines, gzip) and of the image features (2014 binary).
    """
    truth = planted(settings)
    contents = {
        "reviews_Demo.json.gz": review_bytes(truth, settings.seed),
        "meta_Demo.json.gz": metadata_bytes(truth, settings.seed),
        "image_features_Demo.b": image_bytes(truth, settings.seed),
    }
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    reviews, metadata, images = (folder / name for name in contents)
    return reviews, metadata, images


def read(source: DemoSource, writer: RawWriter, downloads: Path, progress: Progress | None = None) -> None:
    """Write the demo's raw files and read them into the raw tables."""
    folder = downloads / f"demo-{source.users}-users-{source.items}-items-seed-{source.seed}"
    read_files(*write_demo(source, folder), writer, progress)
