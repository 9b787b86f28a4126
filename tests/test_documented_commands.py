"""Every command that a document shows is run by a test, or the document says what it needs."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

import ingest
import ingest_labels
from common.program import ROOT
from dataset.state import State
from testing.embedders import LoaderWithoutModels
from testing.photographs import picture
from testing.servers.processes import Service, local_forager
from tests.harness import ask, put
from tests.test_documents import DOCUMENTS, code_blocks, section

PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:git|python|pip|pytest|make|curl|gcloud|hf|ray|ulimit) \S"
)
# A block without a language, the lines of an indented one, or a paragraph or list.
PART = re.compile(
    r"^```\w+\n.*?^```$|^```\n(?P<block>.*?)^```$|(?P<indented>(?:^    .*\n)+)"
    r"|^(?P<prose>\S.*?)(?=\n\s*\n|\n```|\Z)",
    re.M | re.S,
)
NEEDS = re.compile(r"\bneeds? (?:an? |the )?(?:\w+ ){0,2}(?:access|account|cluster|GPU|internet)\b")
# Commands that other tests or CI run: how they begin, where they are run, and what to find there.
RUN_ELSEWHERE = (
    ("python -m venv", "Makefile", "-m venv"),
    ("pip install -r requirements.txt", "requirements-dev.txt", "-r requirements.txt"),
    ("pip install -r requirements-ray.txt", ".ci/run", "-r requirements-ray.txt"),
    ("(.venv/bin/python -m )?pytest", "Makefile", "-m pytest"),  # its words: below
    ("make demo", "tests/test_demo.py", "demo.py"),
    ("make clean", "tests/test_demo.py", "clean"),
    ("make bench", "tests/test_benchmarks.py", "bench."),
    ("(WRITE_TRANSCRIPTS=1 )?make (test|check|format)", ".ci/run", "make test"),
    ("make soak", "Makefile", "-m soak"),
    ("python -m bench.gpu", "tests/models/test_bench_gpu.py", "gpu.main"),
    (r"python -m bench\.", "tests/test_benchmarks.py", "bench."),
    ("python -m testing.make_weights", "testing/weights.py", "make_weights.py"),
    ("SERVER_URL=.* --engine ray$", "tests/engine/test_ray_command.py", '"--engine", "ray"'),
)


class Shown(NamedTuple):
    """A command in a document, and the words beside it that may say what it needs."""

    document: str
    command: str
    beside: str

    @property
    def words(self) -> list[str]:
        """The words of the command, without `VARIABLE=value` and directories in front."""
        words = shlex.split(self.command, comments=True)
        while re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        return [words[0].rpartition("/")[2], *words[1:]]


def joined(block: str) -> Iterator[str]:
    """The lines of a block, those of one command as one line."""
    command = ""
    for line in block.splitlines():
        command = f"{command} {line.strip()}".strip()
        try:
            shlex.split(command, comments=True)
        except ValueError:  # a quotation mark is still open
            continue
        yield command
        command = ""


def shown_in(document: Path) -> Iterator[Shown]:
    before = ""
    for part in PART.finditer(document.read_text()):
        for command in joined(part["block"] or part["indented"] or ""):
            words, _, comment = command.partition("  #")
            yield Shown(document.name, words.strip(), f"{before} {comment}")
        before = " ".join((part["prose"] or "").split())
        is_table = before.startswith("|")
        for unit in part["prose"].splitlines() if is_table else [before]:
            for command in re.findall(r"(?<!`)`([^`]+)`(?!`)", unit):
                yield Shown(document.name, command, unit)


SHOWN = [shown for path in DOCUMENTS for shown in shown_in(path) if PROGRAM.match(shown.command)]
MARKED = {shown.command for shown in SHOWN if NEEDS.search(shown.beside)}


def elsewhere(command: str) -> dict[str, str]:
    """Where else a command is run: files, and what to find in them."""
    return {file: text for begins, file, text in RUN_ELSEWHERE if re.match(begins, command)}


RUN_HERE = [
    shown.command for shown in SHOWN if shown.command not in MARKED and not elsewhere(shown.command)
]


class Environment:
    """A bucket of images, an index bucket and a server, for the commands of the documents."""

    def __init__(self, make_bucket, server: Service) -> None:
        self.images, self.server = make_bucket(), server
        photographs = {f"train/t{n}.jpg": picture(n, (80, 60)) for n in range(4)}
        photographs |= {"train/cat-01.jpg": picture(9, (80, 60))}
        photographs |= {"val/v.jpg": picture(0, (80, 60)), "val/w.png": picture(8, kind="PNG")}
        for name, data in photographs.items():
            put(self.images, name, data=data)
        (labels,) = code_blocks(section("README.md", "## Labels"))[:1]
        Path("labels.json").write_text(labels)

    def substituted(self, command: str) -> list[str]:
        """The words of a command, with what exists here for what stands for something."""
        for placeholder, value in {
            r"SERVER_URL=\S+ ": "",
            r"http://127\.0\.0\.1:8000": self.server.url,
            r"http://127\.0\.0\.1:9023": self.server.url,
            "gs://bucket/": f"gs://{self.images}/",
            "<index_id>": index_id(Path("birds")),
            '"dataset": "birds"': '"dataset": "birds-3"',  # birds is there already
            "65536": "64",  # which is below every limit
        }.items():
            command = re.sub(placeholder, value, command)
        return shlex.split(command)

    def run(self, command: str) -> None:
        """Run a command to its end, or until it serves; it must not fail."""
        words = self.substituted(command)
        if words[:3] == ["python", "-m", "local_forager"] and "export" not in words:
            return  # it is `server`
        if words[0] == "python" and words[2].startswith("tests."):
            with Service([sys.executable, *words[1:]], Path("service.log")):
                return
        if words[0] == "curl":
            url, option, data = words[1:]
            assert option == "-d"
            assert json.loads(ask(url, "POST", data.encode())) == {"status": "success"}
        elif words[0] == "python":
            assert_succeeds(words[1:])
        else:
            assert words[0] == "ulimit", f"no test runs {command}"
            subprocess.run(["bash", "-c", shlex.join(words)], check=True)


def index_id(work: Path) -> str:
    """The index of the ingest in a work directory, or "" before it began."""
    if not (work / "state.sqlite").exists():
        return ""
    state = State(work / "state.sqlite")
    found = state.index_id
    state.close()
    return found


def assert_succeeds(words: list[str]) -> None:
    """Run a command of this program in this process, ingest.py with models that take no time."""
    if words[0] == "-m":
        name = words[1] if words[1] != "local_forager" else "local_forager.__main__"
        main, arguments = importlib.import_module(name).main, words[2:]
    else:
        main = {"ingest.py": ingest.main, "ingest_labels.py": ingest_labels.main}[words[0]]
        arguments = words[1:]
    loader = LoaderWithoutModels if main is ingest.main else None
    result = CliRunner().invoke(main, arguments, obj=loader)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{shlex.join(words)}:\n{result.output}"


@pytest.fixture
def environment(make_bucket, emulator, tmp_path, monkeypatch):
    """With the server that README starts, except for its port and bucket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORAGER_BUCKET", make_bucket())
    (command,) = {c for c in RUN_HERE if c.startswith("python -m local_forager --port")}
    options = shlex.split(command)[3:]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.pop("--data_dir") == "forager-data"
    assert given.keys() == {"--port", "--bucket"}
    with local_forager(tmp_path / "forager-data", tmp_path / "log") as server:
        monkeypatch.setenv("SERVER_URL", server.url)
        yield Environment(make_bucket, server)


def test_commands_of_the_documents_run(environment):
    assert len(RUN_HERE) > 10
    for command in dict.fromkeys(RUN_HERE):
        environment.run(command)


def test_other_commands_are_run_elsewhere_or_marked():
    found = {file: (ROOT / file).read_text() for _, file, _ in RUN_ELSEWHERE}
    for shown in SHOWN:
        assert all(text in found[file] for file, text in elsewhere(shown.command).items()), shown
    assert {"gcloud auth application-default login", "ray up docs/ray-cluster.yaml"} <= MARKED


def problem_of_python(words: list[str]) -> str:
    """What is wrong with a command that begins with `python`, or ""."""
    module = words[2] if words[1] == "-m" else words[1].removesuffix(".py")
    if module in ("venv", "pytest"):
        return ""
    name = module.replace(".", "/")
    if not (ROOT / f"{name}.py").exists() and not (ROOT / name / "__main__.py").exists():
        return f"there is no {module}"
    shared = "common/options.py", "preflight/options.py", "bench/support/measure.py"
    paths = [ROOT / f"{name}.py", *(ROOT / name).glob("*.py"), *(ROOT / path for path in shared)]
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
    judged = [shown for shown in SHOWN if shown.words[0] in JUDGES]
    assert len(judged) > 50
    problems = {shown.command: JUDGES[shown.words[0]](shown.words) for shown in judged}
    assert {command: problem for command, problem in problems.items() if problem} == {}


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python ingest.py a b c --forget", "ingest has no --forget"),
        ("python -m bench.nothing", "there is no bench.nothing"),
        ("pytest tests/test_nothing.py", "there is no tests/test_nothing.py"),
        ("pytest tests/test_demo.py -k two_ways", "no test has two_ways in its name"),
        ("make all", "the Makefile has no all"),
        ("make test TEST_FLAGS=tests/nothing", "there is no tests/nothing"),
    ],
)
def test_commands_that_do_not_exist_are_found(command, problem):
    words = shlex.split(command)
    assert JUDGES[words[0]](words) == problem
