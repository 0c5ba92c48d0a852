"""Initial values of a method's own modules: functions for `module.apply`, never for a student or a teacher."""

from torch import nn

SPREAD = 0.02  # standard deviation of truncated normal weights, of class tokens and of mask tokens


def xavier(module: nn.Module) -> None:
    """As MAE's decoder: linear maps Xavier uniform, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def as_spark(module: nn.Module) -> None:
    """As SparK's decoder: transposed convolutions Kaiming-normal by fan-out, convolutions and linear maps truncated
    normal, biases zero. Norms start at one and zero by themselves."""
    if isinstance(module, nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=SPREAD)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def as_ofa(module: nn.Module) -> None:
    """As OFA's branches: convolutions Kaiming-normal by fan-out, linear maps truncated normal, norms one, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=SPREAD)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
