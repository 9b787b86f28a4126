"""The documents against the program: options, commands, folders and files that they name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click

import ingest
import ingest_labels
from common.options import shared_options
from common.program import ROOT
from dataset.arrays import EMBEDDINGS
from tests.test_house import RANKS

DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("*.README"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("tests/reference/*.md"),
]
SOURCES = [
    *ROOT.glob("*.py"),
    *(path for package in ROOT.glob("*/__init__.py") for path in package.parent.rglob("*.py")),
]


def section(document: str, heading: str) -> str:
    """The text below a heading of a document, up to the next heading of that level or a higher."""
    text = (ROOT / document).read_text()
    level = len(heading.split()[0])
    end = rf"(?=^#{{1,{level}}} |\Z)"
    found = re.search(rf"^{re.escape(heading)}\n(.*?){end}", text, re.MULTILINE | re.DOTALL)
    assert found, f"{document} has no heading {heading!r}"
    return found[1]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table_rows(text: str) -> list[list[str]]:
    """The cells of the lines of all tables, without their headers."""
    lines = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


# CONTRIBUTING: folders and the order of imports


def test_contributing_shows_the_order_of_imports():
    (order,) = code_blocks(section("CONTRIBUTING.md", "### The order of imports"))
    ranks = [{name.removesuffix(".py") for name in line.split()} for line in order.splitlines()]
    assert ranks == list(RANKS)


def test_contributing_has_the_sentence_of_every_folder():
    tree, *_ = code_blocks(section("CONTRIBUTING.md", "## Where things are"))
    shown = dict(re.findall(r"^(\S+)/ +(.+)$", tree, re.MULTILINE))
    assert shown.pop("docs")
    assert shown == {
        str(path.parent.relative_to(ROOT)): docstring(path).partition("\n")[0]
        for path in SOURCES
        if path.name == "__init__.py"
    }


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


# README: options, embeddings, messages


def options_of(command: click.Command) -> dict[str, str]:
    """The default of each option, as --help shows it; "" where it shows none."""
    context = click.Context(command)
    found = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            default = re.search(r"\[default: \(?(.*?)\)?(; [^;\]]*)?\]", record[1])
            found[parameter.opts[0]] = default[1] if default else ""
    return found


def options_in_readme(heading: str) -> dict[str, str]:
    rows = table_rows(section("README.md", heading))
    return {
        option[0]: row[1]
        for row in rows
        if (option := re.match(r"--\w+", row[0].lstrip("`"))) and len(row) == 3
    }


def test_readme_has_every_option_of_ingest_with_its_default():
    assert options_in_readme("## Options") == options_of(ingest.main)


def test_readme_has_every_option_of_ingest_labels_with_its_default():
    shared = options_of(shared_options(click.Command("shared")))
    own = {name: d for name, d in options_of(ingest_labels.main).items() if name not in shared}
    assert options_in_readme("## Labels") == own
    for name in shared:
        assert f"`{name}`" in section("README.md", "## Labels")


def test_readme_has_every_embedding():
    rows = table_rows(section("README.md", "## What it leaves behind"))
    shown = {row[0]: row[1] for row in rows}
    assert {name: about for name, about in shown.items() if name.endswith("/embeddings.npy`")} == {
        f"`indexes/<index_id>/local/{kind.name}/embeddings.npy`": (
            f"float32 n x {kind.dimension}, {kind.model}: compares {kind.compares}"
        )
        for kind in EMBEDDINGS
    }


def test_messages_in_readme_are_those_of_the_program():
    texts = " ".join(
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    rows = table_rows(section("README.md", "## Troubleshooting"))
    messages = [message[1] for row in rows if (message := re.fullmatch("`(.+)`", row[0]))]
    assert len(messages) >= 5
    assert [message for message in messages if message not in texts] == []


def test_the_first_command_is_within_25_lines():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any("python ingest.py " in line for line in lines[:25])
