"""The generated pages say what the code says."""

import pytest

from tools.docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    """`make docs` writes it anew after the table it is printed from has changed."""
    assert (DOCS / name).read_text() == PAGES[name]()
