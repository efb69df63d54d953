"""What an HTTP client may ask for: query parameters made from a service's allow-list.

    class HeroService(ServiceBase[Hero, HeroCreate, HeroUpdate]):
        client_filters = ("name__icontains", "power__gte", "team__name")
        client_sorts = ("name", "power")

    HeroPageQuery = Annotated[PageQuery, Depends(page_query(HeroService))]

    @app.get("/heroes", response_model=Page[HeroPublic])
    async def list_heroes(session: ReadSessionDep, query: HeroPageQuery) -> Page[Hero]:
        return await HeroService(session).page(**query.arguments())

Filters by name reach every column: a request that is passed on as it came can ask for
`password_hash__startswith`, letter by letter. Here a client has the filters and sort keys
that the service lists, each with the type and the limits of the model's field; any other
parameter is answered with 422.
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen
from fastapi import Query
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from sqlalchemy import ARRAY, JSON
from sqlmodel import SQLModel, UTCDateTime

from .errors import InvalidFilter, InvalidQuery
from .filters import operators_of
from .mapping import attribute_of, mapper_of, python_type, stored_type, unknown
from .operators import date_part, date_parts
from .paging import build_order
from .reading import ReadService

MAX_MEMBERS = 100
"""Members that a client may put into a list, e.g. of `id__in`."""

MAX_TEXT = 1000
"""Characters of a text to search for, where the model's field sets no limit."""


class _ClientQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelt filter is never dropped

    beside: ClassVar[frozenset[str]] = frozenset()

    limit: int = Field(default=50, ge=1, le=100)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        named = cast(dict[str, Any], given)
        return {name: value for name, value in named.items() if name not in cls.beside}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the service: what was given, and the defaults."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}


class PageQuery(_ClientQuery):
    """Query parameters of `ServiceBase.page`; `page_query` adds filters and sort keys."""

    offset: int = Field(default=0, ge=0, le=2**31 - 2)


class CursorQuery(_ClientQuery):
    """Query parameters of `ServiceBase.cursor_page`; `cursor_query` adds the others."""

    cursor: str | None = Field(
        default=None, max_length=4096, description="next_cursor or previous_cursor of a page."
    )


QueryT = TypeVar("QueryT", bound=_ClientQuery)
Service = type[ReadService[Any]]


def page_query(
    service: Service, max_limit: int = 100, *, beside: Collection[str] = ()
) -> Callable[..., PageQuery]:
    """A FastAPI dependency that reads what `service.page` takes from a client.

    The parameters are `limit`, `offset`, each of `client_filters`, and `order_by`, which
    may be given several times: each of `client_sorts`, with and without `-`; the first
    one, as it is spelled, is the default. Without `client_sorts` there is no `order_by`,
    and the endpoint may set one.

    Args:
        service: the service class with the allow-list.
        max_limit: rows of a page at most; 50 is the default, where this is not less.
        beside: query parameters that the endpoint reads itself.

    Raises:
        InvalidQuery: the allow-list names something that the model does not have, or that
            no query parameter can express. At once, and so when the app is imported.
    """
    return _dependency(query_model(service, PageQuery, max_limit, beside=beside))


def cursor_query(
    service: Service, max_limit: int = 100, *, beside: Collection[str] = ()
) -> Callable[..., CursorQuery]:
    """Like `page_query`, for `service.cursor_page`: `cursor` in place of `offset`.

    The client repeats its filters and `order_by` with every cursor.
    """
    return _dependency(query_model(service, CursorQuery, max_limit, beside=beside))


def _dependency(model: type[QueryT]) -> Callable[..., QueryT]:
    # A function of its own for each call: FastAPI caches dependencies by function.
    def read(query: QueryT) -> QueryT:
        return query

    read.__annotations__ = {"query": Annotated[model, Query()], "return": model}
    return read


def query_model(
    service: Service,
    base: type[QueryT],
    max_limit: int = 100,
    *,
    beside: Collection[str] = (),
) -> type[QueryT]:
    """The class behind `page_query` and `cursor_query`, for what comes by another way.

    `query_model(HeroService, PageQuery).model_validate(message).arguments()` checks a
    mapping, e.g. of a websocket; what is not allowed raises `pydantic.ValidationError`.
    """
    limit = Field(default=min(50, max_limit), ge=1, le=max_limit)
    fields: dict[str, Any] = {"limit": (int, limit)}
    try:
        fields |= _filters(service, base) | _order(service)
    except InvalidQuery as error:
        raise type(error)(f"{service.__name__}: {error}") from None
    model = create_model(f"{service.__name__}{base.__name__}", __base__=base, **fields)
    model.beside = frozenset(beside)
    return model


def _filters(service: Service, base: type[_ClientQuery]) -> dict[str, Any]:
    # A column may be called `total`, but `service.page(total=...)` is no filter.
    taken = {*inspect.signature(service.page).parameters, *dir(base)}
    taken |= {*inspect.signature(service.cursor_page).parameters}
    fields: dict[str, Any] = {}
    for entry in service.client_filters:
        if entry in taken:
            raise InvalidFilter(f"{entry} is the name of an argument; allow '{entry}__eq'")
        fields[entry] = (_parameter(_model(service), entry), None)
    return fields


def _order(service: Service) -> dict[str, Any]:
    """`order_by` with each sort key as it is spelled and the other way round."""
    sorts: dict[str, None] = {}
    for key in service.client_sorts:
        other = key[1:] if key.startswith("-") else f"-{key}"
        sorts |= {key: None, other: None}
    if not sorts:
        return {}
    build_order(_model(service), [*sorts])  # raises what is wrong with them
    choice: Any = Literal[tuple(sorts)]
    first = next(iter(sorts))
    return {"order_by": (list[choice], Field(default=[first], max_length=len(sorts)))}


def _model(service: Service) -> type[SQLModel]:
    model: type[SQLModel] = cast(Any, service).model
    return model


# -- one filter, one typed parameter ---------------------------------------------------


def _parameter(model: type[SQLModel], entry: str) -> Any:
    """The type of the parameter for one filter."""
    rest = entry.split("__")
    while (name := rest.pop(0)) in (relations := mapper_of(model).relationships):
        if rest == ["is_null"]:
            return bool
        if not rest:
            raise InvalidFilter(f"{entry}: {name} is a relation; name one of its fields")
        model = relations[name].mapper.class_
    columns = mapper_of(model).column_attrs.keys()
    if name not in columns:
        choices = [*columns, *mapper_of(model).relationships.keys()]
        raise InvalidFilter(f"{entry}: {unknown(model, 'field', name, choices)}")
    try:
        return _of_column(model, name, rest)
    except InvalidFilter as error:
        raise InvalidFilter(f"{entry}: {error}") from None


def _of_column(model: type[SQLModel], name: str, rest: list[str]) -> Any:
    target: Any = attribute_of(model, name)
    operators = operators_of(target.type)
    if isinstance(stored_type(target.type), JSON):
        named = bool(rest) and rest[-1] in operators
        return _in_document(rest[:-1] if named else rest, rest[-1] if named else "eq")
    kind, limits = _declared(model, name)
    if rest and rest[0] in date_parts(target.type):
        part, *rest = rest
        target, kind, limits = date_part(target, part), *_PARTS[part]
    operator = "__".join(rest) if rest else "eq"
    if operator not in operators:
        raise InvalidFilter(unknown(model, "operator", operator, operators))
    if isinstance(stored_type(target.type), ARRAY):
        return _of_array(kind, operator)
    known = _by_operator(kind, limits, operator)
    if known is not None:
        return known
    try:
        operators[operator](target, "x")  # what is left is about text
    except InvalidFilter as error:
        raise InvalidFilter(f"{operator} {error}") from None
    return _text(limits, operator)


_EQUAL = {"eq", "ne"}
_ORDERED = {"gt", "gte", "lt", "lte"}
_LISTS = {"in", "not_in"}
_FLAGS = {"is_null", "is", "is_not"}
_PATTERNS = {"like", "not_like", "ilike", "not_ilike", "regex", "iregex", "match"}
# MySQL knows neither infinity nor NaN, and its drivers write 1e9999999 with all its digits;
# 65 of them, 30 behind the point, are what it can store.
_FINITE: dict[Any, Any] = {
    float: FiniteFloat,
    Decimal: Annotated[(Decimal, *Field(max_digits=65, decimal_places=30).metadata)],
}
_PARTS: dict[str, tuple[Any, list[Any]]] = {
    "date": (date, []),
    "year": (int, [Ge(1), Le(9999)]),
    "quarter": (int, [Ge(1), Le(4)]),
    "month": (int, [Ge(1), Le(12)]),
    "day": (int, [Ge(1), Le(31)]),
    "hour": (int, [Ge(0), Le(23)]),
    "minute": (int, [Ge(0), Le(59)]),
    "second": (int, [Ge(0), Le(59)]),
}


def _by_operator(kind: Any, limits: list[Any], operator: str) -> Any:
    """The type for an operator that takes values of the column; None for the others."""
    if operator in _FLAGS:
        return bool
    if _is_compound(kind):
        raise InvalidFilter("no query parameter can hold a value of this column")
    if operator not in {*_EQUAL, *_ORDERED, *_LISTS, "between"}:
        return None
    exact: Any = _annotated(kind, limits)
    if operator in _EQUAL:
        return exact
    if operator in _LISTS:
        return _annotated(list[exact], [MaxLen(MAX_MEMBERS)])
    if kind is bool:
        raise InvalidFilter(f"{operator} takes values that have an order, not True and False")
    bound: Any = _annotated(kind, _bounds(limits))
    return bound if operator in _ORDERED else _annotated(list[bound], [MinLen(2), MaxLen(2)])


def _text(limits: list[Any], operator: str) -> Any:
    longest = MaxLen(MAX_TEXT)
    if operator not in _PATTERNS:  # what is longer than the field is not in it
        longest = next((each for each in limits if isinstance(each, MaxLen)), longest)
    return Annotated[str, longest]


def _of_array(kind: Any, operator: str) -> Any:
    if operator in _FLAGS:
        return bool
    if operator not in {"contains", "contained_by", "overlap"}:
        raise InvalidFilter("no query parameter can hold a value of this column")
    return _annotated(kind, [MaxLen(MAX_MEMBERS)])


def _in_document(keys: list[str], operator: str) -> Any:
    """Text, where JSON does not say what it holds; numbers, where they are compared."""
    if operator in _FLAGS:
        return bool
    if operator == "contains" or (not keys and operator != "has_key"):
        raise InvalidFilter("no query parameter can hold a document; name a key of it")
    if operator in {*_ORDERED, "between"}:
        return _by_operator(FiniteFloat, [], operator)
    limits = [MaxLen(MAX_TEXT)]
    return _by_operator(str, limits, operator) or _text(limits, operator)


def _is_compound(kind: Any) -> bool:
    return (get_origin(kind) or kind) in {Any, dict, list, set, tuple}


def _declared(model: type[SQLModel], name: str) -> tuple[Any, list[Any]]:
    """The type of a field, without None, and its limits."""
    column = mapper_of(model).column_attrs[name].columns[0]
    declared = model.model_fields.get(name)
    if declared is None:  # e.g. a column_property
        return python_type(column) or Any, []
    kind, limits = _bare(declared.annotation, declared.metadata)
    if kind is datetime and isinstance(column.type, UTCDateTime):
        kind = AwareDatetime
    return _FINITE.get(kind, kind), limits


def _bare(annotation: Any, limits: Iterable[Any]) -> tuple[Any, list[Any]]:
    """`Annotated[int, Ge(1)] | None` as `int` and `[Ge(1)]`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(parts[0], [*parts[1:], *limits])
    if origin in {Union, UnionType}:
        others = [each for each in parts if each is not NoneType]
        if len(others) == 1:
            return _bare(others[0], limits)
        annotation = Union[tuple(others)]  # noqa: UP007
    return annotation, [*_flat(limits)]


def _flat(limits: Iterable[Any]) -> Iterator[Any]:
    for each in limits:
        if isinstance(each, FieldInfo):
            yield from _flat(each.metadata)
        elif isinstance(each, GroupedMetadata):
            yield from _flat(each)
        elif isinstance(each, Hashable):  # without SQLModel's notes about the column,
            yield each  # which FastAPI, that hashes annotations, could not take


def _bounds(limits: list[Any]) -> Iterator[Any]:
    """The limits that hold for a bound too: `price__gt=0` is right where a price is > 0."""
    for each in limits:
        if isinstance(each, Ge | Le | MaxLen):
            yield each
        elif isinstance(each, Gt):
            yield Ge(cast(Any, each.gt))
        elif isinstance(each, Lt):
            yield Le(cast(Any, each.lt))


def _annotated(kind: Any, limits: Iterable[Any]) -> Any:
    limits = tuple(limits)
    return Annotated[(kind, *limits)] if limits else kind
