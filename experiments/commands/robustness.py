"""`hkd robustness`: the finished classifiers of a table, measured further."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from experiments.commands import tables
from experiments.commands.app import app
from experiments.commands.given import Whole
from experiments.planning import again, schema
from experiments.planning.own import known_name


@app.command
def robustness(
    table: str,
    *,
    profile: str | None = None,
    seeds: Whole | None = None,
    workers: Annotated[Whole | None, Parameter(validator=Number(gte=0))] = None,
    data: Path | None = None,
    yes: Annotated[bool, Parameter(env_var="HKD_YES")] = False,
) -> int:
    """Measure the classifiers that a table has trained on corrupted images, and how well calibrated they are.

    What is trained is not trained again: `hkd run TABLE` first, or what is missing is trained now. The same as
    `hkd run TABLE_robustness`; `hkd show` and `hkd plan` take that name too.

    Args:
        table: name of the table, or a file of your own (TABLE.yaml).
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        workers: processes; the default is one per core, or per GPU where the profile uses GPUs; 0 runs in this process.
        data: folder of the data sets; the default is $HKD_DATA, then data/.
        yes: do not ask before many GPU-hours (batch jobs cannot answer).
    """
    name = known_name("tables", table, schema.names("tables"))
    schema.load_table(name)  # whose name may be wrong
    return tables.run(name + again.SUFFIX, profile=profile, seeds=seeds, workers=workers, data=data, yes=yes)
