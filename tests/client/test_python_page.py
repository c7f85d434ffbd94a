"""docs/python.md does what it says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_snippets_of_the_page_run(live: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, as one program, with nothing changed but the address."""
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    program = "\n".join(snippets)
    assert program.count("http://127.0.0.1:8000") == 1
    names: dict[str, object] = {}
    exec(compile(program.replace("http://127.0.0.1:8000", live), PAGE.name, "exec"), names)
    names["api"].close()  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert "422 training.batchsize: unknown key 'batchsize'; did you mean 'batch_size'?" in said
    assert "a run that is completed cannot pause" in said
    assert len(names["metrics"]["step"]) >= 100  # type: ignore[index]
    assert re.search(r"from-python completed \d", said)
