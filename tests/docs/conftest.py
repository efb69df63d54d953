"""For all tests of fetch_docs: an internet that is not there."""

from collections.abc import Generator

import pytest

from .server import Internet


@pytest.fixture
def internet() -> Generator[Internet]:
    """Sites that a test makes; only who has its `environment()` comes to them."""
    with Internet() as internet:
        yield internet


@pytest.fixture
def online(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> Internet:
    """The same, and this process (and what it starts) has the environment."""
    for name, value in internet.environment().items():
        monkeypatch.setenv(name, value)
    return internet
