"""The documents against the program: options, commands, folders and files that they name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from common.program import ROOT
from tests.test_house import RANKS


def section(document: str, heading: str) -> str:
    """The text below a heading of a document, up to the next heading of that level or a higher."""
    text = (ROOT / document).read_text()
    level = heading.split()[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S
    )
    assert found, f"{document} has no heading {heading!r}"
    return found[1]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)


def test_contributing_shows_the_order_of_imports():
    (order,) = code_blocks(section("CONTRIBUTING.md", "### The order of imports"))
    ranks = [{name.removesuffix(".py") for name in line.split()} for line in order.splitlines()]
    assert ranks == list(RANKS)


def test_contributing_has_the_sentence_of_every_folder():
    tree, *_ = code_blocks(section("CONTRIBUTING.md", "## Where things are"))
    shown = dict(re.findall(r"^(\S+)/ +(.+)$", tree, re.M))
    assert shown.pop("docs")
    assert shown == {
        str(path.parent.relative_to(ROOT)): sentence(path)
        for parent in ROOT.glob("*/__init__.py")
        for path in parent.parent.rglob("__init__.py")
    }


def sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
