"""The units of the library: everything that a run enters by name, with the module in which its code begins."""

from hkd.data import DATASETS
from hkd.methods import METHODS
from hkd.models import FAMILIES
from hkd.registry import lookup
from hkd.spec import RunSpec
from hkd.tasks import TASKS

KINDS = {"task": TASKS, "method": METHODS, "family": FAMILIES, "data": DATASETS}


def units() -> dict[str, str]:
    """The entry module of every unit: `{"method/kd": "hkd.methods.kd", ...}`. Imports no torch."""
    return {
        f"{kind}/{name}": path.partition(":")[0]
        for kind, registry in KINDS.items()
        for name, path in sorted(registry.items())
    }


def units_of(spec: RunSpec) -> dict[str, str]:
    """The units that a run enters, as `units` gives them.

    Raises:
        UserError: a name that no registry has.
    """
    families = {spec.student.family, *(teacher.model.family for teacher in spec.teachers.values())}
    named = [
        ("task", "task", spec.task),
        ("method", "method", spec.method.name),
        ("data", "data set", spec.data.name),
        *(("family", "model family", family) for family in sorted(families)),
    ]
    return {f"{kind}/{name}": lookup(what, name, KINDS[kind]).partition(":")[0] for kind, what, name in named}
