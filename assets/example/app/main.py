"""The application: `uvicorn app.main:app --reload`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import FastAPI

from . import api
from .db import Database, DatabaseSettings
from .db.web import DatabaseDep, add_error_handlers, problems


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    # Here and not at import: the engine belongs to the event loop that serves.
    async with Database(DatabaseSettings()) as database:
        app.state.database = database
        yield


def create_app() -> FastAPI:
    """A new application; its database comes with the lifespan."""
    app = FastAPI(title="Heroes", lifespan=lifespan)
    add_error_handlers(app)
    for router in (api.heroes, api.teams, api.missions):
        app.include_router(router)
    app.add_api_route("/health", health, tags=["health"], responses=problems(503))
    return app


async def health(database: DatabaseDep) -> dict[Literal["status"], Literal["ok"]]:
    """200 when the database answers; else `Unavailable`, which is answered with 503."""
    await database.ping()
    return {"status": "ok"}


app = create_app()
