"""The plan that a user asked for: by the command line, and by params.yaml where it says nothing."""

from experiments.planning.own import known_name
from experiments.planning.plan import Plan, plan
from experiments.planning.schema import load_params, names, profile_for
from experiments.records import committed
from experiments.records.store import Store


def planned(
    table: str, profile: str | None = None, seeds: int | None = None, *, shown_from: Store | None = None
) -> Plan:
    """A table's plan; what is not given comes from params.yaml.

    Args:
        table, profile, seeds: as for `plan`.
        shown_from: the plan is only to be looked at, with the records of this store: where it has none of them and
            those in the repository are of another kind of device, under whose names their runs are, it is of that kind.
    """
    params = load_params()
    if profile is None:
        profile = profile_for(table)
    else:
        known_name("profiles", profile, names("profiles"))  # first, as a user's own table may use what it has

    def make(kind: str | None = None) -> Plan:
        count = params.seeds if seeds is None else seeds
        return plan(table, params.profile if profile is None else profile, count, recipe=params.recipe, kind=kind)

    found = make()
    if shown_from is not None and (kind := committed.kind_of(found)) != found.kind:
        return found if shown_from.load_all(found.runs) else make(kind)
    return found
