"""The page in a real browser, on the real service."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, WebSocketRoute, expect

from cognate.config import MEASURED, resolve
from tests.pages.conftest import Server, page_of
from tests.pages.fake_worker import HOSTILE, MARKUP, UNLUCKY

pytestmark = pytest.mark.page

REACHED = """least => {
  const said = document.querySelector(".headline .canvas")?.ariaLabel ?? "";
  return Number(/at step ([0-9,]+)/.exec(said)?.[1].replaceAll(",", "")) >= least;
}"""

# At least a twentieth of the headline chart has the band's colour, see-through as it is.
BAND_PIXELS = """() => {
  const canvas = document.querySelector(".headline canvas");
  const band = getComputedStyle(document.querySelector(".expected .band")).backgroundColor.match(/[\\d.]+/g).map(Number);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) {
    count += Math.abs(data[at + 3] - 255 * band[3]) < 2 && [0, 1, 2].every((part) => Math.abs(data[at + part] - band[part]) < 6);
  }
  return count > canvas.width * canvas.height / 20;
}"""


def open_run(page: Page, run_id: str) -> None:
    page.goto(f"/#/runs/{run_id}")
    expect(page.locator(".run .facts")).to_be_visible()


def expect_state(page: Page, state: str) -> None:
    expect(page.locator(".run .state")).to_have_text(state)


def expect_steps(page: Page, at_least: int) -> None:
    """Wait until the headline chart says that it has this step."""
    page.wait_for_function(REACHED, arg=at_least)


def held(server: Server, is_held: bool) -> None:
    httpx.put(f"{server.url}/v1/queue", json={"held": is_held}).raise_for_status()


@pytest.fixture
def _held(server: Server) -> Iterator[None]:
    """Nothing is launched during the test."""
    held(server, True)
    yield
    held(server, False)


# --- the page as such -------------------------------------------------------------------------------------------


def test_no_view_has_an_error_or_breaks_the_content_security_policy(page: Page, server: Server) -> None:
    troubles: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            troubles.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    run_id = server.launch()
    page.goto("/")
    expect(page.locator(f"tr[data-run={run_id}]")).to_be_visible()
    open_run(page, run_id)
    expect_steps(page, 1)
    page.goto("/#/launch")
    expect(page.get_by_label("batch_size", exact=True)).to_have_value("16")
    assert page.evaluate("window.violations") == []
    for address, shown in (("/#/groups", ".together .empty, [data-group]"), ("/#/queue", ".queue .facts")):
        page.goto(address)
        expect(page.locator(shown).first).to_be_attached()
    expect(page.get_by_role("button", name="Hold the queue")).to_be_visible()
    assert page.evaluate("window.violations") == []
    page.goto("/static/docs.html")
    expect(page.get_by_text("/v1/runs", exact=True).first).to_be_visible()
    assert page.evaluate("window.violations") == []
    assert troubles == []


def test_the_description_of_the_api_is_dark_where_the_page_is(page: Page) -> None:
    page.goto("/static/docs.html")
    for scheme, text in (("light", "rgb(59, 65, 81)"), ("dark", "rgb(228, 230, 230)")):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        expect(page.locator(".swagger-ui").first).to_have_css("color", text)


@pytest.mark.parametrize("address", ["/", "/#/launch", "/#/groups", "/#/queue", "run"])
def test_nothing_is_wider_than_a_phone(page: Page, server: Server, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    run_id = server.launch(tags=["a-long-tag-that-could-widen-things"])
    server.group("a-group-with-a-long-name-without-a-space-in-it-that-could-widen-things")
    if address == "run":
        open_run(page, run_id)
        expect_steps(page, 1)
    else:
        page.goto(address)
        expect(page.locator("tr[data-run], #preset, [data-group], .queue .facts").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_every_control_of_the_form_has_a_name(page: Page) -> None:
    page.goto("/#/launch")
    expect(page.locator("#preset")).to_be_visible()
    nameless = "[...document.querySelectorAll('.launch :is(input, select)')].filter(found => !found.labels.length).map(found => found.id)"
    assert page.evaluate(nameless) == []


# --- the list and the form --------------------------------------------------------------------------------------


def test_a_run_launched_from_the_form_appears_in_the_list_and_goes_on_there(page: Page, server: Server) -> None:
    page.goto("/#/launch")
    page.get_by_label("preset").select_option("quickstart")
    page.get_by_label("name", exact=True).fill("from the form")
    page.locator("[data-section=training] > summary").click()
    page.get_by_label("max_steps").fill("50")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="from the form")).to_be_visible()
    run_id = page.url.rpartition("/")[2]
    page.get_by_role("link", name="Runs").click()
    row = page.locator(f"tr[data-run={run_id}]")
    expect(row).to_contain_text("50 / 50 · 100 %")
    expect(row.locator(".state")).to_have_text("completed")
    changed = server.get(f"/v1/runs/{run_id}/config")
    assert changed["training"]["max_steps"] == 50
    assert changed["training"]["batch_size"] == server.get("/v1/presets")["data"][-1]["config"]["training"]["batch_size"]


def test_a_run_launched_elsewhere_comes_to_the_top_of_the_list(page: Page, server: Server) -> None:
    server.launch()
    page.goto("/")
    expect(page.locator("#connection")).to_have_text("live")
    run_id = server.launch(name="the newest")
    expect(page.locator("tr[data-run]").first).to_have_attribute("data-run", run_id)


def test_what_is_renamed_or_deleted_elsewhere_is_so_in_the_list(page: Page, server: Server) -> None:
    """Also where the first look at what has changed is not answered."""
    kept, gone = server.launch(max_steps=2), server.launch(max_steps=2)
    page.goto("/")
    for run_id in (kept, gone):
        expect(page.locator(f"tr[data-run={run_id}] .state")).to_have_text("completed")
    page.route(f"**/v1/runs/{kept}", lambda route: route.fulfill(status=503, json={"detail": "busy"}), times=1)
    with page.expect_response(lambda answer: answer.url.endswith(kept) and answer.status == 503):
        httpx.patch(f"{server.url}/v1/runs/{kept}", json={"name": "another name", "tags": ["night"]}).raise_for_status()
    expect(page.locator(f"tr[data-run={kept}]").get_by_role("link")).to_have_text("another name")
    expect(page.locator(f"tr[data-run={kept}] .tag")).to_have_text("night")
    httpx.delete(f"{server.url}/v1/runs/{gone}").raise_for_status()
    expect(page.locator(f"tr[data-run={gone}]")).to_have_count(0)


def test_a_run_deleted_while_the_page_was_cut_off_leaves_the_list(page: Page, server: Server) -> None:
    """The stream does not repeat it: a list that is live again and shows what is not there is worse than one that says it is cut off."""
    kept, gone = server.launch(max_steps=2), server.launch(max_steps=2)
    sockets: list[WebSocketRoute] = []

    def connect(socket: WebSocketRoute) -> None:
        if sockets:
            httpx.delete(f"{server.url}/v1/runs/{gone}").raise_for_status()
        sockets.append(socket)
        socket.connect_to_server()

    page.route_web_socket(re.compile("/v1/stream"), connect)
    page.goto("/")
    for run_id in (kept, gone):
        expect(page.locator(f"tr[data-run={run_id}] .state")).to_have_text("completed")
    sockets[0].close()
    expect(page.locator("#connection")).to_have_text("disconnected")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator(f"tr[data-run={gone}]")).to_have_count(0)
    expect(page.locator(f"tr[data-run={kept}]")).to_have_count(1)


def _lose_the_answer(page: Page, pattern: str) -> None:
    """What is asked there next is done, and its answer does not arrive."""

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route(pattern, lose, times=1)


def _launch_unanswered(page: Page, name: str) -> None:
    page.goto("/#/launch")
    page.get_by_label("preset").select_option("quickstart")
    page.get_by_label("name", exact=True).fill(name)
    _lose_the_answer(page, "**/v1/runs")
    page.get_by_role("button", name="Launch").click()
    expect(page.locator(".outcome")).to_contain_text("It is not known whether it was launched")


def _named(server: Server, name: str) -> list[dict[str, Any]]:
    return [run for run in server.get("/v1/runs?limit=100")["data"] if run["name"].startswith(name)]


def test_a_launch_whose_answer_was_lost_can_be_asked_for_again(page: Page, server: Server) -> None:
    _launch_unanswered(page, "asked twice")
    expect(page.locator(".outcome")).to_contain_text("Clicking again is safe")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="asked twice")).to_be_visible()
    (made,) = _named(server, "asked twice")
    assert page.url.endswith(made["id"])


def test_a_form_that_was_changed_since_is_another_launch(page: Page, server: Server) -> None:
    _launch_unanswered(page, "one launch")
    page.get_by_label("name", exact=True).fill("one launch and another")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("heading", name="one launch and another")).to_be_visible()
    assert len(_named(server, "one launch")) == 2


def test_a_group_whose_answer_was_lost_can_be_asked_for_again(page: Page, server: Server) -> None:
    page.goto("/#/groups")
    page.get_by_label("Name", exact=True).fill("asked twice")
    _lose_the_answer(page, "**/v1/groups")
    page.get_by_role("button", name="Launch the three specialists").click()
    expect(page.locator("#message")).to_contain_text("it is not known whether it was done")
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/v1/groups")) as again:
        page.get_by_role("button", name="Launch the three specialists").click()
    (made,) = [group for group in server.get("/v1/groups")["data"] if group["name"] == "asked twice"]
    assert (again.value.status, again.value.json()["id"]) == (200, made["id"])
    httpx.post(f"{server.url}/v1/groups/{made['id']}/kill")


def test_only_what_was_changed_is_sent(page: Page) -> None:
    page.goto("/#/launch")
    page.get_by_label("preset").select_option("speed")
    page.locator("summary", has_text="optimizer").click()
    page.get_by_label("muon_lr").fill("0.002")
    page.locator("summary", has_text="What will be sent").click()
    assert json.loads(page.locator(".request").inner_text()) == {"preset": "speed", "config": {"optimizer": {"muon_lr": 0.002}}}


def test_errors_stand_at_the_fields_they_are_about(page: Page) -> None:
    page.goto("/#/launch")
    page.locator("[data-section=training] > summary").click()
    page.get_by_label("batch_size", exact=True).fill("0")
    page.get_by_label("epochs").fill("many")
    page.locator("[data-section=training] > summary").click()
    page.get_by_role("button", name="Launch").click()
    expect(page.locator("[data-field='training.batch_size'] .error")).to_have_text("Input should be greater than or equal to 1")
    expect(page.locator("[data-field='training.epochs'] .error")).to_have_text("Input should be a valid integer")
    expect(page.get_by_label("batch_size", exact=True)).to_be_focused()
    expect(page.get_by_label("batch_size", exact=True)).to_have_attribute("aria-invalid", "true")


def test_a_suggestion_stands_at_the_field_as_well(page: Page) -> None:
    def misspell(route: Route) -> None:
        route.continue_(post_data='{"preset": "reasonin"}')

    page.route("**/v1/runs", misspell)
    page.goto("/#/launch")
    page.get_by_role("button", name="Launch").click()
    expect(page.locator("[data-field=preset] .error")).to_contain_text("did you mean 'reasoning'?")


def test_check_only_says_what_differs_and_launches_nothing(page: Page, server: Server) -> None:
    before = server.get("/v1/info")["runs"]
    page.goto("/#/launch")
    page.locator("[data-section=training] > summary").click()
    page.get_by_label("batch_size", exact=True).fill("4")
    page.get_by_role("button", name="Check only").click()
    expect(page.locator(".outcome")).to_contain_text("This can be launched.")
    expect(page.locator(".outcome li")).to_have_text("training.batch_size 4 instead of 16")
    assert server.get("/v1/info")["runs"] == before


def test_a_recipe_says_its_own_numbers_and_what_a_person_changed_stays(page: Page) -> None:
    page.goto("/#/launch")
    page.locator("[data-section=optimizer] > summary").click()
    page.get_by_label("weight_decay", exact=True).fill("0.3")
    usual = page.get_by_label("muon_lr", exact=True).input_value()
    page.get_by_label("recipe", exact=True).select_option("measured")
    expect(page.get_by_label("muon_lr", exact=True)).to_have_value(f"{MEASURED['optimizer']['muon_lr']:g}")
    expect(page.get_by_label("weight_decay", exact=True)).to_have_value("0.3")
    page.get_by_label("muon_lr", exact=True).fill(usual)
    page.get_by_role("button", name="Check only").click()
    expect(page.locator(".outcome li")).to_have_text(
        [
            "recipe measured instead of report",
            f"optimizer.muon_lr {usual} instead of {MEASURED['optimizer']['muon_lr']:g}",
            "optimizer.weight_decay 0.3 instead of 0.01",
        ]
    )
    page.get_by_label("recipe", exact=True).select_option("report")
    expect(page.locator(".field.changed")).to_have_count(1)


# --- one run ----------------------------------------------------------------------------------------------------


def test_the_loss_chart_grows_while_the_run_goes_on(page: Page, long_run: str) -> None:
    open_run(page, long_run)
    expect_steps(page, 5)
    first = page.locator(".headline output").first.inner_text()
    expect_steps(page, 30)
    expect(page.locator(".headline output").first).not_to_have_text(first)
    expect(page.locator(".headline canvas")).to_be_visible()


def test_pause_leads_to_paused_and_resume_goes_on_from_there(page: Page, server: Server, long_run: str) -> None:
    open_run(page, long_run)
    expect_steps(page, 5)
    page.get_by_role("button", name="Pause").click()
    expect_state(page, "paused")
    expect(page.locator(".run .reason")).to_have_text("Why: pause was asked for.")
    paused_at = server.get(f"/v1/runs/{long_run}")["progress"]["step"]
    page.reload()
    expect_state(page, "paused")
    page.get_by_role("button", name="Resume").click()
    expect_state(page, "running")
    expect_steps(page, paused_at + 5)
    expect(page.locator(".attempts")).to_contain_text(f"step {paused_at}")


def test_stop_is_asked_back_and_can_be_declined(page: Page, server: Server, long_run: str) -> None:
    open_run(page, long_run)
    expect_state(page, "running")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("dialog")).to_contain_text("A stopped run cannot be resumed")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert server.get(f"/v1/runs/{long_run}")["state"] == "running"
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect_state(page, "stopped")
    expect(page.locator(".commands button")).to_have_count(0)


def test_an_alert_is_counted_in_the_list_and_explained_on_the_run(page: Page, server: Server) -> None:
    run_id = server.launch(seed=UNLUCKY, max_steps=30)  # ends three rows after one that is not finite
    page.goto("/")
    expect(page.locator(f"tr[data-run={run_id}] .alert-count")).to_have_text("1 alert")
    open_run(page, run_id)
    expect_state(page, "completed")
    box = page.locator(".alerts")
    expect(box.get_by_role("heading", name="One alert")).to_be_visible()
    expect(box).to_contain_text("A loss or gradient is not a finite number: loss, loss_ce, grad_norm not finite at step 27 critical, since")
    expect(box.locator(".evidence")).to_contain_text("loss, loss_ce, grad_norm")
    expect(box.locator(".remedy")).to_contain_text("lower learning rates")
    expect(page.locator(".expected")).to_be_hidden()


def test_what_is_over_is_not_shown_any_more(page: Page, server: Server) -> None:
    open_run(page, server.launch(seed=UNLUCKY, max_steps=60))
    expect_state(page, "completed")
    expect(page.locator(".alerts")).to_be_hidden()
    page.locator("summary", has_text="Events").click()
    expect(page.locator(".events")).to_contain_text("nonfinite: the rows since are finite")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_loss_a_specialist_is_expected_to_have_is_a_band_behind_it(
    page: Page, server: Server, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    open_run(page, server.launch(preset="reasoning", max_steps=60))
    expect_state(page, "completed")
    expect_steps(page, 60)
    expect(page.locator(".expected")).to_be_visible()
    page.wait_for_function(BAND_PIXELS)
    page.get_by_label("by epoch").check()
    page.wait_for_function(BAND_PIXELS)


def test_values_that_are_not_finite_are_named_where_they_happened(page: Page, server: Server) -> None:
    open_run(page, server.launch(seed=UNLUCKY))
    expect(page.locator(".headline .nonfinite")).to_contain_text(
        "Loss: NaN at step 13, NaN at step 14, NaN at step 15 and at 1 more, the last 27"
    )
    page.locator("[data-group=optimizer]").scroll_into_view_if_needed()
    expect(page.locator("[data-group=optimizer] .nonfinite", has_text="Gradient norm")).to_contain_text("Infinity at step 13")


def test_markup_in_free_text_stays_text(page: Page, server: Server) -> None:
    run_id = server.launch(seed=HOSTILE)
    open_run(page, run_id)
    expect(page.locator(".warnings")).to_contain_text(MARKUP)
    page.locator("summary", has_text="Events").click()
    page.locator("summary", has_text="Log of the worker").click()
    expect(page.locator(".events")).to_contain_text(MARKUP)
    expect(page.locator(".log pre")).to_contain_text(MARKUP)
    expect(page.locator(".samples dd").nth(1)).to_have_text(MARKUP)
    assert page.locator("main img, main script").count() == 0
    assert "taken over" not in page.title()


def test_what_the_model_writes_is_shown_beside_what_was_expected(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=50)
    open_run(page, run_id)
    expect(page.locator(".samples")).to_be_hidden()  # it has not come to the end of an epoch
    section = page.get_by_role("heading", name="What it writes").locator("xpath=ancestor::section[1]")
    expect(section.get_by_role("heading", level=3)).to_have_text(["gsm8k", "mbpp"])
    expect(section.locator("dt")).to_have_text(["Prompt", "It wrote", "Expected"] * 2)
    said = section.locator("dd").evaluate_all("found => found.map(each => each.textContent)")
    assert said == ["gsm8k?\nAnswer:", "It is 50.", "It is\n 50.", "mbpp?\nAnswer:", "nothing", "It is\n 50."]
    expect(section.locator("dd").first).to_have_css("white-space-collapse", "preserve")
    page.locator("summary", has_text="Events").click()
    expect(page.locator(".events")).to_contain_text("see what it writes · gsm8k")


def test_the_newest_step_is_shown_until_an_earlier_one_is_chosen(page: Page, long_run: str) -> None:
    open_run(page, long_run)
    choice, written = page.get_by_label("after step"), page.locator(".samples dd").nth(1)
    for step in (50, 100):
        expect(choice).to_have_value(str(step))
        expect(written).to_have_text(f"It is {step}.")
    choice.select_option("50")
    expect(written).to_have_text("It is 50.")
    expect(choice.locator("option").first).to_have_attribute("value", "200")
    expect(choice).to_have_value("50")
    expect(written).to_have_text("It is 50.")
    choice.select_option(index=0)
    expect(choice.locator("option").nth(1)).to_have_attribute("value", "250")
    expect(choice).to_have_value("300")


REWRITTEN = """async (samples) => {
  const { Samples } = await import("/static/js/samples.js");
  const section = document.createElement("section");
  section.innerHTML = '<select></select><div class="texts"></div>';
  const events = samples.map(([step, place, text], seq) =>
    ({ seq, kind: "sample", step, data: { epoch: step / 10, place, prompt: "?", text, expected: "!" } }));
  new Samples(section).follow(events);
  const texts = (selector) => [...section.querySelectorAll(selector)].map((found) => found.textContent);
  const before = texts("dd");
  section.querySelector("select").selectedIndex = 2;
  section.querySelector("select").dispatchEvent(new Event("change"));
  return [texts("option"), before, texts("dd")];
}"""


def test_a_step_written_again_after_a_resume_is_shown_once(page: Page) -> None:
    """What the later attempt says stands in the place of what the earlier one said; its step is the newest, though not the highest."""
    page.goto("/")
    samples = [(5, 0, "first"), (10, 0, "a"), (10, 1, "b"), (20, 0, "c"), (10, 0, "a again")]
    steps, newest, first = page.evaluate(REWRITTEN, samples)
    assert steps == ["10 (epoch 1)", "20 (epoch 2)", "5 (epoch 0.5)"]
    assert newest == ["?", "a again", "!", "?", "b", "!"]
    assert first == ["?", "first", "!"]


def test_checkpoints_show_their_digests_and_the_configuration_its_differences(page: Page, server: Server) -> None:
    run_id = server.launch()
    open_run(page, run_id)
    expect(page.locator(".checkpoints tbody tr")).to_have_count(2)
    files = server.get(f"/v1/runs/{run_id}/checkpoints")["data"][0]["files"]
    expect(page.locator(".checkpoints tbody tr").first).to_contain_text(files["model.safetensors"]["sha256"][:12])
    page.locator("summary", has_text="Configuration").click()
    preset = resolve("quickstart").training.max_steps
    expect(page.locator(".configuration .changed", has_text="max_steps")).to_contain_text(f"40 instead of {preset}")


def test_a_checkpoint_deleted_elsewhere_is_shown_as_removed(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=20)
    open_run(page, run_id)
    expect_state(page, "completed")
    expect(page.locator(".checkpoints")).to_contain_text("kept")
    expect(page.locator("#connection")).to_have_text("live")
    (checkpoint,) = server.get(f"/v1/runs/{run_id}/checkpoints")["data"]
    httpx.delete(f"{server.url}/v1/checkpoints/{checkpoint['id']}").raise_for_status()
    expect(page.locator(".checkpoints")).to_contain_text("removed")
    expect(page.get_by_role("link", name="Fork")).to_have_count(0)


def test_a_checkpoint_is_pinned_and_unpinned(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=20)
    open_run(page, run_id)
    expect_state(page, "completed")
    for label, pinned in (("Pin", True), ("Unpin", False)):
        page.get_by_role("button", name=f"{label} the checkpoint of step 20").click()
        expect(page.locator(".checkpoints tbody tr")).to_contain_text("pinned" if pinned else "kept")
        assert [found["is_pinned"] for found in server.get(f"/v1/runs/{run_id}/checkpoints")["data"]] == [pinned]


def test_an_evaluation_is_asked_for_and_its_figures_stand_beside_what_they_mean(page: Page, server: Server) -> None:
    open_run(page, server.launch())
    expect_state(page, "completed")
    section = page.locator(".evaluations")
    expect(section).to_contain_text("None yet.")
    page.get_by_role("button", name="Evaluate on 100 items a dataset").click()
    row = section.locator("tbody tr")
    expect(row.locator("td")).to_have_text(
        ["svamp", "exact match", "4", "0.250", "0.046–0.699", "0.000", "0.000", "0.3–0.4", "0.01–0.03", "not met"]
    )
    expect(section).to_contain_text("at most 100 items a dataset")
    section.get_by_text("What was measured, and what was not").click()
    expect(section).to_contain_text("gsm8k not measured: it is not in the data folder")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_evaluation_can_be_cancelled_and_what_is_read_meanwhile_stays(page: Page, server: Server) -> None:
    """Every look at its progress must leave the figures alone that somebody reads."""
    run_id = server.launch()
    open_run(page, run_id)
    expect_state(page, "completed")
    page.get_by_role("button", name="Evaluate on 100 items a dataset").click()
    section = page.locator(".evaluations")
    section.get_by_text("What was measured, and what was not").click()
    done = server.get(f"/v1/runs/{run_id}/evaluations")["data"]
    fractions = itertools.count()
    underway = {**done[0], "id": "job_00000000-0000-0000-0000-000000000000", "state": "running", "result": None}

    def answer(route: Route) -> None:
        progress = {"message": f"look {next(fractions)}", "fraction": 0.5}
        route.fulfill(json={"data": [{**underway, "progress": progress}, *done], "has_more": False, "next_cursor": None})

    page.route("**/evaluations?*", answer)
    page.route("**/cancel", lambda route: route.fulfill(json=underway))
    page.get_by_role("button", name="Evaluate on all items").click()
    expect(section).to_contain_text("Evaluating: look 1")
    expect(section.get_by_text("gsm8k not measured")).to_be_visible()
    with page.expect_request(lambda request: request.url.endswith(f"/v1/jobs/{underway['id']}/cancel")):
        page.get_by_role("button", name="Cancel the evaluation").click()


def test_a_deletion_is_asked_back_and_leads_to_the_list(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=20)
    open_run(page, run_id)
    expect_state(page, "completed")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Leave it as it is").click()
    assert server.get(f"/v1/runs/{run_id}")["state"] == "completed"
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    assert httpx.get(f"{server.url}/v1/runs/{run_id}").status_code == 404


def test_a_run_deleted_elsewhere_is_said_to_be_gone(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=20)
    open_run(page, run_id)
    expect_state(page, "completed")
    httpx.delete(f"{server.url}/v1/runs/{run_id}").raise_for_status()
    expect(page.get_by_role("heading", name="No such run")).to_be_visible()


def test_a_run_at_work_cannot_be_deleted(page: Page, long_run: str) -> None:
    open_run(page, long_run)
    expect_state(page, "running")
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)


def test_a_fork_goes_on_from_the_checkpoint_with_what_was_changed(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=20, name="the source")
    open_run(page, run_id)
    page.get_by_role("link", name="Fork").click()
    expect(page.get_by_role("heading", name="Fork the source")).to_be_visible()
    page.get_by_role("button", name="Fork").click()  # nothing would be left to do
    expect(page.locator("[data-field='training.max_steps'] .error")).to_contain_text("a fork needs more")
    page.get_by_label("max_steps").fill("30")
    page.get_by_label("name", exact=True).fill("the fork")
    page.get_by_role("button", name="Fork").click()
    expect(page.get_by_role("heading", name="the fork", exact=True)).to_be_visible()
    made = server.get(f"/v1/runs/{page.url.rpartition('/')[2]}")
    assert (made["forked_from"]["run_id"], made["forked_from"]["step"]) == (run_id, 20)
    assert made["config"] == {**made["config"], "training": {**server.get(f"/v1/runs/{run_id}")["config"]["training"], "max_steps": 30}}
    expect(page.locator(".about")).to_contain_text(f"forked from {run_id} at step 20")
    page.locator(".about a").click()
    expect(page.get_by_role("heading", name="the source", exact=True)).to_be_visible()


def test_a_refusal_is_seen_wherever_the_page_has_been_scrolled_to(page: Page, server: Server) -> None:
    open_run(page, server.launch())
    expect_state(page, "completed")
    page.route("**/evaluations", lambda route: route.fulfill(status=409, json={"detail": "there is no dataset"}))
    page.set_viewport_size({"width": 800, "height": 500})
    page.get_by_role("button", name="Evaluate on 100 items a dataset").click()
    expect(page.locator("#message")).to_contain_text("there is no dataset")
    assert page.evaluate("scrollY") > 500
    expect(page.locator("#message")).to_be_in_viewport()


# --- groups and the queue ---------------------------------------------------------------------------------------


def test_the_specialists_are_launched_and_commanded_as_one(page: Page, server: Server) -> None:
    page.goto("/#/groups")
    page.get_by_label("Name", exact=True).fill("night")
    page.get_by_role("button", name="Launch the three specialists").click()
    card = page.locator("[data-group]").first
    expect(card.get_by_role("heading", name="night")).to_be_visible()
    expect(card.locator("tr[data-run]")).to_have_count(3)
    expect(card.locator(".state-running")).to_have_count(3)
    card.get_by_role("button", name="Pause night").click()
    expect(card.locator(".state-paused")).to_have_count(3)
    expect(card.locator(".hint").first).to_have_text("3 paused")
    card.get_by_role("button", name="Stop night").click()
    expect(page.get_by_role("heading", name="Stop every run of night?")).to_be_visible()
    page.get_by_role("button", name="Leave it as it is").click()
    expect(card.locator(".state-paused")).to_have_count(3)
    card.get_by_role("button", name="Stop night").click()
    page.locator("dialog").get_by_role("button", name="Stop").click()
    expect(card.locator(".state-stopped")).to_have_count(3)
    expect(card.locator(".buttons button")).to_have_count(0)


def test_a_completed_group_shows_what_came_of_it(page: Page, server: Server) -> None:
    config = {"training": {"max_steps": 10}, "evaluation": {"at_end": "off"}}
    server.post("/v1/groups", {"name": "short", "config": config})
    page.goto("/#/groups")
    card = page.locator("[data-group]", has=page.get_by_role("heading", name="short"))
    row = card.get_by_role("table", name="How the models differ").locator("tbody tr").first
    expect(row.locator("td")).to_have_text(["reasoning", "3", "–", "0.5", "1.5", "3.25"])
    pair = card.get_by_role("table", name="How alike two of them are").locator("tbody tr").first
    expect(pair.locator("td")).to_have_text(["reasoning, memory", "0.75", "1.25"])
    expect(card.locator(".results")).to_contain_text("reasoning >= memory > speed: holds.")
    for label, path in (("Training report", "report"), ("Hand-off archive", "handoff")):
        card.get_by_role("button", name=label).click()
        expect(card.get_by_role("link", name=label)).to_have_attribute("href", re.compile(rf"^/v1/groups/group_[0-9a-f-]+/{path}$"))
    assert page.evaluate("window.violations") == []


def test_the_training_report_of_a_run_is_at_its_page(page: Page, server: Server) -> None:
    run_id = server.launch(max_steps=20)
    open_run(page, run_id)
    expect_state(page, "completed")
    page.get_by_role("button", name="Training report").click()
    expect(page.get_by_role("link", name="Training report")).to_have_attribute("href", f"/v1/runs/{run_id}/report")
    assert page.evaluate("window.violations") == []


@pytest.mark.usefixtures("_held")
def test_the_queue_is_reordered_and_let_go(page: Page, server: Server) -> None:
    first, second = (server.launch(max_steps=20, name=name) for name in ("comes first", "comes second"))
    page.goto("/#/queue")
    expect(page.locator(".queue [role=status]")).to_have_text("2 runs wait. The queue is held: nothing is launched.")
    rows = page.locator(".queue tbody tr")
    expect(rows.first).to_contain_text("comes first")
    page.get_by_label("Priority of comes second").fill("5")
    page.get_by_label("Priority of comes second").press("Enter")
    expect(rows.first).to_contain_text("comes second")
    assert server.get(f"/v1/runs/{second}")["queue_position"] == 1
    page.get_by_role("button", name="Release the queue").click()
    expect(page.locator(".queue [role=status]")).to_have_text("0 runs wait. Runs are launched as devices become free.")
    expect(rows).to_have_count(0)
    assert server.get(f"/v1/runs/{first}")["state"] != "queued"


@pytest.mark.usefixtures("_held")
def test_a_queue_that_is_held_or_let_go_elsewhere_is_said_to_be(page: Page, server: Server) -> None:
    said = page.locator(".queue [role=status]")
    page.goto("/#/queue")
    expect(said).to_contain_text("The queue is held")
    expect(page.locator("#connection")).to_have_text("live")
    held(server, False)
    expect(said).to_contain_text("Runs are launched as devices become free.")
    held(server, True)
    expect(said).to_contain_text("The queue is held")


def test_a_run_that_is_not_there_is_said_so(page: Page) -> None:
    page.goto("/#/runs/run_00000000-0000-7000-8000-000000000000")
    expect(page.get_by_role("heading", name="No such run")).to_be_visible()


# --- when the service goes away, and when it wants to know who asks ---------------------------------------------

FOLLOW = """async (id) => {
  const { RunFeed } = await import("/static/js/runfeed.js");
  window.feed = new RunFeed(id, () => {}, () => {});
  window.feed.open();
}"""


def test_a_killed_server_is_reported_and_its_return_neither_loses_nor_doubles_a_row(browser: Browser, tmp_path: Path) -> None:
    """The worker goes on meanwhile, so most rows are written while nobody follows."""
    with Server(tmp_path) as server, page_of(browser, server.url) as page:
        run_id = server.launch(max_steps=120)
        open_run(page, run_id)
        page.evaluate(FOLLOW, run_id)
        page.wait_for_function("() => window.feed.series.steps.length > 5")
        server.kill()
        expect(page.locator("#lost")).to_contain_text("Disconnected from the service")
        seen = page.evaluate("window.feed.series.steps.length")
        server.start()
        page.evaluate("() => { document.getElementById('try-now').click(); window.feed.hurry(); }")
        expect(page.locator("#lost")).to_be_hidden()
        expect_state(page, "completed")
        page.wait_for_function("() => window.feed.series.steps.at(-1) === 120")
        steps, losses = page.evaluate("[window.feed.series.steps, window.feed.series.values('loss')]")
        assert seen < 120
        assert steps == list(range(1, 121))
        assert losses == server.get(f"/v1/runs/{run_id}/metrics?keys=loss")["columns"]["loss"]


def test_the_question_for_a_token_stays_until_there_is_one(browser: Browser, tmp_path: Path) -> None:
    """A browser lets the page refuse one Escape only; without the dialog every view would wait for a token that nobody is asked for."""
    with Server(tmp_path, token="open sesame") as server, page_of(browser, server.url) as page:
        page.goto("/")
        expect(page.locator("#token")).to_be_visible()
        page.evaluate("document.getElementById('token').addEventListener('close', () => (window.wasClosed = true))")
        for _ in range(3):
            page.keyboard.press("Escape")
        page.wait_for_function("() => window.wasClosed")
        expect(page.locator("#token")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("open sesame")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator("#token")).to_be_hidden()


def test_where_a_token_is_wanted_the_page_asks_for_it_and_follows_with_a_ticket(browser: Browser, tmp_path: Path) -> None:
    with Server(tmp_path, token="open sesame") as server, page_of(browser, server.url) as page:
        page.goto("/")
        page.get_by_role("textbox", name="Token").fill("a guess")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_text("That token was not accepted.")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill("open sesame")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#connection")).to_have_text("live")
        run_id = server.launch()
        expect(page.locator(f"tr[data-run={run_id}]")).to_be_visible()
        page.reload()
        expect(page.locator(f"tr[data-run={run_id}]")).to_be_visible()
