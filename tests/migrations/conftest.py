"""Tests with a `backend` argument run once on each of the chosen databases."""

import pytest

from tests.databases import DATABASES


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*databases): the test is about these databases")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    chosen = str(metafunc.config.getoption("--databases")).split(",")
    only = metafunc.definition.get_closest_marker("only")
    metafunc.parametrize(
        "backend",
        [
            pytest.param(each, marks=getattr(pytest.mark, each))
            for each in DATABASES
            if each in chosen and (only is None or each in only.args)
        ],
    )
