"""The documents against the program: embeddings, messages, files and links that they name."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.program import ROOT
from dataset.arrays import EMBEDDINGS

DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("*.README"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("tests/reference/*.md"),
]
SOURCES = [
    *ROOT.glob("*.py"),
    *(path for package in ROOT.glob("*/__init__.py") for path in package.parent.rglob("*.py")),
]
STATIC = ROOT / "local_forager/static"
FILE = re.compile(
    r"(?<![\w/.$<>{}*])([\w-][\w.-]*(?:/[\w.-]+)*\.(?:py|md|ya?ml|toml|js|html|css|README))\b"
)
FILES_OF_OTHERS = {"Lib/pickletools.py"}  # of CPython
HOSTS = {
    *("127.0.0.1", "host", "HOST", "github.com", "docs.ray.io", "pytorch.org"),
    "dl.fbaipublicfiles.com",
}
MACHINE = re.compile(r"(?<![\w.~}-])/(?:work|root|Users|home/(?!ubuntu/))")
# Words that a reader would have to guess at: "512 bytes an image" is "512 bytes per image".
RIDDLES = re.compile(
    r"\b(?:(?:of|to|most|than) so many|lies? (?:in|on|beside)|stands? by|half as many again)\b"
    r"|\b(?:hears?|hearing|intake|as ever|mends?|came to|comes to|the way of)\b"
    r"|(?:\b[kMG]B|\b(?:bytes|numbers|seconds|rows?|transfers?|embedders?|one)) an? "
    r"(?:image|row|GPU|second|node|core|line)\b",
    re.IGNORECASE,
)


def section(document: str, heading: str) -> str:
    """The text below a heading of a document, up to the next heading of that level or a higher."""
    text = (ROOT / document).read_text()
    level = len(heading.split()[0])
    end = rf"(?=^#{{1,{level}}} |\Z)"
    found = re.search(rf"^{re.escape(heading)}\n(.*?){end}", text, re.M | re.S)
    assert found, f"{document} has no heading {heading!r}"
    return found[1]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)


def table_rows(text: str) -> list[list[str]]:
    """The cells of the lines of all tables, without their headers."""
    lines = re.findall(r"^\|(.+)\|$", text, re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines for people, with their numbers: a document's, or the docstrings and comments."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node, clean=False)):
            yield from enumerate(text.splitlines(), node.body[0].lineno)


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


def test_numbers_are_where_contributing_says():
    rows = table_rows(section("CONTRIBUTING.md", "## Numbers that one may want to change"))
    for _, where, *_ in rows[2:]:
        names, file = where.rsplit(" in ", 1)
        text = (ROOT / file.strip("`")).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:class |[\w, ]*\b){name}\b.*(?:=|:)", text, re.M), where


def test_the_first_command_is_within_25_lines():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any("python ingest.py " in line for line in lines[:25])


# What all documents, docstrings and comments may say

TEXTS = DOCUMENTS + SOURCES


def named_files(path: Path) -> Iterator[str]:
    """The files of the program that a document, or the prose of a module, names."""
    for _, line in prose(path):
        yield from FILE.findall(line)
    if path.suffix == ".md":
        links = re.findall(r"\]\((?!http)([^)#\s]+)", path.read_text())
        yield from ((path.parent / link).resolve().relative_to(ROOT).as_posix() for link in links)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def files() -> set[str]:
    """Every way to name a file of the program: with any number of its folders."""
    paths = [*ROOT.glob("*"), *ROOT.glob(".ci/*")]
    for folder in {path.relative_to(ROOT).parts[0] for path in SOURCES} | {"docs"}:
        paths += (ROOT / folder).rglob("*")
    parts = [path.relative_to(ROOT).parts for path in paths]
    return {"/".join(names[first:]) for names in parts for first in range(len(names))}


def test_named_files_exist(files):
    known = files | FILES_OF_OTHERS
    missing = {path: sorted(set(named_files(path)) - known) for path in TEXTS}
    assert {shown(path): names for path, names in missing.items() if names} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    """To known hosts, and to headings that exist."""
    text = document.read_text()
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= HOSTS
    for file, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#([^)\s]+)\)", text):
        target = document.parent / file if file else document
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
        assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


def test_nothing_names_a_path_of_a_developers_machine():
    others = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("requirements*.txt")]
    static = [path for kind in ("*.js", "*.html") for path in STATIC.rglob(kind)]
    named = {
        shown(path)
        for path in (*DOCUMENTS, *SOURCES, *others, *static, *ROOT.glob("docs/*.yaml"))
        if path != Path(__file__) and MACHINE.search(path.read_text())
    }
    assert named == set()


def test_plain_words():
    found = [
        f"{shown(path)}:{number}: {line.strip()}"
        for path in TEXTS
        if path != Path(__file__)
        for number, line in prose(path)
        if RIDDLES.search(line)
    ]
    assert found == []


def test_the_code_in_readme_loads_names_and_vectors(world, fast_models):
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    world.ingest("--work_dir", "birds")
    code, *_ = code_blocks(section("README.md", "## What it leaves behind"))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["images"]["object"].tolist() == ["t/a.jpg", "t/b.jpg", "v/c.jpg"]
    assert found["clip"].shape == (3, 512)
    assert found["similar"]["object"].tolist()[0] == "t/a.jpg"


def test_the_order_of_imports_has_every_part():
    """import-linter holds the order of those that it is told of."""
    text = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^root_packages = \[(.*?)\]", text, re.M | re.S)
    parts = [*ROOT.glob("*.py"), *(path.parent for path in ROOT.glob("*/__init__.py"))]
    assert sorted(re.findall(r"\w+", listed)) == sorted(path.stem for path in parts)
