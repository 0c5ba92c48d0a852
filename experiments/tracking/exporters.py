"""Runs for other people's tools: curves, metrics and settings, in TensorBoard's, MLflow's or Weights & Biases' files.

Nothing is sent anywhere: each writes below a folder that the tool opens (`tensorboard --logdir`, `mlflow ui
--backend-store-uri`, `wandb sync`). The packages are imported when they are asked for, and are no requirement.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.records.committed import Curves
from experiments.records.store import Record
from experiments.tracking.comparing import flat
from hkd.errors import UserError

PROJECT = "hkd"  # experiment in MLflow, project in Weights & Biases
PARAMETER = 500  # letters that MLflow takes as a value


def needed(name: str, package: str) -> ModuleType:
    """A module of a package that may not be installed.

    Raises:
        UserError: it is not; the sentence says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{package} cannot be imported here ({error}); `pip install {package}` gets it, then give the same command."
        ) from None


def settings(record: Record) -> dict[str, str | int | float]:
    """The spec of a run as flat names with plain values, and where it ran."""
    found: dict[str, str | int | float] = {"key": record.key, "status": record.status}
    environment = {name: record.environment.get(name, "") for name in ("commit", "device", "cpu")}
    for name, value in (flat(record.spec) | environment).items():
        found[name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return found


def points(record: Record, curves: Curves) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Epoch, Unix seconds and the finite values of each line of the curves.

    Lines know how long an epoch trained and not when it ended: the run began where these lengths say.
    """
    at = record.started
    for line in curves:
        seconds = line.get("seconds", 0.0)
        at += seconds if type(seconds) in (int, float) and math.isfinite(seconds) else 0.0
        held = {
            name: float(value) for name, value in line.items() if name not in ("epoch", "seconds") and finite(value)
        }
        yield int(line["epoch"]), min(at, record.finished or at), held


def finite(value: Any) -> bool:
    """Whether a value is a number that tools can draw."""
    return type(value) in (int, float) and math.isfinite(value)


def to_tensorboard(record: Record, curves: Curves, folder: Path) -> Path:
    """An event file below `folder/KEY`: scalars by epoch, settings with the metrics, and the settings as text."""
    needed("tensorboard", "tensorboard")
    writer = needed("torch.utils.tensorboard", "tensorboard").SummaryWriter(log_dir=str(folder / record.key))
    last = 0
    for epoch, at, values in points(record, curves):
        last = epoch
        for name, value in values.items():
            writer.add_scalar(name, value, global_step=epoch, walltime=at)
    for name, value in record.metrics.items():
        writer.add_scalar(f"final/{name}", value, global_step=last, walltime=record.finished)
    text = "\n".join(f"    {name}: {value}" for name, value in {"label": record.label, **settings(record)}.items())
    writer.add_text("settings", text, global_step=0, walltime=record.finished)
    writer.close()
    return folder / record.key


def to_mlflow(record: Record, curves: Curves, folder: Path) -> Path:
    """A run of the experiment `hkd` in `folder/mlflow.db`: parameters, metrics by epoch, and its times and end."""
    entities, client = needed("mlflow.entities", "mlflow"), needed("mlflow.tracking", "mlflow").MlflowClient
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder.resolve()
    there = client(tracking_uri=f"sqlite:///{whole / 'mlflow.db'}")  # plain files are what MLflow is leaving
    experiment = there.get_experiment_by_name(PROJECT)
    if experiment is None:
        number = there.create_experiment(PROJECT, artifact_location=(whole / "artifacts").as_uri())
    else:
        number = experiment.experiment_id
    tags = {"mlflow.runName": record.label, "hkd.key": record.key}
    run = there.create_run(number, start_time=round(1e3 * record.started), tags=tags, run_name=record.label).info.run_id
    held = settings(record)
    parameters = [entities.Param(name, str(value)[:PARAMETER]) for name, value in held.items()]
    measured = [
        entities.Metric(name, value, round(1e3 * at), epoch)
        for epoch, at, values in points(record, curves)
        for name, value in values.items()
    ]
    measured += [
        entities.Metric(name, value, round(1e3 * record.finished), 0) for name, value in record.metrics.items()
    ]
    for start in range(0, max(len(parameters), 1), 100):  # as many as one call takes
        there.log_batch(run, params=parameters[start : start + 100])
    for start in range(0, max(len(measured), 1), 1000):
        there.log_batch(run, metrics=measured[start : start + 1000])
    state = "FINISHED" if record.status == "done" else "FAILED"
    there.set_terminated(run, status=state, end_time=round(1e3 * record.finished))
    return folder


def to_wandb(record: Record, curves: Curves, folder: Path) -> Path:
    """An offline run below `folder/wandb`, which `wandb sync` sends if its owner wants that."""
    wandb = needed("wandb", "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        mode="offline",
        project=PROJECT,
        dir=str(folder),
        id=record.key,
        name=record.label,
        config=settings(record),
        reinit="finish_previous",
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True),
    )
    for epoch, _, values in points(record, curves):
        run.log(values, step=epoch)
    run.summary.update(record.metrics)
    run.finish(exit_code=0 if record.status == "done" else 1)
    return folder / "wandb"


EXPORTERS: dict[str, Callable[[Record, Curves, Path], Path]] = {
    "tensorboard": to_tensorboard,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}
