"""Distillation methods by name, one file each; resolved by hkd.registry on first use."""

METHODS = {
    "supervised": "hkd.methods.supervised:Supervised",
    "kd": "hkd.methods.kd:KD",
    "fd": "hkd.methods.fd:FD",
    "scalekd": "hkd.methods.scalekd:ScaleKD",
}
