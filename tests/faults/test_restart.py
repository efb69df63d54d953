"""The server ends and comes back while clients work."""

import signal
from pathlib import Path
from typing import Literal

import pytest

from tests.clusters import Server

from .conftest import Report
from .harness import Api, eventually, posting, reading, under_load

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restart_under_load(
    server: Server,
    driver: str,
    mode: Literal["fast", "immediate"],
    tmp_path: Path,
    report: Report,
) -> None:
    """While it is away, every answer is 503; then the app goes on by itself.

    `immediate` is a crash. No acknowledged write is lost, no connection stays behind.
    """
    with Api(server.url(driver), tmp_path, pool_size=5, max_overflow=5) as api:
        async with api.client() as client:
            async with under_load(posting(client), reading(client)) as ledger:
                await ledger.more(50)
                server.stop(mode)
                away = ledger.answers[503]
                await ledger.wait_for(lambda: ledger.answers[503] >= away + 20)
                server.start()
                seconds = await ledger.more(50)
            assert (await client.get("/health")).status_code == 200
        assert set(ledger.answers) == {200, 201, 503}
        assert ledger.lost(server) == set()
        assert server.backends() <= 10
        api.terminate()
        assert api.wait() in {0, -signal.SIGTERM}  # uvicorn ends itself with what it got
    await eventually(lambda: server.backends() == 0)
    report(f"{ledger}; lost 0; first write {seconds:.2f} s after the start")
