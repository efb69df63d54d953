"""Eager loading by name."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy.orm import (
    InstrumentedAttribute,
    Mapped,
    joinedload,
    selectinload,
    with_loader_criteria,
)
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import SQLModel

from .base import SoftDeleteMixin
from .errors import InvalidQuery
from .mapping import attribute_of, cached, mapper_of, unknown

LoadPath = str | Mapped[Any] | ORMOption
Load = LoadPath | Sequence[LoadPath]


def build_load(
    model: type[SQLModel], load: Load, *, deleted: bool = False
) -> Sequence[ExecutableOption]:
    """Loader options for `"team"`, `col(Hero.team)`, `"team.heroes"` and ready-made options.

    To-one relations are joined (no further statement), to-many relations come by one
    SELECT ... IN each, which LIMIT does not disturb. Soft-deleted rows are left out,
    unless `deleted` is set.

    Raises:
        InvalidQuery: unknown relation; names the choices and the nearest match.
    """
    options: list[ExecutableOption] = []
    for path in paths_of(load):
        if isinstance(path, ORMOption):
            options.append(path)
        else:
            options += _named(model, _name(model, path), deleted)
    return options


def needs_unique(model: type[SQLModel], load: Load) -> bool:
    """Whether a collection may be joined, so that a row comes back several times."""
    ready_made = any(isinstance(path, ORMOption) for path in paths_of(load))
    return ready_made or _joins_collections(model)


def paths_of(load: Load) -> Sequence[LoadPath]:
    """What `load` names, one or several, as a sequence."""
    return cast(Sequence[LoadPath], load if isinstance(load, list | tuple) else (load,))


def _name(model: type[SQLModel], path: Any) -> str:
    if isinstance(path, str):
        return path
    if isinstance(path, InstrumentedAttribute) and issubclass(model, cast(type[Any], path.class_)):
        return path.key
    raise InvalidQuery(
        f"load takes names, attributes of {model.__name__} and loader options, not {path!r}"
    )


@cached
def _joins_collections(model: type[SQLModel]) -> bool:
    return any(
        relation.uselist and relation.lazy in {"joined", False}
        for mapper in mapper_of(model).registry.mappers
        for relation in mapper.relationships
    )


@cached
def _named(model: type[SQLModel], path: str, deleted: bool) -> tuple[ExecutableOption, ...]:
    target: type[SQLModel] = model
    option: Any = None
    criteria: list[ExecutableOption] = []
    for name in path.split("."):
        relationships = mapper_of(target).relationships
        if name not in relationships:
            known = relationships.keys()
            raise InvalidQuery(f"load {path!r}: {unknown(target, 'relation', name, known)}")
        attribute = attribute_of(target, name)
        many = relationships[name].uselist
        if option is None:
            option = selectinload(attribute) if many else joinedload(attribute)
        else:
            option = option.selectinload(attribute) if many else option.joinedload(attribute)
        target = cast(type[SQLModel], relationships[name].mapper.class_)
        if issubclass(target, SoftDeleteMixin) and not deleted:
            alive = attribute_of(target, "deleted_at").is_(None)
            criteria.append(with_loader_criteria(target, alive, include_aliases=True))
    return (cast(ExecutableOption, option), *criteria)
