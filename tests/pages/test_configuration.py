"""static/js/configuration.js on the real schema, run in the browser it is written for."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from cognate.config import json_schema
from tests.pages.conftest import Server, page_of

pytestmark = pytest.mark.page

PATHS = """async (schema) => {
  const { sections } = await import("/static/js/configuration.js");
  return sections(schema).flatMap(({ fields }) => fields.map(({ path, kind }) => [path, kind]));
}"""


def test_a_section_within_a_section_gives_fields_too(browser: Browser, server: Server) -> None:
    """Else data.augment would be one box of text, and nothing written there would be accepted."""
    with page_of(browser, server.url) as page:
        page.goto("/static/docs.css")
        kinds = dict(page.evaluate(PATHS, json_schema()))
    assert kinds["data.augment.renumber"] == "number"
    assert "data.augment" not in kinds
    assert kinds["data.synthetic_problems"] == "number"
