"""How long a look-up takes: `make docs-times`. Cold: an empty cache, the download included; warm:
the whole process, as plain Python and under `uv run`. Wall-clock seconds; median (and range).
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_docs.py"
QUERIES = {
    "sqlalchemy": "eager load a collection with AsyncSession",
    "alembic": "rename a column without losing data",
    "sqlmodel": "read a relationship with an async session",
    "fastapi": "dependency with yield and exceptions",
}
COLD, WARM = 3, 15


def seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return taken


def shown(values: list[float]) -> str:
    return f"{median(values):6.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    print(f"{'library':12}{'cold, s':>20}{'warm, s':>20}{'warm under uv run, s':>24}")
    for library, query in QUERIES.items():
        question = [str(SCRIPT), library, query]
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"ASYNC_SQLMODEL_DOCS_CACHE": f"{cache}/docs"}
            cold: list[float] = []
            for _ in range(COLD):
                shutil.rmtree(f"{cache}/docs", ignore_errors=True)
                cold.append(seconds([sys.executable, *question], environment))
            warm = [seconds([sys.executable, *question], environment) for _ in range(WARM)]
            in_uv = [uv, "run", "--no-project", *question]
            seconds(in_uv, environment)  # the first run makes the environment
            under_uv = [seconds(in_uv, environment) for _ in range(WARM)]
        print(f"{library:12}{shown(cold):>20}{shown(warm):>20}{shown(under_uv):>24}", flush=True)


if __name__ == "__main__":
    main()
