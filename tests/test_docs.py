"""The generated pages say what the code says."""

import pytest

from cognate.data.sources import SOURCES
from tools.docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    """`make docs` writes it anew after the table it is printed from has changed."""
    assert (DOCS / name).read_text() == PAGES[name]()


def test_the_files_of_a_data_folder_are_listed_as_they_are_read() -> None:
    text = (DOCS / "data.md").read_text()
    for source in SOURCES.values():
        files = ", ".join(f"`{split}.parquet`" for split in source.splits)
        assert f"| {source.name} | `{source.folder}/` | {files} |" in text
