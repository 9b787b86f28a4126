"""Tables that cog writes into the documents: options of the commands, folders of the repository.

`make format` writes them, `make check` compares.
"""

import ast
import re
from collections.abc import Collection
from pathlib import Path

import click

from common.options import GroupedCommand
from common.program import ROOT

BY_FILE = ("dataset", "engine", "preflight", "steps", "storage")  # whose sentence is not enough


def option_table(
    command: click.Command, names: Collection[str] | None = None, docs: str = ""
) -> str:
    """The options of a command as a Markdown table: those named, in this order; else all.

    docs: where docs/ is, seen from the document.
    """
    context = click.Context(command, **command.context_settings)
    options = {p.name: p for p in command.params if isinstance(p, click.Option)}
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for name in options if names is None else names:
        if record := options[name].get_help_record(context):
            shown, text = record
            meaning, _, extra = text.partition("  [")
            default = re.search(r"default: \(?(.*?)\)?(?:;|\]$)", extra)
            if "required" in extra:
                meaning += " Required."
            meaning = re.sub(r"(?<!\w)--\w+", r"`\g<0>`", meaning)
            meaning = re.sub(r"docs/(\w+\.md)", rf"[\1]({docs}\1)", meaning)
            cells = f"`{shown}`", default[1] if default else "", meaning
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines).replace("|  |", "| |")


def option_groups(command: GroupedCommand) -> str:
    """The options of a command as a table under each of their headings, as its --help has them."""
    groups = command.groups.items()
    return "\n\n".join(
        f"### {heading}\n\n{option_table(command, names)}" for heading, names in groups
    )


def tree() -> str:
    """The modules at the root and all folders with the first lines of their docstrings.

    The folders of BY_FILE are shown with their files.
    """
    modules = [(path.name, path) for path in sorted(ROOT.glob("*.py"))]
    folders = [
        (f"{path.parent.relative_to(ROOT)}/", path)
        for package in sorted(ROOT.glob("*/__init__.py"))
        if package.parent.name != "tests"
        for path in sorted(package.parent.rglob("__init__.py"))
    ]
    for name in BY_FILE:
        at = 1 + [folder for folder, _ in folders].index(f"{name}/")
        files = sorted((ROOT / name).glob("[!_]*.py"))
        folders[at:at] = [(f"    {path.name}", path) for path in files]
    folders.append(("tests/", ROOT / "tests" / "__init__.py"))
    shown = [(name, _first_line(path)) for name, path in modules]
    shown += [("", ""), *((name, _first_line(path)) for name, path in folders)]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name:{width}} {line}".rstrip() for name, line in shown)


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
