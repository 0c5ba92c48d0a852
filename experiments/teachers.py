"""Teachers with their identities: what they are, where from, under which licence, and how good, published and measured.

The manifest (experiments/manifests/teachers.yaml) holds what is known of the papers' teachers; measured accuracies come
from the runs of a profile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from ruamel.yaml import YAML

from experiments import places
from experiments.planning import schema
from experiments.planning.plan import cached_sha256, plan
from experiments.planning.schema import TeacherEntry, TeacherMapping
from experiments.records import committed
from experiments.records.store import Record, Store
from hkd.files import atomic_write
from hkd.models.cards.zoo import ZOO
from hkd.registry import lookup
from hkd.spec import ModelCard


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """One teacher of a profile.

    measured: (metric, value in percent) of its run, None if there is none yet. committed: as `Record.committed`.
    """

    name: str  # slug or slug@data
    card: ModelCard
    made: str  # how this profile gets it
    entry: TeacherEntry
    sha256: str | None  # of the file on this machine, else of the manifest
    measured: tuple[str, float] | None
    committed: str | None = None


def teachers(profile: str, store: Store) -> Iterator[TeacherFacts]:
    """Every teacher of a profile, in its order, with what its runs have measured.

    Args:
        profile: name of a profile.
        store: of the runs.
    """
    chosen, known = schema.load_profile(profile), schema.load_manifest().teachers
    records = run_records(profile, store)
    for name, mapping in chosen.teachers.items():
        slug = name.partition("@")[0]
        if slug not in chosen.models:
            continue
        record = records.get(name)
        values = record.metrics if record is not None and record.status == "done" else {}
        file = places.weights() / mapping.weights if mapping.weights else None
        entry, origin = known.get(name, TeacherEntry()), known.get(slug, TeacherEntry())
        fields = {"weights": entry.weights or origin.weights, "licence": entry.licence or origin.licence}
        yield TeacherFacts(
            name=name,
            card=lookup("model", chosen.models[slug], {**ZOO, **chosen.cards}),
            made=how_made(mapping),
            entry=entry.model_copy(update=fields),
            sha256=cached_sha256(file) if file and file.is_file() else entry.sha256 or origin.sha256,
            measured=next(
                (
                    (f"{metric} of a linear probe" if mapping.probe else metric, values[metric])
                    for metric in ("top1", *values)
                    if metric in values
                ),
                None,
            ),
            committed=record.committed if record is not None else None,
        )


def how_made(mapping: TeacherMapping) -> str:
    """How a profile gets a teacher, in a few words."""
    if mapping.random:
        return "random weights"
    if mapping.recipe is None:
        return f"{mapping.weights}"
    return f"recipe {mapping.recipe}" + (f" from {mapping.weights}" if mapping.weights else "")


def run_records(profile: str, store: Store) -> dict[str, Record]:
    """The runs that measured a profile's teachers, by slug or slug@data, as far as tables use them.

    Those of this machine; else those that are committed with a table.
    """
    found: dict[str, Record] = {}
    chosen = schema.load_profile(profile)
    for name in schema.table_ids():
        here = plan(name, profile, 1)
        path = committed.path_of(places.references(), profile, name)
        file = committed.read(path) if path.is_file() else None
        there = here if file is None or file.kind == here.kind else plan(name, profile, 1, kind=file.kind)
        for entry, key in here.teachers.items():
            record = store.load(key) or (file.record(there.teachers[entry]) if file else None)
            if record is not None:
                found[entry if entry in chosen.teachers else entry.partition("@")[0]] = record
    return found


def stated_sha256(model: str) -> str | None:
    """What the manifest says is the name of a model's published weights; None where it does not know."""
    pretrained = ZOO[model].pretrained if model in ZOO else None
    entries = schema.load_manifest().teachers.values()
    return next((entry.sha256 for entry in entries if pretrained and entry.weights == pretrained), None)


def record_sha256(model: str, digest: str) -> bool:
    """Write the SHA-256 of fetched weights into the manifest, if it names these and has none yet.

    Args:
        model: name of the model in hkd/models/cards/zoo.py.
        digest: SHA-256 in hex.

    Returns:
        Whether the manifest now holds this digest: False if it does not name the weights or holds another one.

    Raises:
        UserError: the manifest is not what it should be.
    """
    yaml = YAML(typ="rt")
    yaml.width, yaml.preserve_quotes = 4096, True
    path = schema.HERE / "manifests" / "teachers.yaml"
    held = schema.plain(schema.parsed(path, schema.where("manifests", "teachers")))
    schema.validated(schema.Manifest, held, partial(schema.complaint, "manifests", "teachers"))
    content = yaml.load(path.read_text(encoding="utf-8-sig"))
    entry = next((e for e in content["teachers"].values() if e.get("weights") == ZOO[model].pretrained), None)
    if entry is None or entry.get("sha256") not in (None, digest):
        return False
    if entry.get("sha256") is None:
        entry["sha256"] = digest
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
    return True
