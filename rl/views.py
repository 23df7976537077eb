"""What commands say in words: the macros of views.j2, filled in. One is docs/configuration.md, which so can't drift."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import jinja2

from rl.config import Config, section_of, walk_fields


def words(view: str, *data: Any) -> str:
    """A macro of views.j2, filled in."""
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    return str(getattr(environment.get_template("views.j2").module, view)(*data))


def configuration_markdown() -> str:
    """One table a section, in the order of rl/config.py, from the configuration's own fields."""
    sections: dict[str, tuple[str, list[Any]]] = {}
    for key, info in walk_fields(Config):
        name, kind = key.rpartition(".")[0], Config
        for part in filter(None, name.split(".")):
            kind = section_of(kind.model_fields[part].annotation)  # type: ignore[assignment]
        about = " ".join((kind.__doc__ or "").split()) if name else ""
        sections.setdefault(name, (about, []))[1].append((key, info, _type_name(info.annotation)))
    return words("configuration", sections)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type_name(arg) for arg in get_args(annotation))
    if section_of(annotation) is not None:
        return "section"
    return annotation.__name__ if get_origin(annotation) is None else str(annotation).replace("typing.", "")
