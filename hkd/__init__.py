"""Heterogeneous knowledge distillation as a library: models with taps, methods, data, and a training loop.

`import hkd` is cheap; each public name is imported when it is first used:

    from hkd import ZOO, Teacher, TapModel, Want
"""

from typing import Any

PUBLIC = {
    "Batch": "hkd.data.batch:Batch",
    "Distiller": "hkd.distiller.module:Distiller",
    "METHODS": "hkd.methods:METHODS",
    "Method": "hkd.methods.base:Method",
    "ModelCard": "hkd.spec:ModelCard",
    "Needs": "hkd.methods.base:Needs",
    "Recipe": "hkd.spec:Recipe",
    "RunSpec": "hkd.spec:RunSpec",
    "TapModel": "hkd.models.tap_model:TapModel",
    "Taps": "hkd.models.taps:Taps",
    "Teacher": "hkd.models.tap_model:Teacher",
    "TimmTask": "hkd.distiller.timm_task:TimmTask",
    "UserError": "hkd.errors:UserError",
    "Want": "hkd.models.taps:Want",
    "ZOO": "hkd.models.cards.zoo:ZOO",
    "from_transformers": "hkd.models.transformers_models:from_transformers",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'hkd' has no attribute '{name}'")
    from hkd.registry import load

    return load(PUBLIC[name])


def __dir__() -> list[str]:
    return sorted(PUBLIC)
