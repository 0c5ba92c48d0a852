"""Options of `pytest --pyargs hkd.contract`."""

import json

import pytest

from hkd.errors import UserError
from hkd.methods.base import method_of

pytest.register_assert_rewrite("hkd.contract.checks")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is looked at, and how."""
    group = parser.getgroup("hkd.contract", "the contract of a method")
    group.addoption("--method", help="a name that `hkd methods` lists, or a dotted path: my_pkg.my_file:MyMethod")
    group.addoption("--options", default="{}", help="of the method, as JSON, where defaults do not fit images of 32 px")
    group.addoption("--family", default="resnet", help="of students, that the method serves (default: resnet)")
    group.addoption("--label-free", action="store_true", help="the method pre-trains without labels")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse in a sentence what cannot be looked at."""
    name = config.getoption("--method", default=None)
    if name is None:
        raise pytest.UsageError("Name the method: pytest --pyargs hkd.contract --method my_pkg.my_file:MyMethod")
    try:
        method_of(name)
        options = json.loads(config.getoption("--options"))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    except ValueError as error:
        raise pytest.UsageError(f"--options is no JSON ({error}); give it as '{{\"width\": 16}}'.") from None
    if not isinstance(options, dict):
        raise pytest.UsageError("--options are names with values: '{\"width\": 16}'.")
