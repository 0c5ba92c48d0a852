"""Options of `pytest --pyargs hkd.contract`, as a plugin of pytest: it reads options before it finds tests.

Not a module of `hkd`, which a checker of shapes must see imported after it has started (`--jaxtyping-packages`).
"""

import json

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is looked at, and how."""
    group = parser.getgroup("hkd.contract", "the contract of a distillation method")
    group.addoption("--method", help="a name that `hkd methods` lists, or a dotted path: my_pkg.my_file:MyMethod")
    group.addoption("--method-options", default="{}", help="as JSON, where defaults do not fit images of 32 px")
    group.addoption("--student-family", default="resnet", help="one that the method serves (default: resnet)")
    group.addoption("--label-free", action="store_true", help="the method pre-trains without labels")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse in a sentence a method that there is not, and options that cannot be."""
    if (name := config.getoption("--method")) is None:
        return
    from hkd.errors import UserError
    from hkd.methods.base import method_of
    from hkd.options import configured

    pytest.register_assert_rewrite("hkd.contract.checks")
    try:
        options = json.loads(config.getoption("--method-options"))
    except ValueError as error:
        raise pytest.UsageError(f"--method-options is no JSON ({error}); such as '{{\"width\": 16}}'.") from None
    try:
        configured(method_of(name).Config, f"Method '{name}'", options)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    except TypeError:
        raise pytest.UsageError("--method-options must be names with values, such as '{\"width\": 16}'.") from None
