import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.db import Database
from app.db.testing import expect_statements
from app.db.web import Problem
from app.main import create_app, lifespan
from app.services import HeroService

pytestmark = pytest.mark.anyio


def http(app: FastAPI) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(app), base_url="http://test")


async def create(client: AsyncClient, path: str, **values: Any) -> int:
    if path == "/heroes":
        values = {"secret_name": "?", **values}
    response = await client.post(path, json=values)
    assert response.status_code == 201, response.text
    created: int = response.json()["id"]
    return created


async def get(client: AsyncClient, path: str, **params: Any) -> Any:
    response = await client.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def names(client: AsyncClient, **params: Any) -> list[str]:
    return [item["name"] for item in (await get(client, "/heroes", **params))["items"]]


async def test_a_hero_comes_with_its_relations(client: AsyncClient) -> None:
    team_id = await create(client, "/teams", name="Preventers")
    mentor_id = await create(client, "/heroes", name="Tarantula")
    hero_id = await create(
        client, "/heroes", name="Spider-Boy", power=40, team_id=team_id, mentor_id=mentor_id
    )
    await create(client, "/heroes", name="Rusty-Man", mentor_id=hero_id)
    for title in ("Rescue", "Escort"):
        mission_id = await create(client, "/missions", title=title)
        path = f"/heroes/{hero_id}/missions/{mission_id}"
        assert (await client.put(path, json={"role": "lead"})).status_code == 200

    with expect_statements(3):  # hero, team and mentor; apprentices; assignments and missions
        hero = await get(client, f"/heroes/{hero_id}")
    assert hero["team"]["name"] == "Preventers"
    assert hero["mentor"]["name"] == "Tarantula"
    assert [each["name"] for each in hero["apprentices"]] == ["Rusty-Man"]
    assert [(each["role"], each["mission"]["title"]) for each in hero["assignments"]] == [
        ("lead", "Rescue"),
        ("lead", "Escort"),
    ]
    assert "secret_name" not in hero

    await client.put(f"/heroes/{mentor_id}/missions/{mission_id}", json={"role": "advice"})
    with expect_statements(2):
        mission = await get(client, f"/missions/{mission_id}")
    assert [each["hero"]["name"] for each in mission["assignments"]] == ["Tarantula", "Spider-Boy"]

    assert (await client.delete(path)).status_code == 204
    assert (await client.delete(path)).status_code == 404
    mission = await get(client, f"/missions/{mission_id}")
    assert [each["role"] for each in mission["assignments"]] == ["advice"]


async def test_team(client: AsyncClient) -> None:
    team_id = await create(client, "/teams", name="Preventers")
    for name in ("Tarantula", "Deadpond"):
        await create(client, "/heroes", name=name, team_id=team_id)

    team = await get(client, f"/teams/{team_id}")
    assert [hero["name"] for hero in team["heroes"]] == ["Deadpond", "Tarantula"]
    age = datetime.now(UTC) - datetime.fromisoformat(team["created_at"])
    assert 0 <= age.total_seconds() < 60

    assert (await client.patch(f"/teams/{team_id}", json={"headquarters": "x"})).status_code == 200
    assert (await get(client, "/teams"))["items"][0]["headquarters"] == "x"
    assert (await client.delete(f"/teams/{team_id}")).status_code == 204
    assert (await get(client, "/heroes", team_id__is_null=True))["total"] == 2


async def test_list_filters_sorts_and_pages(client: AsyncClient) -> None:
    team_id = await create(client, "/teams", name="Preventers")
    mission_id = await create(client, "/missions", title="Rescue")
    deadpond = await create(client, "/heroes", name="Deadpond", power=10, team_id=team_id)
    await create(client, "/heroes", name="Tarantula", power=50)
    await create(client, "/heroes", name="100% Hero", power=90, team_id=team_id)
    await client.put(f"/heroes/{deadpond}/missions/{mission_id}", json={"role": "lead"})

    assert await names(client) == ["100% Hero", "Deadpond", "Tarantula"]
    assert await names(client, order_by="-power") == ["100% Hero", "Tarantula", "Deadpond"]
    assert await names(client, name__icontains="DEAD") == ["Deadpond"]
    assert await names(client, name__icontains="%") == ["100% Hero"]
    assert await names(client, power__gte=10, power__lte=50) == ["Deadpond", "Tarantula"]
    assert await names(client, team_id__is_null=True) == ["Tarantula"]
    assert await names(client, team_id__in=[team_id, 99]) == ["100% Hero", "Deadpond"]
    assert await names(client, team__name="Preventers", power__gte=11) == ["100% Hero"]
    assert await names(client, assignments__mission_id=mission_id) == ["Deadpond"]
    assert (await get(client, "/missions", done=True))["items"] == []
    assert len((await get(client, "/missions", title__icontains="RES"))["items"]) == 1

    with expect_statements(2):  # rows with their teams; total
        page = await get(client, "/heroes", limit=2, offset=1)
    assert [(each["name"], each["team"] and each["team"]["id"]) for each in page["items"]] == [
        ("Deadpond", team_id),
        ("Tarantula", None),
    ]
    assert (page["total"], page["limit"], page["offset"]) == (3, 2, 1)
    assert (await get(client, "/heroes", offset=9)) | {"items": []} == {
        "items": [],
        "total": 3,
        "limit": 50,
        "offset": 9,
        "has_more": False,
    }


async def test_missions_come_page_by_page(client: AsyncClient) -> None:
    done = {"a": True, "b": False, "c": True, "d": False, "e": False}
    for title, value in done.items():
        await create(client, "/missions", title=title, done=value)
    params: dict[str, Any] = {"order_by": ["-done", "title"], "limit": 2}

    seen: list[list[str]] = []
    page = await get(client, "/missions", **params)
    while True:
        seen.append([each["title"] for each in page["items"]])
        if page["next_cursor"] is None:
            break
        page = await get(client, "/missions", cursor=page["next_cursor"], **params)
    assert seen == [["a", "c"], ["b", "d"], ["e"]]

    page = await get(client, "/missions", cursor=page["previous_cursor"], **params)
    assert [each["title"] for each in page["items"]] == seen[1]


async def test_a_cursor_belongs_to_its_order(client: AsyncClient) -> None:
    for title in ("a", "b"):
        await create(client, "/missions", title=title)
    cursor = (await get(client, "/missions", limit=1))["next_cursor"]

    for params in ({"cursor": cursor + "x"}, {"cursor": cursor, "order_by": "done"}):
        response = await client.get("/missions", params=params)
        assert response.status_code == 422
        assert response.headers["content-type"] == "application/problem+json"
        assert "cursor" in response.json()["detail"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"secret_name__startswith": "D"}, "secret_name__startswith"),
        ({"team__heroes__secret_name": "D"}, "team__heroes__secret_name"),
        ({"title__icontains": "x"}, "title__icontains"),  # of missions
        ({"order_by": "secret_name"}, "order_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"offset": -1}, "offset"),
        ({"team_id__in": 2**31}, "team_id__in"),
        ({"power__gte": "strong"}, "power__gte"),
    ],
)
async def test_bad_parameters_are_named(
    client: AsyncClient, params: dict[str, Any], field: str
) -> None:
    response = await client.get("/heroes", params=params)
    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"][:2] == ["query", field]


async def test_parameters_are_documented(client: AsyncClient) -> None:
    paths = (await get(client, "/openapi.json"))["paths"]
    heroes = {each["name"]: each["schema"] for each in paths["/heroes"]["get"]["parameters"]}
    assert set(heroes) == {*HeroService.client_filters, "order_by", "limit", "offset"}
    assert heroes["power__gte"] | {"title": ""} == {
        "type": "integer",
        "minimum": 0,
        "maximum": 100,
        "title": "",
    }
    assert heroes["name__icontains"]["maxLength"] == 100
    assert heroes["order_by"]["items"]["enum"] == ["name", "-name", "power", "-power"]
    missions = [each["name"] for each in paths["/missions"]["get"]["parameters"]]
    assert {"cursor", "done"} <= set(missions)
    assert not {"offset", "power__gte"} & set(missions)


@pytest.mark.parametrize("hero_id", [0, -1, 2**31, 99999999999, 10**30])
async def test_an_impossible_id_is_a_client_error(client: AsyncClient, hero_id: int) -> None:
    assert (await client.get(f"/heroes/{hero_id}")).status_code == 422
    body = {"name": "x", "secret_name": "x"}
    for bad in ({"team_id": hero_id}, {"mentor_id": hero_id}, {"power": 101}):
        response = await client.post("/heroes", json=body | bad)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["body", *bad]


async def test_errors_are_documented(client: AsyncClient) -> None:
    document = await get(client, "/openapi.json")
    told: dict[str, set[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            errors = {key: each for key, each in operation["responses"].items() if key >= "400"}
            told[f"{method} {path}"] = set(errors)
            for status, each in errors.items():
                assert list(each["content"]) == ["application/problem+json"], (path, status)
                schema = each["content"]["application/problem+json"]["schema"]
                assert set(schema["properties"]) == set(Problem.model_fields)

    expected = {"get /heroes/export": {"503"}, "get /health": {"503"}}
    for rows, row in (
        ("/heroes", "/heroes/{hero_id}"),
        ("/teams", "/teams/{team_id}"),
        ("/missions", "/missions/{mission_id}"),
    ):
        expected |= {
            f"get {rows}": {"422", "503"},
            f"post {rows}": {"409", "422", "503"},
            f"get {row}": {"404", "422", "503"},
            f"patch {row}": {"404", "409", "422", "503"},
            f"delete {row}": {"404", "422", "503"},
        }
    expected["put /heroes/{hero_id}/mentor"] = {"404", "409", "422", "503"}
    for method in ("put", "delete"):
        expected[f"{method} /heroes/{{hero_id}}/missions/{{mission_id}}"] = {"404", "422", "503"}
    assert told == expected
    assert "HTTPValidationError" not in document["components"]["schemas"]  # FastAPI's own 422


async def test_the_export_is_documented_and_complete(client: AsyncClient) -> None:
    paths = (await get(client, "/openapi.json"))["paths"]
    assert list(paths["/heroes/export"]["get"]["responses"]["200"]["content"]) == [
        "application/x-ndjson"
    ]
    assert (await client.get("/heroes/export")).content == b""
    hero_id = await create(client, "/heroes", name="Deadpond", power=7)
    response = await client.get("/heroes/export")
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {"id": hero_id, "name": "Deadpond", "power": 7, "team_id": None, "mentor_id": None}
    ]


@pytest.mark.parametrize(
    ("table", "path", "key"),
    [
        ("hero", "/heroes", "name"),
        ("team", "/teams", "name"),
        ("mission", "/missions", "title"),
    ],
)
async def test_one_row_from_create_to_delete(
    client: AsyncClient, table: str, path: str, key: str
) -> None:
    row = f"{path}/{await create(client, path, **{key: 'b'})}"
    other = f"{path}/{await create(client, path, **{key: 'a'})}"
    assert [item[key] for item in (await get(client, path))["items"]] == ["a", "b"]

    response = await client.patch(other, json={key: "b"})
    assert response.status_code == 409
    assert response.json()["constraint"] == f"uq_{table}_{key}"
    assert (await client.patch(row, json={key: "c"})).json()[key] == "c"
    assert (await get(client, row))[key] == "c"

    assert (await client.delete(row)).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        response = await client.request(method, row, json={key: "d"})
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    assert len((await get(client, path))["items"]) == 1


async def test_patch_tells_null_from_unset(client: AsyncClient) -> None:
    team_id = await create(client, "/teams", name="Preventers")
    hero_id = await create(client, "/heroes", name="Deadpond", power=7, team_id=team_id)
    path = f"/heroes/{hero_id}"

    assert (await client.patch(path, json={"power": 8})).json()["team_id"] == team_id
    assert (await client.patch(path, json={"team_id": None})).json()["power"] == 8
    response = await client.patch(path, json={"name": None})
    assert response.status_code == 422
    assert response.json()["columns"] == ["name"]
    for bad in ({"pwoer": 9}, {"power": 101}):
        response = await client.patch(path, json=bad)
        assert response.status_code == 422
        assert response.json()["errors"][0]["loc"] == ["body", *bad]
    hero = await get(client, path)
    assert (hero["name"], hero["power"], hero["team_id"]) == ("Deadpond", 8, None)


async def test_mentors_over_http(client: AsyncClient) -> None:
    first = await create(client, "/heroes", name="First")
    second = await create(client, "/heroes", name="Second", mentor_id=first)

    response = await client.put(f"/heroes/{first}/mentor", json={"mentor_id": second})
    assert response.status_code == 409
    assert response.json()["detail"] == f"Mentor {second} of hero {first} would close a circle."
    response = await client.put(f"/heroes/{second}/mentor", json={"mentor_id": None})
    assert response.json()["mentor_id"] is None


# -- with real commits -----------------------------------------------------------------


async def test_a_conflict_is_409_and_stores_nothing(committing_client: AsyncClient) -> None:
    client = committing_client
    await create(client, "/heroes", name="Deadpond")

    body = {"name": "Deadpond", "secret_name": "x"}
    response = await client.post("/heroes", json=body)

    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["constraint"] == "uq_hero_name"
    assert (await get(client, "/heroes"))["total"] == 1

    response = await client.post("/heroes", json={**body, "name": "Other", "team_id": 2**31 - 1})
    assert response.status_code == 409
    assert await names(client) == ["Deadpond"]


async def test_simultaneous_requests(committing_client: AsyncClient) -> None:
    client = committing_client
    body = {"name": "Deadpond", "secret_name": "x"}
    responses = await asyncio.gather(*[client.post("/heroes", json=body) for _ in range(8)])
    assert sorted(response.status_code for response in responses) == [201] + [409] * 7

    # Each mentor is fine alone; together they would be a circle.
    first = await create(client, "/heroes", name="First")
    second = await create(client, "/heroes", name="Second")
    pairs = [(first, second), (second, first)]
    responses = await asyncio.gather(
        *[client.put(f"/heroes/{a}/mentor", json={"mentor_id": b}) for a, b in pairs]
    )
    assert sorted(response.status_code for response in responses) == [200, 409]


async def test_the_app_starts_from_its_settings(
    committing_client: AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.settings.url.render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", url)
    app = create_app()
    async with lifespan(app), http(app) as client:
        assert await get(client, "/health") == {"status": "ok"}
        await create(client, "/teams", name="Preventers")
    assert (await get(committing_client, "/teams"))["total"] == 1


async def test_health_without_a_database(database: Database) -> None:
    nowhere = database.settings.url.set(database="missing/database")
    async with Database(nowhere) as unreachable:
        app = create_app()
        app.state.database = unreachable
        async with http(app) as client:
            assert (await client.get("/health")).status_code == 503
