"""Pages of the site that are no files of docs/: those of the root, and the reference, made from the code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import clvr_model
import index
from clvr_model.recipe import SHIPPED, Recipe, Stage, load_recipe
from infra.settings import Settings
from jobs.cli.app import app
from jobs.cli.exit_codes import EXIT_CODES
from jobs.cli.groups import commands_below
from jobs.cli.schemas import ERROR, label_of, stored_schemas

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
NOTEBOOKS = ROOT / "examples"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, the notebooks, and the reference."""
    reference = {
        "commands": commands(),
        "settings": settings(),
        "exit-codes": exit_codes(),
        "json": json_outputs(),
        "recipes": recipes(),
        "api": api(),
    }
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=linked(ROOT / source)))
    for name, text in reference.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links out of docs/ to the pages that the site has."""
    for source, target in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return markdown.replace("](../examples/", "](examples/")


def linked(path: Path) -> str:
    """Return a page of the root with the links that it has as a page of docs/."""
    text = path.read_text(encoding="utf-8").replace("](docs/", "](")
    for source, target in PAGES.items():
        text = text.replace(f"]({source}", f"]({target}")
    # Other files of the repository are no pages.
    return re.sub(r"\[([^\]]+)\]\((?:infra|tests|LICENSE)[^)]*\)", r"\1", text)


def commands() -> str:
    """Return every command with its arguments and options."""
    group = typer.main.get_command(app)
    lines = ["# Commands", "", "`clvr COMMAND -h` prints the same.", ""]
    for name, command in commands_below(group.commands):  # type: ignore[attr-defined]
        lines += [f"## clvr {name}", "", _escaped((command.help or "").strip()), ""]
        if example := getattr(command, "example", ""):
            lines += ["```", example, "```", ""]
        rows = list(_parameters(command))
        if rows:
            lines += ["| option | meaning | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _parameters(command: Any) -> Iterator[str]:
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        names = " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        name = names if is_option else f"`{(parameter.metavar or parameter.name).upper()}`"
        default = parameter.default
        shown = "" if default in (None, False, (), []) or callable(default) else f"`{default}`"
        yield f"| {name} | {_escaped(getattr(parameter, 'help', '') or '')} | {shown} |"


def settings() -> str:
    """Return every setting with its variable and its default."""
    lines = [
        "# Settings",
        "",
        "Flags override `CLVR_*` variables, which override `clvr.yaml`, which overrides the defaults.",
        "`clvr config` prints each value and its origin.",
        "",
        "| `clvr.yaml` | variable | meaning | default |",
        "| --- | --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(
            f"| `{name}` | `CLVR_{name.upper()}` | {_escaped(field.description or '')} | {default} |"
        )
    return "\n".join(lines)


def exit_codes() -> str:
    """Return the table of exit codes."""
    rows = [f"| {code} | {text.meaning} | {text.remedy} |" for code, text in EXIT_CODES.items()]
    return "\n".join(["# Exit codes", "", "| code | meaning | remedy |", "| --- | --- | --- |", *rows])


def json_outputs() -> str:
    """Return the keys of the JSON of every command."""
    lines = [
        "# JSON",
        "",
        "Every command but `demo` and `serve` prints one JSON document with `--json`. `clvr schema COMMAND`",
        "prints its JSON Schema, `clvr schema` lists all. An object states its schema, as in",
        '`"schema": "search/1"`; a list has no place for it. Within a version keys are only added: a key',
        "that is removed or renamed, or whose values change, raises the version.",
        "",
        "Times are ISO 8601, UTC. `captured_at` is as in the archive: milliseconds since the epoch, UTC, -1",
        "if unknown. A `crop_id` that is a number has 64 bits, which JavaScript rounds.",
        "",
    ]
    for name, schema in stored_schemas().items():
        title = "An error" if name == ERROR else f"clvr {name}"
        lines += [f"## {title}", "", f"`{label_of(name)}`", ""]
        kinds = dict(schema.get("$defs", {}))
        for form in schema.get("anyOf", [schema]):
            lines += ["A list of:", ""] if form.get("type") == "array" else []
            items = form.get("items", form)
            for shown in items.get("anyOf", [items]):
                lines += _keys(kinds.pop(_referred(shown)) if "$ref" in shown else shown)
        for kind, form in kinds.items():
            lines += [f"**{kind}**", "", *_keys(form)]
    return "\n".join(lines)


def _keys(form: dict[str, Any]) -> Iterator[str]:
    """Yield the description of an object and the table of its keys."""
    yield from (_escaped(form.get("description", "")), "", "| key | type |", "| --- | --- |")
    for key, value in form["properties"].items():
        optional = "" if key in form.get("required", ()) else " (optional)"
        yield f"| `{key}`{optional} | {_escaped(_type_of(value))} |"
    yield ""


def _referred(schema: dict[str, Any]) -> str:
    return str(schema["$ref"].rpartition("/")[2])


def _type_of(schema: dict[str, Any]) -> str:
    """Return a type in words, such as `list of string or null`."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type_of, schema["anyOf"])))
    if "$ref" in schema:
        return _referred(schema)
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("format") == "date-time":
        return "time"
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"list of {_type_of(schema['items'])}" if "items" in schema else "list"
    values = schema.get("additionalProperties")
    return f"object of {_type_of(values)}" if isinstance(values, dict) else kind


def recipes() -> str:
    """Return the fields of a recipe, and the shipped ones."""
    lines = ["# Recipes", "", "[Training](../training.md) explains how to choose and change one.", ""]
    for title, model in (("Fields of a recipe", Recipe), ("Fields of a stage", Stage)):
        lines += [f"## {title}", "", "| field | meaning | default |", "| --- | --- | --- |"]
        for name, field in model.model_fields.items():
            default = "" if field.is_required() or field.default is None else f"`{field.default}`"
            lines.append(f"| `{name}` | {_escaped(field.description or '')} | {default} |")
        lines.append("")
    for name in SHIPPED:
        shown = yaml.safe_dump(load_recipe(name, []).model_dump(mode="json"), sort_keys=False)
        lines += [f"## {name}", "", "```yaml", shown, "```", ""]
    return "\n".join(lines)


def api() -> str:
    """Return the directives by which mkdocstrings writes the public API."""
    lines = ["# API", "", "[Python](../python.md) shows how the names fit together.", ""]
    for package in (clvr_model, index):
        lines += [f"## {package.__name__}", ""]
        for name in package.__all__:
            lines += [f"::: {package.__name__}.{package._MODULES[name]}.{name}", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
