"""Ids of specs, and specs as JSON.

An id is a hash of a type tag and of the fields that differ from the default that they were introduced with. So a new field
(see `added`) leaves the ids of all specs without it as they were, whatever its default becomes later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

Class = TypeVar("Class", bound=type)

ID_LENGTH = 12
TYPES: dict[str, type] = {}  # type tag -> class
_INTRODUCED = "introduced"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(tag: str) -> Callable[[Class], Class]:
    """Make a class a frozen dataclass that ids and records know by `tag`. A tag is never given to another class."""

    def register(cls: Class) -> Class:
        made: Any = dataclass(frozen=True, kw_only=True)(cls)
        if TYPES.setdefault(tag, made).__qualname__ != made.__qualname__:
            raise ValueError(f"type tag {tag!r} is taken by {TYPES[tag].__qualname__}")
        made.type_tag = tag
        return cast(Class, made)

    return register


def known_as(tag: str, cls: type) -> None:
    """Let ids and records know a frozen dataclass that is a part of specs, such as one of `fine_core`, by `tag`."""
    if TYPES.setdefault(tag, cls) is not cls:
        raise ValueError(f"type tag {tag!r} is taken by {TYPES[tag].__qualname__}")
    setattr(cls, "type_tag", tag)  # noqa: B010 (an attribute that the class itself does not declare)


def added(introduced: Any, *, default: Any = MISSING) -> Any:
    """A field that was added to a spec after records of it existed: `introduced` is what those records stand for."""
    return field(default=introduced if default is MISSING else default, metadata={_INTRODUCED: introduced})


def id_of(value: Any) -> str:
    """The id of a spec."""
    return hashlib.sha256(json.dumps(content_of(value), sort_keys=True).encode()).hexdigest()[:ID_LENGTH]


def _identity(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    if hasattr(value, "kind") and hasattr(value, "type_tag"):
        return {"job": value.id}  # which it keeps: a job within many others is hashed once
    return content_of(value)


def content_of(value: Any) -> Any:
    """What the id of a value is made from: as `to_json`, but without added fields that are as they were introduced."""
    if not is_dataclass(value):
        return value
    content: dict[str, Any] = _tags(value)
    for item in fields(value):
        own = getattr(value, item.name)
        if _INTRODUCED not in item.metadata or own != item.metadata[_INTRODUCED]:
            content[item.name] = _identity(own)
    return content


def _tags(value: Any) -> dict[str, Any]:
    """The type tag of a spec and its version; nothing for plain dataclasses, whose type follows from the field."""
    tags = {"type": value.type_tag} if hasattr(value, "type_tag") else {}
    return tags | ({"version": value.version} if hasattr(value, "version") else {})


def to_json(value: Any) -> Any:
    """A spec as plain data: all fields, with type tags and versions."""
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if not is_dataclass(value):
        return value
    return _tags(value) | {item.name: to_json(getattr(value, item.name)) for item in fields(value)}


def from_json(cls: Any, data: Any) -> Any:
    """A spec of (a subclass of) `cls` from what `to_json` gave. Raises ValueError for data of another version or shape."""
    if data is None:
        return None
    origin = get_origin(cls)
    if origin in (Union, UnionType):
        options = [option for option in get_args(cls) if option is not NoneType]
        return from_json(options[0], data)  # of several, the tag tells which it is
    if origin is tuple:
        return tuple(from_json(get_args(cls)[0], item) for item in data)
    if not isinstance(data, dict):
        return data
    data = dict(data)
    tag = data.pop("type", None)
    target = cls if tag is None else TYPES.get(tag)
    if target is None or not is_dataclass(target):
        raise ValueError(f"no spec is known by the tag {tag!r}")
    version = data.pop("version", None)
    if version not in getattr(target, "versions", (getattr(target, "version", None),)):
        raise ValueError(f"a {tag or target.__name__} of another version")
    hints = get_type_hints(target)
    values = {}
    for item in fields(target):
        if item.name in data:
            values[item.name] = from_json(hints[item.name], data.pop(item.name))
        elif _INTRODUCED in item.metadata:
            values[item.name] = item.metadata[_INTRODUCED]
        else:
            raise ValueError(f"a {tag or target.__name__} without {item.name}")
    if data:
        raise ValueError(f"a {tag or target.__name__} with unknown fields: {', '.join(sorted(data))}")
    made = target(**values)
    if version != getattr(made, "version", None):
        raise ValueError(f"a {tag or target.__name__} of another version")
    return made
