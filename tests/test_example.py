"""The example app's own tests pass when its folder is copied elsewhere, on every driver."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import DRIVERS, Servers

EXAMPLE = Path(__file__).parent.parent / "assets" / "example"


@pytest.mark.parametrize(
    ("backend", "driver"),
    [
        pytest.param(backend, driver, id=f"{backend}-{driver}")
        for backend, drivers in DRIVERS.items()
        for driver in drivers
    ],
)
def test_example(servers: Servers, tmp_path: Path, backend: str, driver: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    url = servers.create_for_test(backend, tmp_path, driver)

    # The copy's settings come from here alone, not from the developer's own variables.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DATABASE_", "PYTEST_", "PYTHONPATH"))
    }
    environment["TEST_DATABASE_URL"] = url.render_as_string(hide_password=False)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        servers.drop(url)

    assert result.returncode == 0, result.stdout + result.stderr
    # It ran, and on this database.
    assert f"database: {backend}+{driver}://" in result.stdout
    summary = re.search(r"=+ (\d+) passed in [\d.]+s", result.stdout)
    assert summary, result.stdout
    assert int(summary[1]) >= 30
