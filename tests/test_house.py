"""Which folder may import which: imports go one way, from a later rank to an earlier one."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from common.program import ROOT

# Each rank imports the ranks before it. Folders and files of one rank do not import each other.
RANKS = (
    {"common"},
    {"gcs"},
    {"storage", "forager", "weights", "dataset"},
    {"models"},
    {"embeddings"},
    {"engine"},
    {"engine/ray"},
    {"preflight", "labels"},
    {"report"},
    {"ingest", "ingest_labels"},
    {"testing"},
    {"demo", "bench"},
    {"tests"},
)
# The local Forager is a program of its own. It imports these parts, and these import it.
LOCAL_FORAGER_IMPORTS = {"common", "gcs", "dataset", "weights"}
IMPORT_LOCAL_FORAGER = {"testing", "demo", "bench", "tests"}

PARTS = set.union(*RANKS, {"local_forager"})


def part_of(module):
    """The folder or root module of the house that a dotted module name belongs to, or None."""
    names = module.split(".")
    if names[:2] == ["engine", "ray"]:
        return "engine/ray"
    return names[0] if names[0] in PARTS else None


def imported_modules(path, source):
    """Every module that a file imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = Path(path).parent.parts[: 1 - node.level or None] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            # `from engine import ray` imports the module engine.ray, `from gcs import X` a name.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def may_import(part, other):
    if part == other:
        return True
    if part == "local_forager":
        return other in LOCAL_FORAGER_IMPORTS
    if other == "local_forager":
        return part in IMPORT_LOCAL_FORAGER
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    return rank[other] < rank[part]


def violations(files):
    """(path, imported part) of every import that the order forbids; files: path -> source."""
    found = set()
    for path, source in files.items():
        part = part_of(".".join(Path(path).with_suffix("").parts))
        assert part, f"{path} has no place in RANKS."
        for module in imported_modules(path, source):
            imported = part_of(module)
            if imported and not may_import(part, imported):
                found.add((path, imported))
    return found


def circle(files):
    """Files that import each other, the first of them again at the end; or []."""
    paths = {path.removesuffix(".py").replace("/", "."): path for path in files}
    imports = {path: set() for path in files}
    for path, source in files.items():
        for module in imported_modules(path, source):
            found = paths.get(module) or paths.get(module.rpartition(".")[0])
            imports[path] |= {found} - {None, path}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def files():
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    paths = [*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    assert len(paths) > 50
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_imports_go_one_way(files):
    assert violations(files) == set()


def test_no_files_import_each_other_in_a_circle(files):
    assert circle(files) == []
    lower = {"a/one.py": "from a.two import f", "a/two.py": "def f():\n    from a import one"}
    assert set(circle(lower)) == set(lower)


@pytest.mark.parametrize(
    ("path", "source", "imported"),
    [
        ("gcs.py", "import storage.uploads", "storage"),
        ("common/names.py", "def f():\n    from gcs import GsPath", "gcs"),
        ("storage/uploads.py", "if TYPE_CHECKING:\n    import dataset.state.rows", "dataset"),
        ("storage/uploads.py", "from storage.async_client import AsyncStorage", None),
        ("engine/ray/driver.py", "from engine import pipeline", None),
        ("engine/pipeline.py", "from engine import ray", "engine/ray"),
        ("engine/pipeline.py", "from .ray import driver", "engine/ray"),
        ("engine/ray/driver.py", "from ..pipeline import Pipeline", None),
        ("engine/__init__.py", "import numpy.testing", None),
        ("local_forager/page/view/rows.py", "import engine.decode", "engine"),
        ("preflight/checks.py", "import local_forager", "local_forager"),
        ("preflight/checks.py", "from tests import harness", "tests"),
        ("testing/servers/processes.py", "import local_forager, ingest", None),
    ],
)
def test_violations_are_found(path, source, imported):
    assert violations({path: source}) == ({(path, imported)} if imported else set())
