"""What an HTTP client may ask for: typed parameters from a service's allow-list."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, cast
from uuid import UUID, uuid4

import httpx
import pytest
from annotated_types import Interval
from fastapi import Depends, FastAPI
from pydantic import Field as Constraint
from pydantic import ValidationError
from sqlalchemy import ARRAY, JSON, DateTime, PickleType, String
from sqlalchemy.orm import column_property, registry
from sqlmodel import Field, Relationship, SQLModel, col

from app.db import OPERATORS, ServiceBase, build_filters
from app.db.client_query import (
    MAX_MEMBERS,
    MAX_TEXT,
    CursorQuery,
    PageQuery,
    cursor_query,
    page_query,
    query_model,
)
from app.db.errors import InvalidFilter, InvalidQuery

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]

Score = Annotated[int, Constraint(ge=1, le=9)]


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Apart(SQLModel, registry=registry()):
    """Tables of their own metadata: no other test creates them, and no database has to."""


class Owner(Apart, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(min_length=1, max_length=20)
    password_hash: str = Field(max_length=60)

    wallets: list["Wallet"] = Relationship(back_populates="owner")


class Wallet(Apart, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    label: str = Field(default="", max_length=30)
    note: str | None = None
    currency: Literal["eur", "usd"] = Field(default="eur", sa_type=String)
    level: Level | None = None
    score: Score | None = None
    rank: Annotated[int, Interval(gt=0, lt=10)] = 1
    place: Annotated[int, Constraint(gt=0)] | None = None
    price: Decimal = Field(gt=0, max_digits=6, decimal_places=2)
    ratio: float | None = None
    active: bool = True
    opened: date | None = None
    opened_at: datetime
    local: datetime | None = Field(default=None, sa_type=DateTime)
    total: int = 0
    settings: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    pickled: dict[str, int] = Field(default_factory=dict, sa_type=PickleType)
    words: list[str] = Field(default_factory=list, sa_type=cast(Any, ARRAY(String)))
    owner_id: int | None = Field(default=None, foreign_key="owner.id")

    owner: Owner | None = Relationship(back_populates="wallets")


cast(Any, Wallet).doubled = column_property(col(Wallet.total) * 2)


def allow(*filters: str, sorts: Sequence[str] = ()) -> type[ServiceBase[Any, Any, Any]]:
    class WalletService(ServiceBase[Wallet, Wallet, Wallet]):
        client_filters = filters
        client_sorts = sorts

    return WalletService


class Client(httpx.AsyncClient):
    """One endpoint a dependency, at /0, /1, ..., that keeps its arguments."""

    def __init__(self, *dependencies: Any) -> None:
        self.app = FastAPI()
        self.arguments: dict[str, Any] = {}
        for number, dependency in enumerate(dependencies):
            self.add(f"/{number}", dependency)
        super().__init__(transport=httpx.ASGITransport(self.app), base_url="http://test")

    def add(self, path: str, dependency: Any) -> None:
        @self.app.get(path)
        async def read(query: Annotated[PageQuery, Depends(dependency)]) -> None:
            self.arguments = query.arguments()


async def arguments(client: Client, url: str) -> dict[str, Any]:
    response = await client.get(url)
    assert response.status_code == 200, response.text
    return client.arguments


async def refused(client: httpx.AsyncClient, url: str) -> list[str]:
    """The parameters that the answer complains about."""
    response = await client.get(url)
    assert response.status_code == 422, response.text
    return [each["loc"][1] for each in response.json()["detail"]]


async def documented(client: httpx.AsyncClient, path: str) -> dict[str, dict[str, Any]]:
    operation = (await client.get("/openapi.json")).json()["paths"][path]["get"]
    assert not any(each["required"] for each in operation["parameters"])
    schemas = {each["name"]: each["schema"] for each in operation["parameters"]}
    for schema in schemas.values():
        del schema["title"]
    return schemas


INT = {"type": "integer"}
TEXT = {"type": "string"}
TYPES: dict[str, tuple[dict[str, Any], str, Any]] = {
    # filter: what OpenAPI says, a query, what the service gets
    "id": (TEXT | {"format": "uuid"}, "id=" + str(UUID(int=5)), UUID(int=5)),
    "label": (TEXT | {"maxLength": 30}, "label=x", "x"),
    "label__eq": (TEXT | {"maxLength": 30}, "label__eq=5", "5"),
    "label__icontains": (TEXT | {"maxLength": 30}, "label__icontains=%25", "%"),
    "label__ilike": (TEXT | {"maxLength": MAX_TEXT}, "label__ilike=a%25", "a%"),
    "note__startswith": (TEXT | {"maxLength": MAX_TEXT}, "note__startswith=x", "x"),
    "currency": (TEXT | {"enum": ["eur", "usd"]}, "currency=usd", "usd"),
    "score": (INT | {"minimum": 1, "maximum": 9}, "score=9", 9),
    "score__gte": (INT | {"minimum": 1, "maximum": 9}, "score__gte=1", 1),
    "score__in": (
        {"type": "array", "items": INT | {"minimum": 1, "maximum": 9}, "maxItems": MAX_MEMBERS},
        "score__in=3&score__in=4",
        [3, 4],
    ),
    "score__between": (
        {
            "type": "array",
            "items": INT | {"minimum": 1, "maximum": 9},
            "minItems": 2,
            "maxItems": 2,
        },
        "score__between=3&score__between=4",
        [3, 4],
    ),
    "score__is_null": ({"type": "boolean"}, "score__is_null=false", False),
    "rank": (INT | {"exclusiveMinimum": 0, "exclusiveMaximum": 10}, "rank=9", 9),
    # As a bound, the limit itself makes sense.
    "rank__gt": (INT | {"minimum": 0, "maximum": 10}, "rank__gt=0", 0),
    "rank__lt": (INT | {"minimum": 0, "maximum": 10}, "rank__lt=10", 10),
    "place__gte": (INT | {"minimum": 0}, "place__gte=0", 0),
    "owner_id__in": (
        {"type": "array", "items": INT, "maxItems": MAX_MEMBERS},
        "owner_id__in=5",
        [5],
    ),
    "ratio__lt": ({"type": "number"}, "ratio__lt=0.5", 0.5),
    "active": ({"type": "boolean"}, "active=0", False),
    "opened__lte": (TEXT | {"format": "date"}, "opened__lte=2026-01-31", date(2026, 1, 31)),
    "opened_at__gt": (
        TEXT | {"format": "date-time"},
        "opened_at__gt=2026-01-31T00:00:00Z",
        datetime(2026, 1, 31, tzinfo=UTC),
    ),
    "local__gt": (
        TEXT | {"format": "date-time"},
        "local__gt=2026-01-31T00:00:00",
        datetime(2026, 1, 31),  # noqa: DTZ001
    ),
    "opened__year": (INT | {"minimum": 1, "maximum": 9999}, "opened__year=2026", 2026),
    "opened_at__hour__lt": (INT | {"minimum": 0, "maximum": 23}, "opened_at__hour__lt=9", 9),
    "opened_at__date__in": (
        {
            "type": "array",
            "items": TEXT | {"format": "date"},
            "maxItems": MAX_MEMBERS,
        },
        "opened_at__date__in=2026-01-31",
        [date(2026, 1, 31)],
    ),
    "doubled__gt": (INT, "doubled__gt=5", 5),
    "settings__theme": (TEXT | {"maxLength": MAX_TEXT}, "settings__theme=5", "5"),
    "settings__ui__size__gte": ({"type": "number"}, "settings__ui__size__gte=5", 5.0),
    "settings__theme__is_null": ({"type": "boolean"}, "settings__theme__is_null=1", True),
    "settings__has_key": (TEXT | {"maxLength": MAX_TEXT}, "settings__has_key=ui", "ui"),
    "words__overlap": (
        {"type": "array", "items": TEXT, "maxItems": MAX_MEMBERS},
        "words__overlap=a&words__overlap=b",
        ["a", "b"],
    ),
    "owner__name": (TEXT | {"minLength": 1, "maxLength": 20}, "owner__name=x", "x"),
    "owner__wallets__total": (INT, "owner__wallets__total=-1", -1),
    "owner__is_null": ({"type": "boolean"}, "owner__is_null=true", True),
}


@pytest.mark.parametrize("entry", TYPES)
async def test_a_filter_has_the_type_of_its_field(entry: str) -> None:
    schema, query, value = TYPES[entry]
    async with Client(page_query(allow(entry))) as client:
        assert (await documented(client, "/0"))[entry] == schema
        assert await arguments(client, f"/0?{query}") == {"limit": 50, "offset": 0, entry: value}
        assert type(value) is type((await arguments(client, f"/0?{query}"))[entry])
        assert build_filters(Wallet, {entry: value})


async def test_enums_and_decimals() -> None:
    async with Client(page_query(allow("level", "level__in", "price", "price__gte"))) as client:
        found = await arguments(client, "/0?level=low&level__in=high&price=1.50&price__gte=0")
        assert found["level"] is Level.LOW
        assert found["level__in"] == [Level.HIGH]
        assert (found["price"], found["price__gte"]) == (Decimal("1.50"), Decimal(0))
        bad = "/0?level=mid&level__in=mid&price=0&price__gte=-1"
        assert await refused(client, bad) == ["level", "level__in", "price", "price__gte"]


@pytest.mark.parametrize(
    ("entry", "query"),
    [
        ("score", "score=10"),
        ("score", "score="),
        ("score", "score=1.5"),
        ("score__in", "score__in=1&score__in=0"),
        ("score__in", "&".join(["score__in=1"] * (MAX_MEMBERS + 1))),
        ("score__between", "score__between=1"),
        ("score__between", "score__between=1&score__between=2&score__between=3"),
        ("score__is_null", "score__is_null=maybe"),
        ("label__icontains", "label__icontains=" + "x" * 31),
        ("note__startswith", "note__startswith=" + "x" * (MAX_TEXT + 1)),
        ("opened_at__gt", "opened_at__gt=2026-01-31T00:00:00"),  # no time zone
        ("owner__name", "owner__name="),
        ("ratio__lt", "ratio__lt=nan"),
        ("price__gte", "price__gte=1e9999999"),
        ("price__gte", "price__gte=1e-9999999"),
        ("price__gte", "price__gte=1e-31"),
        ("price__gte", "price__gte=1e66"),
        ("ratio__lt", "ratio__lt=-inf"),
        ("opened__month", "opened__month=13"),
    ],
)
async def test_a_wrong_value_is_named(entry: str, query: str) -> None:
    async with Client(page_query(allow(entry))) as client:
        assert await refused(client, f"/0?{query}") == [entry]


async def test_what_is_not_allowed_is_refused() -> None:
    first, second = allow("label", sorts=["label"]), allow("owner__name", sorts=["total"])
    async with Client(page_query(first), page_query(second), page_query(allow())) as client:
        assert set(await documented(client, "/0")) == {"limit", "offset", "order_by", "label"}
        assert set(await documented(client, "/1")) == {"limit", "offset", "order_by", "owner__name"}
        assert set(await documented(client, "/2")) == {"limit", "offset"}
        for name in ("lable", "label__startswith", "owner__password_hash", "owner__name", "load"):
            assert await refused(client, f"/0?{name}=x") == [name]
        assert await refused(client, "/1?label=x") == ["label"]
        assert await refused(client, "/1?order_by=label") == ["order_by"]
        assert await refused(client, "/2?order_by=label") == ["order_by"]
        assert await refused(client, "/0?beside=1") == ["beside"]


async def test_sort_keys() -> None:
    service = allow(sorts=["-opened_at", "label", "-label"])
    async with Client(page_query(service)) as client:
        schema = (await documented(client, "/0"))["order_by"]
        assert schema["items"]["enum"] == ["-opened_at", "opened_at", "label", "-label"]
        assert (await arguments(client, "/0"))["order_by"] == ["-opened_at"] == schema["default"]
        found = await arguments(client, "/0?order_by=-label&order_by=opened_at")
        assert found["order_by"] == ["-label", "opened_at"]
        for key in ("id", "--label", "", "LABEL"):
            assert await refused(client, f"/0?order_by={key}") == ["order_by"]
        assert await refused(client, "/0?" + "&".join(["order_by=label"] * 5)) == ["order_by"]


async def test_limit_and_offset() -> None:
    service = allow()
    async with Client(
        page_query(service), page_query(service, 500), page_query(service, 9)
    ) as client:
        for path, most, default in (("/0", 100, 50), ("/1", 500, 50), ("/2", 9, 9)):
            assert await arguments(client, path) == {"limit": default, "offset": 0}
            assert (await arguments(client, f"{path}?limit={most}"))["limit"] == most
            for bad in (0, -1, most + 1):
                assert await refused(client, f"{path}?limit={bad}") == ["limit"]
        assert (await arguments(client, f"/0?offset={2**31 - 2}"))["offset"] == 2**31 - 2
        for bad in (-1, 2**31 - 1):
            assert await refused(client, f"/0?offset={bad}") == ["offset"]


async def test_cursors() -> None:
    async with Client(cursor_query(allow("label", sorts=["label"]), 9)) as client:
        assert set(await documented(client, "/0")) == {"limit", "cursor", "order_by", "label"}
        assert await arguments(client, "/0") == {"limit": 9, "order_by": ["label"]}
        found = await arguments(client, "/0?cursor=abc&label=x&limit=2&order_by=-label")
        assert found == {"cursor": "abc", "label": "x", "limit": 2, "order_by": ["-label"]}
        assert await refused(client, "/0?offset=1") == ["offset"]
        assert await refused(client, "/0?cursor=" + "x" * 5000) == ["cursor"]


async def test_parameters_of_the_endpoint_itself() -> None:
    app = FastAPI()
    query = page_query(allow("label"), beside=["deep"])

    @app.get("/")
    async def read(query: Annotated[PageQuery, Depends(query)], deep: bool = False) -> list[Any]:
        return [query.arguments(), deep]

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/?label=x&deep=1")
        assert response.json() == [{"limit": 50, "offset": 0, "label": "x"}, True]
        assert await refused(client, "/?deeper=1") == ["deeper"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("lable", "WalletService: lable: Wallet has no field 'lable'; did you mean 'label'?"),
        ("label__iconatins", "Wallet has no operator 'iconatins'; did you mean 'icontains'?"),
        ("owner__nmae", "Owner has no field 'nmae'; did you mean 'name'?"),
        ("owner", "owner: .*relation"),
        ("owner__wallets", "owner__wallets: .*relation"),
        ("score__icontains", "score__icontains: .*text column, not .* int"),
        ("level__icontains", "level__icontains: .*text column"),
        ("settings", "settings: no query parameter can hold a document; name a key"),
        ("settings__ui__contains", "settings__ui__contains: no query parameter can hold"),
        ("words", "words: no query parameter can hold"),
        ("pickled", "pickled: no query parameter can hold"),
        ("active__gte", "active__gte: gte takes values that have an order"),
        ("opened__hour", "Wallet has no operator 'hour'"),
        ("opened_at__year__icontains", "icontains takes a text column, not one of int"),
        ("total", "WalletService: total is the name of an argument; allow 'total__eq'"),
        ("limit", "limit is the name of an argument"),
        ("arguments", "arguments is the name of an argument"),
        ("label__", "Wallet has no operator ''"),
    ],
)
def test_the_allow_list_is_checked_at_once(entry: str, message: str) -> None:
    for make in (page_query, cursor_query):
        with pytest.raises(InvalidFilter, match=message):
            make(allow("label", entry))


def test_sort_keys_are_checked_at_once() -> None:
    for key in ("lable", "-lable"):
        with pytest.raises(
            InvalidQuery, match=r"^WalletService: order_by: .*no field .lable.; did you"
        ):
            page_query(allow(sorts=["label", key]))


def can_have_one(name: str, operator: str) -> bool:
    if operator in {"is_null", "is", "is_not"}:
        return True
    if name == "settings":  # other words than operators of JSON are keys of the document
        return operator in {"has_key", "contained_by", "overlap"}
    if name == "words":
        return operator in {"contains", "contained_by", "overlap"}
    if name == "pickled":
        return False
    if operator in {"gt", "gte", "lt", "lte", "between"}:
        return name != "active"
    return operator in {"eq", "ne", "in", "not_in"} or (
        name in {"label", "note", "currency"}
        and operator not in {"has_key", "contained_by", "overlap"}
    )


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", [*Wallet.model_fields])
def test_a_parameter_for_every_filter_that_can_have_one(name: str, operator: str) -> None:
    """What is allowed gives values that the filter takes."""
    samples: list[Any] = [
        *("2026-01-31T00:00:00Z", "2026-01-31T00:00:00", "2026-01-31", "true", "low", "eur"),
        *("5", "0.5", str(UUID(int=5)), ["5", "5"], ["true", "false"], ["low", "high"]),
        *(["eur", "usd"], [str(UUID(int=5))] * 2, ["2026-01-31T00:00:00Z"] * 2),
        *(["2026-01-31"] * 2, ["2026-01-31T00:00:00"] * 2),
    ]
    entry = f"{name}__{operator}"
    if not can_have_one(name, operator):
        with pytest.raises(InvalidFilter, match=entry):
            query_model(allow(entry), PageQuery)
        return
    model = query_model(allow(entry), PageQuery)
    accepted = 0
    for sample in samples:
        try:
            query = model.model_validate({entry: sample})
        except ValidationError:
            continue
        accepted += 1
        assert build_filters(Wallet, {entry: query.arguments()[entry]})
    assert accepted


def test_a_mapping_from_elsewhere() -> None:
    model = query_model(allow("score__gte", sorts=["label"]), CursorQuery, 10)
    found = model.model_validate({"score__gte": "3", "limit": 5}).arguments()
    assert found == {"score__gte": 3, "limit": 5, "order_by": ["label"]}
    for bad in ({"label": "x"}, {"limit": 11}, {"offset": 1}, {"order_by": ["total"]}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            model.model_validate(bad)
    with pytest.raises(ValidationError):
        model.model_validate(["label"])
