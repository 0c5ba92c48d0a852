"""What a spec names, as objects: its data, the split that it reports on, and weights for its models."""

from collections.abc import Mapping
from pathlib import Path

from hkd import registry
from hkd.data import DATASETS
from hkd.data.base import DataSet, Split
from hkd.data.kept import keep_also_in
from hkd.errors import UserError
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights
from hkd.spec import DataSpec, RunSpec, Weights
from hkd.training.job import Runtime
from hkd.training.rng import seed_all


def open_data(spec: DataSpec, runtime: Runtime) -> tuple[DataSet, str]:
    """The data set of a spec, and the fingerprint of its content.

    Raises:
        UserError: unknown, missing, or not what it was when the run was planned.
    """
    keep_also_in(runtime.cache_dir)
    data: DataSet = registry.load(registry.lookup("data set", spec.name, DATASETS))(spec.options, runtime.data_root)
    if sentence := data.missing():
        raise UserError(sentence)
    found = data.fingerprint()
    if spec.fingerprint is not None and found != spec.fingerprint:
        raise UserError(
            f"The data set '{spec.name}' in {runtime.data_root} is not the one this run was planned with; plan again."
        )
    return data, found


def evaluation_split(spec: RunSpec, data: DataSet, runtime: Runtime) -> Split:
    """The split whose accuracy a run reports: test, or validation while settings are chosen."""
    select = spec.evaluate_on == "val"
    return data.load(spec.evaluate_on, seed=spec.seed, select=select, on_corrupt=runtime.on_corrupt)


def give_weights(model: TapModel, source: Weights, weights: Mapping[str, Path]) -> None:
    """Fill a model: from the file of a run or the one given, or, where asked for by name, with random weights.

    Raises:
        UserError: the file is missing, damaged, of another architecture, or of another hash than the spec names.
    """
    if source.kind == "random":
        seed_all(int(source.id), "init")
        fresh = TapModel(model.card, model.info.classes)
        model.net.load_state_dict(fresh.net.state_dict())
        return
    if source.id not in weights:
        raise UserError(f"No file was given for the weights '{source.id}' of {model.card.name}.")
    load_weights(model.net, weights[source.id], source.id if source.kind == "file" else None)
