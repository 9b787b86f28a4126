"""The documents against the program: options, commands, folders and files that they name."""

from __future__ import annotations

import ast
import re
import shlex
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

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
STATIC = ROOT / "local_forager/static"
COMMAND = r"(?:[A-Z_]+=\S+ )*(?:\S*/)?((?:python|pytest|make)( .+|$))"
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


# CONTRIBUTING: folders and the order of imports


def test_contributing_shows_the_order_of_imports():
    (order,) = code_blocks(section("CONTRIBUTING.md", "### The order of imports"))
    ranks = [{name.removesuffix(".py") for name in line.split()} for line in order.splitlines()]
    assert ranks == list(RANKS)


def test_contributing_has_the_sentence_of_every_folder():
    tree, *_ = code_blocks(section("CONTRIBUTING.md", "## Where things are"))
    shown = dict(re.findall(r"^(\S+)/ +(.+)$", tree, re.M))
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


# Commands in the documents


class Shown(NamedTuple):
    """A command that a document shows, without `VARIABLE=value` in front."""

    document: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def shown_commands() -> Iterator[Shown]:
    """The commands in code of all documents that this test can judge: python, pytest and make."""
    for document in DOCUMENTS:
        text = document.read_text()
        spans = re.findall(
            r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        )
        indented = re.findall(r"^    (\S.*)$", text, re.M)
        blocks = [line for block in code_blocks(text) for line in block.splitlines()]
        for line in (*spans, *indented, *blocks):
            command = re.match(COMMAND, " ".join(line.split()))
            if command:
                words = shlex.split(command[1], comments=True)
                yield Shown(document.name, words)


def options_in(module: str) -> str:
    """The sources that may define the options of a module's command."""
    paths = [ROOT / f"{module.replace('.', '/')}.py", *(ROOT / module).glob("*.py")]
    shared = "common/options.py", "preflight/options.py", "bench/support/measure.py"
    paths += [ROOT / path for path in shared]
    return "".join(path.read_text() for path in paths if path.exists())


def problem_of_python(words: list[str]) -> str:
    """What is wrong with a command that begins with `python`, or ""."""
    module = words[2] if words[1] == "-m" else words[1].removesuffix(".py")
    if module in ("venv", "pytest"):
        return ""
    name = module.replace(".", "/")
    if not (ROOT / f"{name}.py").exists() and not (ROOT / name / "__main__.py").exists():
        return f"there is no {module}"
    source = options_in(module)
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    unknown = [option for option in options if f'"{option}"' not in source and option != "--help"]
    return f"{module} has no {', '.join(unknown)}" if unknown else ""


def problem_of_pytest(words: list[str]) -> str:
    """What is wrong with the files and the -k of a pytest command, or ""."""
    files: list[Path] = []
    for word in words:
        if word.startswith("tests/"):
            path = ROOT / word
            if not path.exists():
                return f"there is no {word}"
            files += path.rglob("test_*.py") if path.is_dir() else [path]
    names = re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in files), re.M)
    if "-k" in words:
        wanted = words[words.index("-k") + 1].split(" or ")
        missing = [word for word in wanted if not any(word in name for name in names)]
        return f"no test has {', '.join(missing)} in its name" if missing and files else ""
    return ""


def problem_of_make(words: list[str]) -> str:
    """What is wrong with a make command, or ""."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    if len(words) > 1 and words[1] not in targets:
        return f"the Makefile has no {words[1]}"
    flags = next((word for word in words if word.startswith("TEST_FLAGS=")), "")
    return problem_of_pytest(shlex.split(flags.partition("=")[2]))


JUDGES = {"python": problem_of_python, "pytest": problem_of_pytest, "make": problem_of_make}


def test_commands_in_documents_exist():
    commands = list(shown_commands())
    assert len(commands) > 50
    problems = {str(command): JUDGES[command.words[0]](command.words) for command in commands}
    assert {command: problem for command, problem in problems.items() if problem} == {}


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python ingest.py a b c --restart", ""),
        ("python ingest.py a b c --forget", "ingest has no --forget"),
        ("python intake.py", "there is no intake"),
        ("python -m bench.nothing", "there is no bench.nothing"),
        ("pytest tests/test_nothing.py", "there is no tests/test_nothing.py"),
        ("pytest tests/test_house.py -k one_way", ""),
        ("pytest tests/test_house.py -k two_ways", "no test has two_ways in its name"),
        ("make all", "the Makefile has no all"),
        ("make test TEST_FLAGS=tests/nothing", "there is no tests/nothing"),
    ],
)
def test_commands_that_do_not_exist_are_found(command, problem):
    words = shlex.split(command)
    assert JUDGES[words[0]](words) == problem


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
    assert world.run("--work_dir", "birds").exit_code == 0
    code, *_ = code_blocks(section("README.md", "## What it leaves behind"))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["images"]["object"].tolist() == ["t/a.jpg", "t/b.jpg", "v/c.jpg"]
    assert found["clip"].shape == (3, 512)
    assert found["similar"]["object"].tolist()[0] == "t/a.jpg"
