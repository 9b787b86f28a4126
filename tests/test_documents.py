"""The documents against the program: what they name exists, and the commands that they show run."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingest
import ingest_labels
from common.program import ROOT
from dataset.arrays import EMBEDDINGS
from testing.embedders import LoaderWithoutModels
from testing.photographs import picture
from testing.servers.processes import local_forager
from tests.harness import invoked

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


def test_docs_have_every_embedding():
    rows = table_rows(section("docs/index-files.md", "# What an ingest leaves behind"))
    shown = {row[0]: row[1] for row in rows}
    assert {name: about for name, about in shown.items() if name.endswith("/embeddings.npy`")} == {
        f"`indexes/<index_id>/local/{kind.name}/embeddings.npy`": (
            f"float32 n x {kind.dimension}, {kind.model}: compares {kind.compares}"
        )
        for kind in EMBEDDINGS
    }


def test_messages_in_docs_are_those_of_the_program():
    texts = " ".join(
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    rows = table_rows(section("docs/messages.md", "# Messages"))
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


# What all documents may say


def named_files(document: Path) -> Iterator[str]:
    """The files of the program that a document names."""
    text = document.read_text()
    yield from FILE.findall(text)
    links = re.findall(r"\]\((?!http)([^)#\s]+)", text)
    yield from ((document.parent / link).resolve().relative_to(ROOT).as_posix() for link in links)


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
    missing = {path: sorted(set(named_files(path)) - known) for path in DOCUMENTS}
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


def test_the_code_in_docs_loads_names_and_vectors(world, fast_models):
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    world.ingest("--work_dir", "birds")
    code, *_ = code_blocks(section("docs/index-files.md", "## Open it"))
    found = {}
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


# Commands that the documents show


PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(python|pytest|make) \S")
RUN_HERE = re.compile(
    r"(SERVER_URL=\S+ )?python "
    r"(ingest\.py|ingest_labels\.py|-m (dataset|local_forager)[. ](export|columns)) "
    r"(?!.*--(engine ray|like_image))"
)


def joined(block: str) -> Iterator[str]:
    """The lines of a block, those of one command as one line."""
    command = ""
    for line in block.splitlines():
        command = f"{command} {line.strip()}".strip().removesuffix("\\")
        with contextlib.suppress(ValueError):  # a quotation mark is still open
            shlex.split(command, comments=True)
            if not line.endswith("\\"):
                yield command.partition("  #")[0].strip()
                command = ""


def commands_in(document: Path) -> Iterator[str]:
    """The commands in blocks and, within backticks, in the text."""
    text = document.read_text()
    for block in [*code_blocks(text), *re.findall(r"(?:^    .*\n)+", text, re.M)]:
        yield from joined(block)
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


SHOWN = dict.fromkeys(c for path in DOCUMENTS for c in commands_in(path) if PROGRAM.match(c))


@pytest.fixture
def birds(world, monkeypatch, tmp_path):
    """Images, an index bucket and a server for the dataset birds of the documents."""
    names = "train/a", "train/b", "train/cat-01", "val/v", "val/w", "flat/x"
    for number, name in enumerate(names):
        world.put(**{f"{name}.jpg": picture(number, (80, 60))})
    world.put(**{"val/leak.jpg": picture(0, (80, 60))})  # for the labels of the leaks
    (labels,) = code_blocks(section("README.md", "### Labels"))[:1]
    Path("labels.json").write_text(labels)
    columns, *_ = code_blocks(section("docs/choose.md", "## Columns of your own"))
    Path("cameras.csv").write_text(columns)
    Path("labels.csv").write_text("path,category\ntrain/a.jpg,a\n")
    monkeypatch.setenv("FORAGER_BUCKET", world.index)
    with local_forager(
        tmp_path / "forager-data", tmp_path / "log", "--bucket", world.index
    ) as server:
        monkeypatch.setenv("SERVER_URL", server.url)
        yield world


def test_commands_of_the_documents_run(birds):
    mains = {"ingest.py": ingest.main, "ingest_labels.py": ingest_labels.main}
    commands = [command for command in SHOWN if RUN_HERE.match(command)]
    assert len(commands) >= 8
    for command in commands:
        command = command.partition("python ")[2].replace("gs://bucket/", f"gs://{birds.images}/")
        words = shlex.split(command.removeprefix("-m "))
        module = words[0].replace("local_forager", "local_forager.__main__")
        main = mains.get(words[0]) or importlib.import_module(module).main
        loader = LoaderWithoutModels if main is ingest.main else None
        done = invoked(main, words[1:], loader)
        assert done.exit_code == 0, f"{command}:\n{done.output}"


def problem_of_python(words: list[str]) -> str:
    """What is wrong with a command that begins with `python`, or ""."""
    module = words[2] if words[1] == "-m" else words[1].removesuffix(".py")
    if module in ("venv", "pytest"):
        return ""
    name = module.replace(".", "/")
    if not (ROOT / f"{name}.py").exists() and not (ROOT / name / "__main__.py").exists():
        return f"there is no {module}"
    shared = "common/options.py", "preflight/options.py", "bench/support/measure.py"
    paths = [ROOT / f"{name}.py", *(ROOT / name).rglob("*.py"), *(ROOT / path for path in shared)]
    source = "".join(path.read_text() for path in paths if path.exists())
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    unknown = [option for option in options if f'"{option}"' not in source and option != "--help"]
    return f"{module} has no {', '.join(unknown)}" if unknown else ""


def problem_of_pytest(words: list[str]) -> str:
    """What is wrong with the files and the -k of a pytest command, or ""."""
    paths = [ROOT / word for word in words if word.startswith("tests/")]
    if missing := [path for path in paths if not path.exists()]:
        return f"there is no {missing[0].relative_to(ROOT)}"
    files = [f for path in paths for f in (path.rglob("test_*.py") if path.is_dir() else [path])]
    names = re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in files), re.M)
    wanted = words[words.index("-k") + 1].split(" or ") if "-k" in words and files else []
    unknown = [word for word in wanted if not any(word in name for name in names)]
    return f"no test has {', '.join(unknown)} in its name" if unknown else ""


def problem_of_make(words: list[str]) -> str:
    """What is wrong with a make command, or ""."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    if len(words) > 1 and words[1] not in targets:
        return f"the Makefile has no {words[1]}"
    flags = next((word for word in words if word.startswith("TEST_FLAGS=")), "")
    return problem_of_pytest(shlex.split(flags.partition("=")[2]))


JUDGES = {"python": problem_of_python, "pytest": problem_of_pytest, "make": problem_of_make}


def test_commands_in_documents_exist():
    """Modules, options, tests and targets; also of commands that are not run."""
    assert len(SHOWN) > 50
    problems = {}
    for command in SHOWN:
        program = PROGRAM.match(command)
        words = shlex.split(command[program.start(1) :], comments=True)
        problems[command] = JUDGES[words[0]](words)
    assert {command: problem for command, problem in problems.items() if problem} == {}
