"""Inside local_forager, imports go one way: a part imports those that come before it in ORDER."""

from pathlib import Path

from common.program import ROOT
from tests.test_house import imported_modules

ORDER = [
    *("errors", "types", "server", "indexes", "analysis", "export", "page", "__main__"),
]


def part(path):
    """The folder or module of local_forager that a path or dotted name belongs to."""
    return path.split("local_forager")[1].strip("./").replace("/", ".").split(".")[0]


def test_imports_go_one_way():
    paths = [*(ROOT / "local_forager").rglob("*.py")]
    assert len(paths) > 20
    for path in paths:
        name = str(path.relative_to(ROOT))
        if part(name) == "__init__":
            continue
        for module in imported_modules(Path(name), path.read_text()):
            if module.startswith("local_forager."):
                assert ORDER.index(part(module)) <= ORDER.index(part(name)), (name, module)
