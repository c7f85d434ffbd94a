"""The training report and what it is drawn from: only what the run directories hold, and never a figure that was not measured."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from cognate.cli import app
from cognate.config import SPECIALISTS, resolve
from cognate.events import Kind
from cognate.jobdir import JobContext, JobFailed
from cognate.metrics import KEYS
from cognate.report.charts import MOST_POINTS, Band, Line, line_chart, log_ticks, ticks
from cognate.report.document import Charts, Heading, Items, Table, Text, to_html, to_markdown
from cognate.report.history import epochs, metrics_csv, read_history
from cognate.report.training import perform, training_report
from cognate.rundir import Journal, Places, RunDir, write_json

SHA = {"model.safetensors": {"bytes": 2**20, "sha256": "ab" * 32}}
PLAN = {
    "total_steps": 8, "steps_per_epoch": [4, 4], "total_params": 1234, "rows_at_once": 4, "compiled": "nothing", "fill_ratio": 0.98,
    "tokenizer": {"tokens": 400, "sha256": "cd" * 32},
    "curriculum": {"datasets": [{"dataset": "gsm8k", "trained": 90, "stage": 1, "validation": 5, "duplicates": 2}]},
}  # fmt: skip
STARTED = {"device": "cpu", "precision": "float32", "threads": 2, "torch": "2"}


def run_of(folder: Path, *attempts: list[tuple[Kind, dict[str, Any]]], preset: str = "reasoning") -> RunDir:
    """A run directory with these journals."""
    run = RunDir(folder)
    run.create(resolve(preset))
    for number, events in enumerate(attempts, start=1):
        attempt = run.attempt(number)
        attempt.create()
        journal = Journal(attempt)
        for kind, data in events:
            journal.append(kind, **data)
        journal.close()
    return run


def row(step: int, **values: float) -> tuple[Kind, dict[str, Any]]:
    return Kind.METRICS, {"step": step, "epoch": step / 4, "values": values, "progress": {}}


def began(resumed_from: int | None = None) -> list[tuple[Kind, dict[str, Any]]]:
    return [(Kind.STARTED, {**STARTED, "resumed_from_step": resumed_from}), (Kind.PLAN, PLAN)]


@pytest.fixture
def interrupted(tmp_path: Path) -> RunDir:
    """Killed at step 5, resumed from 4, finished; the loss of step 5 differs between the two."""
    saved = (Kind.CHECKPOINT, {"step": 4, "name": "step_000004", "files": SHA, "kept_steps": [4]})
    first = [*began(), row(0, val_loss=6.0), *(row(step, loss=10.0 - step) for step in range(1, 4))]
    first += [row(4, loss=6.0, val_loss=5.5, epoch_time_minutes=0.5, accuracy_gsm8k=0.125), saved, row(5, loss=77.0)]
    second = [*began(4), (Kind.WARNING, {"message": "cold | <b>"}), *(row(step, loss=1.0) for step in (5, 6, 7))]
    second += [row(8, loss=math.nan, val_loss=0.5, total_params=1234.0), (Kind.FINISHED, {"step": 8})]
    run = run_of(tmp_path / "run_1", first, second)
    write_json(run.attempt(1).exit, {"code": None, "signal": 9, "at": 0})
    return run


def test_a_checkpoint_was_saved_when_it_was_told_first(tmp_path: Path) -> None:
    """An attempt tells again of the one it goes on from; one that was made anew is another."""
    other = {"model.safetensors": {"bytes": 2**20, "sha256": "cd" * 32}}
    saved = {"step": 4, "name": "step_000004", "files": SHA, "kept_steps": [4]}
    run = run_of(tmp_path / "run", [*began(), (Kind.CHECKPOINT, saved)], [*began(4), (Kind.CHECKPOINT, saved)])
    journals = [attempt.journal.read_text().splitlines() for attempt in run.attempts()]
    assert read_history(run).checkpoints[4].at == json.loads(journals[0][-1])["at"] < json.loads(journals[1][-1])["at"]
    anew = run_of(tmp_path / "anew", [*began(), (Kind.CHECKPOINT, saved)], [*began(), (Kind.CHECKPOINT, {**saved, "files": other})])
    assert read_history(anew).checkpoints[4].data["files"] == other


def test_the_row_of_the_latest_attempt_counts(interrupted: RunDir) -> None:
    history = read_history(interrupted)
    assert [entry.step for entry in history.rows] == list(range(9))
    assert history.rows[5].values["loss"] == 1.0
    assert (history.attempts[1].resumed_from, history.is_finished) == (4, True)


def test_an_epoch_is_the_mean_of_its_finite_rows(interrupted: RunDir) -> None:
    first, second = epochs(read_history(interrupted))
    assert (first.loss, first.last_loss, first.rows, first.last_step, first.is_whole) == (7.5, 6.0, 4, 4, True)
    assert (second.loss, second.rows) == (1.0, 4)
    assert (first.ended_with["val_loss"], second.ended_with["val_loss"]) == (5.5, 0.5)


def test_an_epoch_that_is_not_over_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run_1", [*began(), row(1, loss=9.0)])
    (first,) = epochs(read_history(run))
    assert not first.is_whole
    assert "| 1 | run | 8-10 | 9.0000 | – | not over |" in to_markdown(training_report({"run": run}))


def test_the_csv_has_every_metric_and_names_what_is_not_finite(interrupted: RunDir) -> None:
    header, *lines = metrics_csv(read_history(interrupted)).splitlines()
    assert header.split(",") == ["step", "epoch", "attempt", "at", *KEYS]
    last = dict(zip(header.split(","), lines[-1].split(","), strict=True))
    assert (last["loss"], last["val_loss"], last["perplexity"], last["attempt"]) == ("NaN", "0.5", "", "2")


def test_what_was_measured_afterwards_is_in_the_last_row(interrupted: RunDir) -> None:
    """The three diversity metrics, as in the service's own CSV; of two measurements the newer counts."""
    for value in (0.5, 1.5):
        journal = Journal(interrupted.afterwards)
        journal.append(Kind.METRICS, step=8, epoch=2.0, values={"diversity_avg_halting_steps": value}, progress={})
        journal.close()
    header, *lines = metrics_csv(read_history(interrupted)).splitlines()
    place = header.split(",").index("diversity_avg_halting_steps")
    assert [line.split(",")[place] for line in lines] == [*[""] * 8, "1.5"]


def test_a_damaged_line_becomes_a_warning(interrupted: RunDir) -> None:
    with interrupted.attempt(2).journal.open("ab") as journal:
        journal.write(b"{not json\n")
    report = to_markdown(training_report({"run": interrupted}))
    assert "a line of the journal cannot be read" in report


def test_what_was_measured_stands_beside_what_was_expected(interrupted: RunDir) -> None:
    report = to_markdown(training_report({"my run": interrupted}))
    assert "| 1 | my run | 8-10 | 6.0000 | 5.5000 | lower |" in report
    assert "| 3 | my run | 5-7 | – | – | not reached |" in report
    assert (
        r"| gsm8k | exact\_match | my run | 0.3-0.4 | 0.01-0.03 | – | – | 0.125 | – | the sample of at most 32 validation items at step 4: "
        r"too few for a verdict |" in report
    )
    assert "| mbpp | pass@1 | my run | 0.2-0.3 | 0 | – | – | – | – | the run was not trained on it, and it was not evaluated |" in report
    assert "killed by signal 9, without a last word" in report
    assert re.search(r"\| 2 \| .* \| cpu \| 4 \| 8 \| 1 \| finished at step 8 \|", report)
    assert "removed since" in report  # the checkpoint that was told of is not there
    assert "| untrained | – | 0 | – | – | 6.0000 |" in report


def test_an_evaluation_counts_before_the_epochs_sample(interrupted: RunDir) -> None:
    made = measured("gsm8k", "exact_match", {"value": 0.36, "n": 1319, "low": 0.33, "high": 0.39}, untrained={"value": 0.001, "n": 1319})
    ours = {"checkpoint": {"model_sha256": "ab" * 32, "name": "step_000004"}, **made}
    theirs = {"checkpoint": {"model_sha256": "00" * 32, "name": "step_000009"}, **made}
    report = to_markdown(training_report({"run": interrupted}, [ours]))
    assert "| 0.000 | 0.001 | 0.360 | reached | test rows (1,319, 95 % 0.330-0.390), step\\_000004 |" in report
    assert to_markdown(training_report({"run": interrupted}, [theirs])) == to_markdown(training_report({"run": interrupted}))


def measured(dataset: str, figure: str, value: dict[str, Any], untrained: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an evaluation says of one dataset."""
    before = {figure: untrained} if untrained else None
    return {"datasets": {dataset: {"figure": figure, "figures": {figure: value}, "rows": "test rows", "chance": 0.0, "untrained": before}}}


def test_of_several_evaluations_the_one_of_most_items_counts_and_of_equals_the_newest(interrupted: RunDir) -> None:
    """A look at twenty items must not displace all of them."""

    def evaluation(dataset: str, value: float, n: int) -> dict[str, Any]:
        found = measured(dataset, "exact_match", {"value": value, "n": n})
        return {"checkpoint": {"model_sha256": "ab" * 32, "name": "step_000004"}, **found}

    given = [evaluation("gsm8k", 0.1, 30), evaluation("gsm8k", 0.2, 30), evaluation("svamp", 0.3, 10), evaluation("gsm8k", 0.9, 20)]
    report = to_markdown(training_report({"run": interrupted}, given))
    assert "| 0.200 | not reached | test rows (30), step\\_000004 |" in report
    assert "| 0.300 | – | test rows (10), step\\_000004 |" in report


def test_a_target_within_the_interval_is_undecided(interrupted: RunDir) -> None:
    made = measured("hellaswag", "acc_norm", {"value": 0.33, "n": 100, "low": 0.25, "high": 0.43})
    report = to_markdown(training_report({"run": interrupted}, [{"checkpoint": {"model_sha256": "ab" * 32, "name": "step"}, **made}]))
    assert "| 0.330 | undecided | test rows (100, 95 % 0.250-0.430), step |" in report


def test_only_specialists_are_held_against_the_plans_losses(tmp_path: Path) -> None:
    """A quickstart of 512 tokens begins where a specialist is expected after two epochs."""
    run = run_of(tmp_path / "run_1", [*began(), *(row(step, loss=6.0) for step in range(1, 5))], preset="quickstart")
    report = training_report({"run": run})
    assert "8-10" not in to_markdown(report)
    assert "Loss: expected and measured" not in to_markdown(report)
    [curves] = [block for block in report if isinstance(block, Charts)]
    assert "expected" not in curves.svgs[0]


@pytest.mark.parametrize(
    ("value", "shown", "met"), [(8.5, "8.500", "reached"), (12.0, "12.000", "not reached"), ("Infinity", "inf", "not reached")]
)
def test_a_perplexity_has_its_target_too_and_reaches_it_from_above(interrupted: RunDir, value: float | str, shown: str, met: str) -> None:
    made = measured("wikitext", "token_perplexity", {"value": value, "n": 10})
    report = to_markdown(training_report({"run": interrupted}, [{"checkpoint": {"model_sha256": "ab" * 32, "name": "step"}, **made}]))
    assert f"| wikitext | token\\_perplexity | run | 7-10 | – | 0.000 | – | {shown} | {met} | test rows (10), step |" in report


def test_the_figures_follow_the_journal(tmp_path: Path) -> None:
    """Nothing in the table is a literal."""
    reports = [
        to_markdown(training_report({"run": run_of(tmp_path / str(loss), [*began(), *(row(step, loss=loss) for step in (1, 2, 3, 4))])}))
        for loss in (9.0, 11.0)
    ]
    assert ["| 9.0000 | – | as expected |" in report for report in reports] == [True, False]
    assert ["| 11.0000 | – | higher |" in report for report in reports] == [False, True]


def test_a_run_that_never_began_has_a_report_too(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run_1")
    report = to_markdown(training_report({"run": run}))
    assert "never begun" in report
    assert "unknown: no attempt came so far as to tell" in report
    assert "<svg" not in to_html("report", training_report({"run": run}))


def test_a_failure_says_why(tmp_path: Path) -> None:
    failed = (Kind.FAILED, {"step": 1, "reason": "nonfinite_loss", "detail": "the loss of step 1"})
    run = run_of(tmp_path / "run_1", [*began(), failed])
    assert "failed: nonfinite\\_loss: the loss of step 1" in to_markdown(training_report({"run": run}))


def test_a_path_that_cannot_be_written_is_named(interrupted: RunDir) -> None:
    done = CliRunner().invoke(app, ["report", "training", str(interrupted.path), "--html", "/nowhere/report.html"])
    assert done.exit_code == 2
    assert "cannot be written" in done.output


class Document(HTMLParser):
    """Notes what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_html_needs_nothing_and_runs_nothing(interrupted: RunDir) -> None:
    """One file without scripts or addresses; the name of a run and a warning are text, whatever they hold."""
    html = to_html("report", training_report({"<script>alert(1)</script>": interrupted}))
    page = Document()
    page.feed(html)
    assert "svg" in page.tags
    assert not {"script", "link", "img", "iframe", "b"} & set(page.tags)
    assert {name for name, _ in page.attributes if name in ("src", "href", "style") or name.startswith("on")} == set()
    assert "cold | &lt;b&gt;" in html
    for svg in re.findall(r"<svg.*?</svg>", html):
        ElementTree.fromstring(svg)


def test_markdown_text_is_no_markup() -> None:
    table = Table(["a|b", "n"], [["x | *y* <b>\nz", None]], frozenset({"n"}))
    written = to_markdown([Heading("a_b", 1), Text("[x](y)"), Items(["`c`"]), Charts("Curves", ["<svg/>"]), table])
    assert written == ("# a\\_b\n\n\\[x\\](y)\n\n- \\`c\\`\n\n| a\\|b | n |\n| --- | ---: |\n| x \\| \\*y\\* \\<b\\> z | – |\n")


# --- charts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.3, 2.31), (-5.0, 1e6), (7.0, 7.0), (0.0, 0.0), (1e-9, 3e-9)])
def test_ticks_are_round_and_reach_around(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= high - 1e-6 * step
    assert 2 <= len(found) <= 8
    assert re.fullmatch(r"[125]\.0+e[+-]\d+", f"{step:.6e}")


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (-2.0, 4.0), (0.5, 0.5), (1.0, 2.0)])
def test_logarithmic_ticks_reach_around(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert len(found) >= 2


def test_a_line_is_drawn_where_its_points_are() -> None:
    svg = line_chart("Loss", "nats", [Line("run", [(0, 0.0), (1, 10.0), (2, 5.0)])], [Band(1, 2.0, 4.0)])
    assert svg is not None
    (line,) = re.findall(r'd="M([\d. L]+)" fill="none"', svg)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point.split())) for point in line.split("L")]
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.3)  # upwards is less
    assert "expected" in svg


def test_nothing_to_draw_is_no_chart_and_what_stands_out_is_drawn() -> None:
    assert line_chart("Loss", "nats", [Line("run", [])]) is None
    assert line_chart("Loss", "nats", [Line("run", [(0, 0.0), (1, -1.0)])], is_log=True) is None
    points = [(number / 100, 1.0) for number in range(100_000)]
    points[54_321] = (points[54_321][0], 99.0)
    svg = line_chart("Loss", "nats", [Line("run", points)])
    assert svg is not None
    (line,) = re.findall(r'd="M([\d. L]+)" fill="none"', svg)
    drawn = [float(point.split()[1]) for point in line.split("L")]
    assert len(drawn) <= MOST_POINTS + 2
    assert min(drawn) < max(drawn) - 100


# --- the command and the job ------------------------------------------------------------------------------


def cognate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": "250", "NO_COLOR": "1", "COGNATE_DATA_DIR": ""})


def test_the_command_prints_or_writes(interrupted: RunDir, tmp_path: Path) -> None:
    printed = cognate("training", str(interrupted.path))
    assert printed.exit_code == 0, printed.output
    assert printed.output.startswith("# Training report: run\\_1\n")
    written = cognate("training", str(interrupted.path), "--html", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "r.md"))
    assert written.output == ""
    assert (tmp_path / "r.md").read_text() == printed.output
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert "is no run directory" in cognate("training", str(tmp_path)).output
    (tmp_path / "other.json").write_text("[]")
    refused = cognate("training", str(interrupted.path), "--evaluation", str(tmp_path / "other.json"))
    assert refused.exit_code == 2
    assert "it has no checkpoint and datasets" in " ".join(refused.output.split())


def test_three_runs_are_compared_and_handed_off(trio: list[RunDir], tmp_path: Path) -> None:
    """The commands as a person types them, from reports to a checked archive."""
    paths = [str(run.path) for run in trio]
    shown = cognate("diversity", *paths)
    assert "reasoning >= memory > speed, in halting steps: " in shown.output
    made = cognate("diversity", *paths, "--json")
    assert made.exit_code == 0, made.output
    assert [member["preset"] for member in json.loads(made.stdout)["members"]] == list(SPECIALISTS)
    (tmp_path / "d.json").write_text(made.stdout)
    output = str(tmp_path / "a.tar")
    refused = cognate("handoff", *paths, "--output", output)
    assert refused.exit_code == 2
    assert "not 22,500,000 to 27,500,000" in " ".join(refused.output.replace("│", " ").split())
    nowhere = cognate("handoff", *paths, "--output", str(tmp_path / "none" / "a.tar"), "--allow-any-size")
    assert (nowhere.exit_code, "No such file" in nowhere.output) == (2, True)
    done = cognate("handoff", *paths, "--output", output, "--allow-any-size", "--diversity", str(tmp_path / "d.json"))
    assert done.exit_code == 0, done.output
    assert "not fit for Phase 2" in done.output
    assert "absent: diversity" not in done.output
    assert json.loads(cognate("verify", output).output)["models"].keys() == set(SPECIALISTS)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    assert cognate("verify", output).exit_code == 1


def test_the_job_writes_both(interrupted: RunDir, tmp_path: Path) -> None:
    context = JobContext(tmp_path, interrupted.path.parent, Places(None, None), "cpu", lambda sentence, fraction: None)
    made = perform({"names": {"run_1": "the run"}, "evaluations": [], "as_of": {}}, context)
    assert [(tmp_path / name).read_text()[:15] for name in made["files"]] == ["<!doctype html>", "# Training repo"]
    with pytest.raises(JobFailed, match="there is no run"):
        perform({"names": {"../run_1": "the run"}, "evaluations": [], "as_of": {}}, context)
