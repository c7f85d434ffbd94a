"""What the fault rows counted is printed at the end, for the table of docs/reliability.md."""

import pytest

from tests.faults.processes import COUNTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTED:
        terminalreporter.section("faults")
        for line in COUNTED:
            terminalreporter.write_line(line)
