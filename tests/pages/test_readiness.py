"""The readiness view, on the real service with a made-up measurement."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.pages.conftest import Server
from tests.report.example import EXAMPLE

pytestmark = pytest.mark.page

BLOCKER = {"code": "disk", "severity": "blocker", "message": "The disk is full.", "remedy": "Free disk."}


def answer_with(page: Page, report: dict[str, Any], **changed: Any) -> None:
    """From now on the service answers with this report."""

    def change(route: Route) -> None:
        found = route.fetch().json() | {"state": "measured", "job": None, "report": {**EXAMPLE, **report}, **changed}
        found["verdict"] = found["report"]["verdict"]
        route.fulfill(json=found)

    page.route("**/v1/readiness?*", change)


def test_it_measures_and_shows_the_verdict_by_itself(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="Readiness").click()
    expect(page.locator(".readiness .verdict")).to_have_text("Ready, with warnings")
    expect(page.get_by_role("button", name="Measure again")).to_be_enabled()
    expect(page.locator(".readiness .age")).to_contain_text("Measured")
    shown = page.locator(".findings li")
    assert [item.get_attribute("data-code") for item in shown.all()] == [finding["code"] for finding in EXAMPLE["findings"]]
    expect(page.locator(".readiness")).to_contain_text("26,974,561")
    expect(page.get_by_role("row", name="hotpotqa")).to_contain_text("10,000")
    expect(page.locator("nav a[aria-current]")).to_have_text("Readiness")
    assert page.evaluate("window.violations") == []


def test_measuring_again_is_shown_until_it_is_done(page: Page, server: Server) -> None:
    page.goto("/#/readiness?preset=speed")
    expect(page.locator(".readiness .verdict")).to_have_text("Ready, with warnings")
    before = server.get("/v1/readiness?preset=speed")["measured_at"]
    page.get_by_role("button", name="Measure again").click()
    page.wait_for_function(
        "before => fetch('/v1/readiness?preset=speed').then(r => r.json()).then(f => f.state === 'measured' && f.measured_at !== before)",
        arg=before,
    )
    expect(page.get_by_role("button", name="Measure again")).to_be_enabled()
    expect(page.locator(".readiness progress")).to_be_hidden()


def test_a_preset_is_chosen_by_address(page: Page) -> None:
    page.goto("/#/readiness?preset=memory")
    expect(page.get_by_label("preset")).to_have_value("memory")
    page.get_by_label("recipe").select_option("measured")
    page.wait_for_url("**/#/readiness?preset=memory&recipe=measured")
    expect(page.get_by_label("recipe")).to_have_value("measured")
    page.get_by_label("preset").select_option("quickstart")
    expect(page).to_have_url(page.url.split("#")[0] + "#/readiness?preset=quickstart")
    expect(page.get_by_label("preset")).to_have_value("quickstart")


def test_a_blocker_stands_at_the_top_with_its_remedy(page: Page) -> None:
    answer_with(page, {"verdict": "not_ready", "findings": [BLOCKER, *EXAMPLE["findings"]], "made_at": 1})
    page.goto("/#/readiness")
    expect(page.locator(".readiness .verdict")).to_have_text("Not ready")
    expect(page.locator(".findings li").first).to_have_text("Blocker: The disk is full.Free disk.")


def test_what_was_not_measured_says_why(page: Page) -> None:
    machine = EXAMPLE["machine"] | {"gpu": None, "absent": {"gpu": "every GPU is at work on a run"}}
    projected = {"disk": EXAMPLE["projected"]["disk"]}
    answer_with(page, {"probe": None, "projected": projected, "machine": machine, "absent": {"probe": "cpu is at work"}, "made_at": 2})
    page.goto("/#/readiness")
    expect(page.locator(".report")).to_contain_text("Time and memory were not measured: cpu is at work.")
    expect(page.locator(".report")).to_contain_text("not known: every GPU is at work on a run")


def test_without_data_it_says_what_is_missing(page: Page) -> None:
    data = EXAMPLE["data"] | {"error": "no data folder is given", "datasets": [], "stages": [], "six_plan": None, "total_steps": 0}
    answer_with(page, {"data": data, "probe": None, "targets": [], "risks": [], "findings": [], "verdict": "ready", "made_at": 3})
    page.goto("/#/readiness")
    expect(page.locator(".report .bad")).to_have_text("no data folder is given.")
    expect(page.locator(".findings")).to_contain_text("Nothing stands in the way")


def test_a_failed_measurement_says_so_and_can_be_repeated(page: Page) -> None:
    failed = {"state": "failed", "detail": "its process was killed by signal 9", "progress": None}
    answer_with(page, {}, state="failed", job=failed)
    page.goto("/#/readiness")
    expect(page.locator(".readiness .trouble")).to_contain_text("killed by signal 9")
    expect(page.get_by_role("button", name="Measure again")).to_be_enabled()


def test_it_is_no_wider_than_a_phone_and_text_is_text(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    markup = "<img src=x onerror=\"document.title='taken over'\">"
    finding = {"code": "data_remark", "severity": "warning", "message": markup * 3, "remedy": "x" * 200}
    answer_with(page, json.loads(json.dumps({"findings": [finding], "made_at": 4})))
    page.goto("/#/readiness")
    expect(page.locator(".findings li")).to_contain_text(markup)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.title() == "Readiness – Cognate"
