"""A lock that lets requests hang, each with its connection."""

from collections.abc import Generator
from contextlib import contextmanager

import psycopg
import pymysql

from tests.clusters import PostgresCluster, Server


@contextmanager
def locked_table(server: Server) -> Generator[None]:
    """Whoever wants to write to `team` waits, holding a connection."""
    if isinstance(server, PostgresCluster):
        with psycopg.connect(str(server.url("", user="postgres"))) as connection:
            connection.execute("LOCK TABLE team IN SHARE MODE")
            yield
    else:
        with pymysql.connect(
            host=server.host, port=server.port, user="admin", password="admin", database="app"
        ) as connection:
            connection.cursor().execute("LOCK TABLES team READ")
            yield


def waiting(server: Server) -> int:
    """How many of the app's connections wait for that lock."""
    if isinstance(server, PostgresCluster):
        return server.backends("usename = 'app' AND wait_event_type = 'Lock'")
    return server.backends("user = 'app' AND state LIKE '%lock%'")
