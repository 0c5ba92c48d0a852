"""What it costs to check what is read: documents, records and folders of images.

Each figure stands beside a reference that was measured in the same process and does the same without the checks, in
`extra_info`: `pytest benchmarks/test_checks.py -o addopts="" --benchmark-only`.
"""

import json
import os
import statistics
import time

from experiments.planning import schema
from experiments.planning.plan import plan
from experiments.records.store import Record, Store
from hkd.data.folder import ClassFolder
from tests.experiments.conftest import Synthetic

CLASSES, EACH = 60, 1000  # of the folder of images


def wall(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_all_tables_are_planned_from_their_files(benchmark):
    """Reported: all tables at `laptop` from their files, against the same with documents that were checked before."""

    def from_files() -> None:
        schema.read.cache_clear()
        schema.document.cache_clear()
        for name in schema.table_ids():
            plan(name, "laptop")

    def checked_before() -> None:
        for name in schema.table_ids():
            plan(name, "laptop")

    def parsed_alone() -> None:
        for folder in ("tables", "profiles", "published", "manifests"):
            for name in schema.names(folder):
                schema.parsed(schema.HERE / folder / f"{name}.yaml", name)

    from_files()
    benchmark.pedantic(from_files, rounds=3)
    reference = statistics.median(wall(checked_before) for _ in range(3))
    parsing = statistics.median(wall(parsed_alone) for _ in range(3))
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        checked_before_s=round(reference, 3), parsing_s=round(parsing, 3), ratio=round(median / reference, 2)
    )


def test_records_are_read_and_verified(benchmark, tmp_path):
    """167 records of a table: digest, fields and kinds of values, against `json.loads` of the same files."""
    store, made = Store(tmp_path), Synthetic.plan()
    records = {key.replace("/", "-"): record for key, record in Synthetic.records(made).items()}
    for key, record in records.items():
        store.write(Record(**{**vars(record), "key": key}))
    paths = [store.folder(key) / "record.json" for key in records]

    def json_alone() -> None:
        for path in paths:
            json.loads(path.read_bytes())

    benchmark.pedantic(store.load_all, (list(records),), rounds=10, warmup_rounds=1)
    reference = statistics.median(wall(json_alone) for _ in range(10))
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(json_s=round(reference, 4), ratio=round(median / reference, 2), records=len(paths))


def test_sixty_thousand_images_are_listed(benchmark, tmp_path):
    """Names, kinds and classes of every file, against `os.walk` over the same folders."""
    for split, each in (("train", EACH), ("test", 1)):
        for label in range(CLASSES):
            folder = tmp_path / "folder" / split / f"class{label:02}"
            folder.mkdir(parents=True)
            for image in range(each):
                (folder / f"{image:04}.jpg").touch()

    def listed() -> int:
        return len(ClassFolder({}, tmp_path).entries("train"))

    def walked() -> int:
        return sum(len(files) for _, _, files in os.walk(tmp_path / "folder" / "train"))

    assert listed() == walked() == CLASSES * EACH
    benchmark.pedantic(listed, rounds=5)
    reference = statistics.median(wall(walked) for _ in range(5))
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(walk_s=round(reference, 3), ratio=round(median / reference, 2), images=CLASSES * EACH)
