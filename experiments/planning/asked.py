"""The plan that a user asked for: by the command line, and by params.yaml where it says nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.planning.own import known_name
from experiments.planning.plan import Plan, plan
from experiments.planning.schema import check_recipe, load_params, names, profile_for
from experiments.records import committed
from experiments.records.store import Store
from hkd.errors import UserError


def planned(
    table: str,
    profile: str | None = None,
    seeds: int | None = None,
    *,
    recipe: Mapping[str, Any] | None = None,
    shown_from: Store | None = None,
) -> Plan:
    """A table's plan; what is not given comes from params.yaml.

    Args:
        table, profile, seeds: as for `plan`.
        recipe: fields of every student's recipe to override, beside those of params.yaml.
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
        fields = {**params.recipe, **(recipe or {})}
        return plan(table, params.profile if profile is None else profile, count, recipe=fields, kind=kind)

    found = make()
    if shown_from is not None and (kind := committed.kind_of(found)) != found.kind:
        return found if shown_from.load_all(found.runs) else make(kind)
    return found


def fields_of(given: Sequence[str]) -> dict[str, Any]:
    """Fields of recipes as the command line has them: `epochs=1`, `crop_scale=[0.2,1.0]`.

    Raises:
        UserError: not a field with a value, or a value that it cannot have.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"--override {text}: give a field of a recipe and its value, such as epochs=1.")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    check_recipe(found, lambda loc, message: UserError(f"--override: {message}"))
    return found
