"""Tables, sizes, durations and counts for the terminal; warnings."""

from click.testing import CliRunner

from common.terminal import (
    SHOWN_LINES,
    count,
    duration,
    first_lines,
    say,
    size,
    table,
    warn,
    warned,
)
from dataset.export import main as export

SIZES = {
    **{0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 12_345_678.0: "12.3 MB"},
    **{999_949_999: "999.9 MB", 999_999_999: "1.0 GB", 4.2e9: "4.2 GB", 5.55e15: "5,550.0 TB"},
}
DURATIONS = {
    **{0.04: "0.0 s", 9.94: "9.9 s", 9.96: "10 s", 59.7: "60 s", 99.4: "99 s"},
    **{100: "1 min 40 s", 3599.6: "60 min 0 s", 18_720: "5 h 12 min"},
}
COUNTS = {0: "0 labels", 1: "1 label", 1234: "1,234 labels"}


def test_numbers_as_text():
    assert {number: size(number) for number in SIZES} == SIZES
    assert {number: duration(number) for number in DURATIONS} == DURATIONS
    assert {number: count(number, "label") for number in COUNTS} == COUNTS


def test_table_is_aligned():
    assert table(("name", "number"), [("a", "1"), ("long name", "12,345")]).splitlines() == [
        "name       number",
        "a               1",
        "long name  12,345",
    ]
    rows = [("cat", "POSITIVE", "1"), ("horse", "NEW", "1,000")]
    assert table(("category", "mode", "labels"), rows, text_columns=2).splitlines() == [
        "category  mode      labels",
        "cat       POSITIVE       1",
        "horse     NEW        1,000",
    ]


def test_what_a_message_names_cannot_act_on_the_terminal(capsys):
    say("red\x1b[31m.jpg\nsecond line")
    assert capsys.readouterr().err == "red\\x1b[31m.jpg\nsecond line\n"
    done = CliRunner().invoke(export, ["red\x1b[31m", "--to", "x.parquet"], color=True)
    assert done.output.startswith("Error: red\\x1b[31m has no readable")


def test_a_warning_is_said_and_kept_for_the_report(capsys):
    before = len(warned)
    warn("something is wrong")
    assert capsys.readouterr().err == "something is wrong\n"
    assert warned[before:] == ["something is wrong"]


def test_first_lines(tmp_path):
    lines = [f"line {number}" for number in range(SHOWN_LINES + 2)]
    path = tmp_path / "x.txt"
    shown = "".join(f"      {line}\n" for line in lines[:SHOWN_LINES])
    assert first_lines(lines) == f"{shown}      ... and 2 more"
    assert first_lines(lines[:SHOWN_LINES], path) == shown.rstrip("\n")
    assert not path.exists()
    assert first_lines(lines, path) == f"{shown}      ... and 2 more; all are in {path}"
    assert path.read_text().splitlines() == lines
    assert first_lines(lines, path, "[]") == f"{shown}      ... and 2 more; all are in {path}"
    assert path.read_text() == "[]"
    missing = tmp_path / "x" / "y"
    said = f"all could not be written to {missing} (No such file or directory)"
    assert first_lines(lines, missing).endswith(said)
