"""`make verify` tells how results compare with the committed ones, in a real git repository."""

import os
import subprocess

import pytest

from stages.report import verify
from stages.report.verify import COMPARISON, PAGE, PARAMS, RESULTS, format_change

HEADER = "table,run,metric,value,low,high,original,profile,seed"
MIOU = "table1_segmentation,linear,miou,60.2349,59.4,61.0,45.48,embedded,"
ACCURACY = "classification,base,accuracy,77.67,72.62,82.01,,embedded,"
NO_NAME = "table1_segmentation,NA,miou,50.0,49.0,51.0,,embedded,"  # pandas reads NA as a missing value by default
LOSS = "table1_segmentation,linear,train_loss,0.213,,,,embedded,"
SEED = "table1_segmentation,linear,miou,60.2349,59.4,61.0,,embedded,1"
ROWS = [MIOU, NO_NAME, LOSS, SEED, ACCURACY]
PARAMS_TEXT = """
profile: embedded
segmentation: {lr: 1e-3, heads: {linear: {kind: linear}}}
embedded: {backbone: a}
paper: {backbone: b}
"""


def git(*command):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *identity, *command], check=True, capture_output=True)


def write(rows):
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join([HEADER, *rows]) + "\n")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with committed results, in which the pipeline has run."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LC_ALL", "C")  # git's messages in English
    git("init", "-q")
    write(ROWS)
    PARAMS.write_text(PARAMS_TEXT)
    (tmp_path / ".gitignore").write_text(f"{PAGE}\n{COMPARISON}\n")
    git("add", "-A")
    git("commit", "-qm", "results")
    PAGE.touch()
    return tmp_path


def run_verify(monkeypatch, capsys, *arguments):
    """The exit code, what is printed, and the error."""
    with pytest.raises(SystemExit) as ended:
        verify.run_command(arguments)
    output = capsys.readouterr()
    return ended.value.code, output.out, output.err


@pytest.fixture
def run(repository, monkeypatch, capsys):
    """Verify the rows of a results.csv."""

    def run_rows(rows=ROWS, *arguments):
        write(rows)
        return run_verify(monkeypatch, capsys, *arguments)

    return run_rows


def changed(row, value):
    """`ROWS` with another value in one row."""
    cells = row.split(",")
    cells[3] = value
    return [",".join(cells) if other == row else other for other in ROWS]


def line(output, start):
    """The cells of the line that starts so."""
    (found,) = [line for line in output.splitlines() if line.startswith(start)]
    return found.split()


def test_equal_numbers(run):
    code, output, _ = run()
    assert code == 0
    assert line(output, "Table 1: miou") == ["Table", "1:", "miou", "2", "of", "2", "equal"]
    assert output.splitlines()[-1] == "Reproduced: 3 equal."
    assert "Numbers of single seeds or without an interval: all 2 equal." in output
    assert "Files under reports/: all 1 equal." in output


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ("60.2349", "equal", 0),
        ("60.23490000000001", "equal as printed", 0),  # the next float
        ("60.2300001", "equal as printed", 0),
        ("60.24", "within the interval", 0),
        ("59.4", "within the interval", 0),  # its bounds are part of it
        ("59.39", "outside", 1),
        ("61.01", "outside", 1),
        ("", "outside", 1),  # undefined
    ],
)
def test_a_number_is_told_apart(run, value, status, code):
    result, output, error = run(changed(MIOU, value))
    assert (result, error) == (code, "")
    if status == "equal":
        assert output.splitlines()[-1] == "Reproduced: 3 equal."
    else:
        assert " ".join(line(output, "- linear")).endswith(status)
        verdict = "Not reproduced" if code else "Reproduced"
        assert output.splitlines()[-1] == f"{verdict}: 2 equal, 1 {status}."


def test_a_changed_number_is_printed_in_full(run):
    _, output, _ = run(changed(MIOU, "60.5"))
    assert " ".join(line(output, "- linear")) == "- linear 60.23 59.40 to 61.00 60.50 +0.27 within the interval"
    assert "1 of 2 equal" in output
    assert "Files under reports/: 1 differ from the 1 committed (text 1, pictures 0)." in output


@pytest.mark.parametrize(
    ("change", "text"),
    [(0.0, "-"), (float("nan"), "-"), (0.266, "+0.27"), (-5.0, "-5.00"), (-3.2e-6, "-3e-06"), (0.0049, "+5e-03")],
)
def test_a_change_that_two_decimals_do_not_show_has_its_size(change, text):
    assert format_change(change) == text


def test_other_numbers_are_counted_and_listed_but_not_judged(run, repository):
    code, output, _ = run(changed(LOSS, "0.9"))
    assert code == 0
    assert "Numbers of single seeds or without an interval: 1 of 2 equal." in output
    page = COMPARISON.read_text()
    assert page.startswith("# Reproduced: 3 equal.\n")
    assert "train_loss" in page
    assert "0.213 |" in page


def test_a_changed_interval_is_counted(run):
    rows = [row.replace("59.4,61.0", "59.3,61.0") for row in ROWS]
    assert "Intervals: 2 of 3 equal as printed." in run(rows)[1]


def test_a_missing_number_is_no_success(run):
    code, output, error = run([row for row in ROWS if row != MIOU])
    assert code == 2
    assert " ".join(line(output, "- linear")) == "- linear 60.23 59.40 to 61.00 - - not here"
    assert output.splitlines()[-1] == "Not reproduced: 2 equal, 1 not here."
    assert error == "verify: reports/results.csv lacks 1 of the committed headline numbers, though no param differs\n"


def test_other_params_are_another_experiment(run):
    """A head less and one more: nothing is wrong with that."""
    PARAMS.write_text(PARAMS_TEXT.replace("linear: {kind: linear}", "mine: {kind: linear}"))
    code, output, _ = run([MIOU.replace("linear", "mine"), *ROWS[1:]])
    assert code == 0
    assert "- linear " in output
    assert " ".join(line(output, "- mine")) == "- mine - - 60.23 - not committed"
    assert "so these are two experiments: segmentation.heads.linear.kind, segmentation.heads.mine.kind." in output
    assert output.splitlines()[-1] == "Another experiment: 2 equal, 1 not here, 1 not committed."


@pytest.mark.parametrize(
    ("old", "new"),
    [("backbone: b", "backbone: c"), ("1e-3", "0.001")],
    ids=["a profile that is not used", "the same number"],
)
def test_params_that_change_nothing_are_the_same_experiment(run, old, new):
    PARAMS.write_text(PARAMS_TEXT.replace(old, new))
    assert run()[1].splitlines()[-1] == "Reproduced: 3 equal."


def test_an_earlier_revision(run):
    write(changed(MIOU, "60.5"))
    git("commit", "-qam", "other results")
    assert "1 within the interval" in run()[1]
    assert run(ROWS, "--revision", "HEAD~1")[1].splitlines()[-1] == "Reproduced: 3 equal."


def test_pictures_are_counted(run, repository):
    (RESULTS.parent / "curve.png").write_bytes(b"a picture")
    assert "1 differ from the 1 committed (text 0, pictures 1)." in run()[1]


def test_another_profile_cannot_be_compared(run):
    code, _, error = run([row.replace("embedded", "folder") for row in ROWS])
    assert code == 2
    assert error == "verify: reports/results.csv is of profile 'folder', that of HEAD of profile 'embedded'\n"


def test_nothing_in_common_cannot_be_compared(run):
    code, _, error = run([row.replace("linear", "mine") for row in (MIOU, SEED)])
    assert code == 2
    assert "have no number with an interval in common" in error


def test_results_of_another_version_cannot_be_compared(run, repository):
    RESULTS.write_text("run,value\nlinear,1\n")
    git("commit", "-qam", "an old version")
    code, _, error = run()
    assert code == 2
    assert error.startswith("verify: reports/results.csv of HEAD is not a file of this version: ")


def test_before_the_first_run_there_is_nothing_to_compare(run):
    """A fresh clone has the committed results: they must not pass for this machine's."""
    PAGE.unlink()
    assert run()[::2] == (2, "verify: nothing has run here yet; run `make repro`\n")


def test_without_results_there_is_nothing_to_compare(repository, monkeypatch, capsys):
    RESULTS.unlink()
    assert run_verify(monkeypatch, capsys)[::2] == (2, "verify: nothing has run here yet; run `make repro`\n")


def test_a_commit_without_results_is_named(run):
    git("rm", "-q", "--cached", str(RESULTS))
    git("commit", "-qm", "no results")
    code, _, error = run()
    assert code == 2
    assert "results.csv" in error


def test_an_unknown_revision_is_named(run):
    code, _, error = run(ROWS, "--revision", "nonsense")
    assert (code, error) == (2, "verify: git log: bad revision 'nonsense'\n")


def test_outside_a_repository(run, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".git").rename(tmp_path / "no-git")
    code, _, error = run()
    assert code == 2
    assert "not a git repository" in error


def test_without_git(run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run()[::2] == (2, "verify: git is not installed; the committed numbers are read with it\n")
