"""docs/configuration.md, written from the configuration's own fields so that it can't drift."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from rl.config import Config, section_of, walk_fields

HEADER = """# Configuration

Written by `ponder config docs`; do not edit. Keys are given in YAML (nested) or on the command line
(`key.sub=value`); an unknown key is an error that names the nearest known one.
`ponder config show CONFIG` prints the resolved configuration, `ponder train CONFIG --print-config` too.
"""


def configuration_markdown() -> str:
    """One table a section, in the order of rl/config.py."""
    sections: dict[str, list[str]] = {}
    for key, info in walk_fields(Config):
        name = key.rsplit(".", 1)[0] if "." in key else "top level"
        text = (info.description or "").replace("|", "\\|").replace("\n", " ")
        value = info.get_default(call_default_factory=True)
        default = "null" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        default = "required" if value is PydanticUndefined else default
        row = f"| `{key}` | {_type_name(info.annotation)} | {default} | {text} |"
        sections.setdefault(name, []).append(row)
    parts = [HEADER]
    for name, rows in sections.items():
        kind: Any = Config
        for part in name.split(".") if name != "top level" else ():
            kind = section_of(kind.model_fields[part].annotation)
        about = "" if kind is Config else " ".join(kind.__doc__.split()) + "\n\n"
        parts.append(
            "\n".join([f"## {name}\n\n{about}| key | type | default | meaning |\n|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


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
