"""SIGTERM while requests are answered."""

import asyncio
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.clusters import PostgresCluster, Server

from .harness import Api, eventually, names
from .locks import locked_table, waiting

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error::DeprecationWarning")]


def refuses(api: Api) -> bool:
    """Whether it takes no more connections: SIGTERM has been noticed."""
    url = httpx.URL(api.url)
    try:
        socket.create_connection((url.host, url.port or 80)).close()
    except ConnectionRefusedError:
        return True
    return False


def note_hang_ups(server: Server) -> None:
    if isinstance(server, PostgresCluster):
        server.configure(log_min_messages="debug1")


def hang_ups(server: Server) -> int:
    """How many clients went without a goodbye: the pool was not closed."""
    if isinstance(server, PostgresCluster):
        return server.log.count("unexpected EOF on client connection")
    return int(server.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1])


async def test_requests_in_progress_are_finished(
    server: Server, driver: str, tmp_path: Path
) -> None:
    """What was accepted is answered, and stored; then the pool is closed and the process ends:
    no connection stays on the server.
    """
    note_hang_ups(server)
    with Api(server.url(driver), tmp_path, pool_size=5, max_overflow=0) as api:
        async with api.client() as client:
            with locked_table(server):
                posts = [
                    asyncio.create_task(client.post("/teams", json={"name": f"team {number}"}))
                    for number in range(5)
                ]
                await eventually(lambda: waiting(server) == 5)
                api.terminate()
                await eventually(lambda: refuses(api))
                assert not any(post.done() for post in posts)
            answers = await asyncio.gather(*posts)
            assert [answer.status_code for answer in answers] == [201] * 5
        # uvicorn ends itself with the signal that it got, after all is closed.
        assert await asyncio.to_thread(api.wait) in {0, -signal.SIGTERM}
    assert names(server) == {f"team {number}" for number in range(5)}
    await eventually(lambda: server.backends() == 0)
    assert hang_ups(server) == 0
    assert "Traceback" not in api.log


async def test_a_request_that_hangs_does_not_keep_the_process(
    server: Server, driver: str, tmp_path: Path
) -> None:
    """DATABASE_REQUEST_TIMEOUT ends it, with 503; then the process ends."""
    with Api(server.url(driver), tmp_path, request_timeout=1) as api:
        async with api.client() as client:
            with locked_table(server):
                post = asyncio.create_task(client.post("/teams", json={"name": "never"}))
                await eventually(lambda: waiting(server) == 1)
                api.terminate()
                assert (await post).status_code == 503
                assert await asyncio.to_thread(api.wait) in {0, -signal.SIGTERM}
                await eventually(lambda: server.backends() == 0)
    assert names(server) == set()
