"""A process that has imported the slow libraries and forks a child for each section.

Protocol on stdin and stdout, one JSON line each way: a job goes in; `{"pid": ...}` comes
back at once, and the result, or `{"died": status}`, when the child has ended.
"""

import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

PRELOAD = (
    "aiomysql",
    "aiosqlite",
    "alembic.config",
    "asyncpg",
    "black",
    "fastapi",
    "fastapi.testclient",
    "httpx",
    "psycopg",
    "pydantic_settings",
    "pytest",
    "sqlalchemy.dialects.mysql.aiomysql",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlmodel.ext.asyncio.session",
    "uuid6",
)


def main() -> None:
    requests, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes to the pipe
    from . import runner

    for name in PRELOAD:
        with suppress(ImportError):  # a section that needs it will say so
            import_module(name)
    gc.freeze()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())  # past the `finally` below
    for line in requests:
        job = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                _child(runner.run, job, pipe)
            os._exit(0)
        try:
            os.close(write)
            _answer(answers, {"pid": child})
            with os.fdopen(read) as pipe:
                result = pipe.read()
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        finally:  # with what it has started, e.g. a server in the background of a bash block
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        _answer(answers, json.loads(result) if result else {"died": _ended(status)})


def _child(run: Callable[[dict[str, Any]], Any], job: dict[str, Any], pipe: TextIO) -> None:
    log = os.open(Path(job["scratch"], "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        json.dump(run(job), pipe)
    except BaseException:
        json.dump({"died": "an error of the harness", "details": traceback.format_exc()}, pipe)
    sys.stdout.flush()


def _ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


def _answer(stream: TextIO, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
