"""The playground in headless Chromium, against a real server on this machine."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from conftest import tiny_lm
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_report import row
from test_server import LABELS, listening, make_server, saved

from softprompt.models import default_format
from softprompt.study.paper import TABLE_3
from softprompt.study.report import write_report
from softprompt.study.rows import VOTE

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of a server: two prompts of one field and their ensemble, two of two fields, one that writes, and an
    ensemble of unlike ones.
    """
    llama, folder = tiny_lm("llama"), tmp_path_factory.mktemp("site")
    server = make_server(llama, folder)
    server.registry.set_ensemble("both", ["p0", "p1"])
    for seed, name, inputs, labels in (
        (7, "pair", "premise: {premise} hypothesis: {hypothesis}", ("yes", "no")),
        (8, "titles", "{style?} text: {text}", ()),
        (9, "long", "{sentence} by {author}", ("positive", "negative")),
    ):
        text = default_format(llama, inputs_template=inputs, targets_template="{label}").to_json()
        server.registry.add(name, saved(llama, folder / name, seed, labels=labels, text=text))
    server.registry.set_ensemble("unlike", ["p0", "long"])
    server.registry.set_alias("live", {"unlike": 100})
    with listening(server) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1100,800",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


def wait(browser, condition):
    return WebDriverWait(browser, 20).until(condition)


def opened(browser, site, width=1200):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # windows are never narrower than 500
    browser.get(site)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#choices input"))
    return browser


def texts(browser, selector):
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def all_of(browser, role):
    """By the names that a screen reader says, what has this role and is to be seen."""
    elements = browser.find_elements(By.CSS_SELECTOR, "input, textarea, button, summary, a")
    return {one.accessible_name: one for one in elements if one.is_displayed() and one.aria_role == role}


def boxes(browser):
    """The boxes of the input, by their labels."""
    return {name: box for name, box in all_of(browser, "textbox").items() if box.tag_name == "textarea"}


def choose(browser, *names):
    """Check the boxes of these prompts, and no others."""
    for name, box in all_of(browser, "checkbox").items():
        if box.is_selected() != (name in names):
            box.click()


def run(browser, **typed):
    """Type into the boxes, press Run, and wait for an answer of each prompt that was chosen."""
    for name, text in typed.items():
        boxes(browser)[name].send_keys(text)
    all_of(browser, "button")["Run Ctrl Enter"].click()
    num_chosen = sum(box.is_selected() for box in all_of(browser, "checkbox").values())
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "article details")) == num_chosen)


def was_read(browser):
    """What the answers say that the model read."""
    for summary in browser.find_elements(By.CSS_SELECTOR, "article summary"):
        summary.click()
    return texts(browser, "article .read")


def sent(browser):
    """The body of the request that the curl line shows."""
    line = browser.find_element(By.ID, "curl").get_attribute("textContent")
    return json.loads(line.split(" -d '")[1].removesuffix("'").replace("'\\''", "'"))


def looks_right(browser, width, picture):
    """Nothing is wider than the window, and the page had no mistake of its own; a picture to look at."""
    browser.save_screenshot(str(picture))
    widths = "const page = document.documentElement; return [innerWidth, page.scrollWidth - page.clientWidth]"
    assert browser.execute_script(widths) == [width, 0]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_prompt_of_one_field_has_one_box(browser, site, width, tmp_path):
    opened(browser, site, width)
    assert list(all_of(browser, "checkbox")) == [
        "p0 mine",
        "p1 mine",
        "pair mine",
        "titles mine",
        "long mine",
        "both ensemble of 2",
        "unlike ensemble of 2",
        "live alias of unlike",
        "tiny-llama bare model",
    ]
    assert list(boxes(browser)) == ["sentence"]
    run(browser, sentence="a warm film")
    assert was_read(browser) == ["<s>sentence: a warm film\nanswer:"]
    shares = [float(text.split("\n")[1].removesuffix(" %")) for text in texts(browser, "article .bar")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(100, abs=0.2)
    assert sent(browser) == {"model": "p0", "fields": {"sentence": "a warm film"}, "show_input": True}
    looks_right(browser, width, tmp_path / "one.png")


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_prompt_of_two_fields_has_two_boxes(browser, site, width, tmp_path):
    opened(browser, site, width)
    choose(browser, "pair mine")
    assert list(boxes(browser)) == ["premise", "hypothesis"]
    run(browser, premise="it rained", hypothesis="it was wet")
    assert was_read(browser) == ["<s>premise: it rained hypothesis: it was wet\nanswer:"]
    assert {text.split("\n")[0] for text in texts(browser, "article .bar")} == {"yes", "no"}
    looks_right(browser, width, tmp_path / "two.png")


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_an_ensemble_has_the_boxes_of_its_members_and_shows_their_votes(browser, site, width, tmp_path):
    opened(browser, site, width)
    choose(browser, "both ensemble of 2")
    assert list(boxes(browser)) == ["sentence"]
    run(browser, sentence="a warm film")
    assert was_read(browser) == ["<s>sentence: a warm film\nanswer:"]
    *votes, last = texts(browser, "article .said")
    assert [text.partition(" votes ")[0] for text in votes] == ["p0", "p1"]
    assert {text.partition(" votes ")[2] for text in votes} <= set(LABELS)
    assert " input tokens" in last and last.endswith(" ms")
    looks_right(browser, width, tmp_path / "ensemble.png")


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["unlike ensemble of 2", "live alias of unlike"])
def test_an_ensemble_of_unlike_prompts_has_all_their_boxes_and_shows_what_each_read(
    browser, site, width, name, tmp_path
):
    opened(browser, site, width)
    choose(browser, name)
    assert list(boxes(browser)) == ["sentence", "author"]
    run(browser, sentence="a warm film", author="the sea")
    assert was_read(browser) == ["<s>sentence: a warm film\nanswer:", "<s>a warm film by the sea\nanswer:"]
    assert [text.partition(" votes ")[0] for text in texts(browser, "article .said")[:2]] == ["p0", "long"]
    looks_right(browser, width, tmp_path / "unlike.png")


@needs_browser
def test_what_was_chosen_by_hand_stays_when_other_prompts_are_chosen(browser, site):
    opened(browser, site)
    choose(browser, "titles mine")
    assert all_of(browser, "radio")["text"].is_selected()
    choose(browser, "p0 mine")
    assert all_of(browser, "radio")["label"].is_selected()
    all_of(browser, "radio")["text"].click()
    choose(browser, "p1 mine")
    assert all_of(browser, "radio")["text"].is_selected() and "max_tokens" not in sent(browser)
    all_of(browser, "radio")["label"].click()
    choose(browser, "titles mine")
    assert all_of(browser, "radio")["label"].is_selected()


@needs_browser
def test_hints_beside_a_heading_are_one_line_on_a_phone(browser, site):
    opened(browser, site, 390)
    hints = browser.find_elements(By.CSS_SELECTOR, "legend small")
    assert len(hints) == 2 and all(hint.size["height"] < 24 for hint in hints)


@needs_browser
def test_prompts_chosen_together_have_each_field_once_and_get_their_own(browser, site):
    opened(browser, site)
    boxes(browser)["sentence"].send_keys("a warm film")
    choose(browser, "p0 mine", "p1 mine", "pair mine")
    assert list(boxes(browser)) == ["sentence", "premise", "hypothesis"]
    assert texts(browser, "#fields small") == ["for p0, p1", "for pair", "for pair"]
    run(browser, premise="it rained")
    assert texts(browser, "article h2") == ["p0", "p1", "pair"]
    read = ["<s>sentence: a warm film\nanswer:"] * 2 + ["<s>premise: it rained hypothesis: \nanswer:"]
    assert was_read(browser) == read


@needs_browser
def test_a_prompt_that_writes_is_asked_for_text_and_what_may_be_empty_is_said(browser, site):
    opened(browser, site)
    choose(browser, "titles mine")
    assert all_of(browser, "radio")["text"].is_selected()
    assert list(boxes(browser)) == ["style", "text"] and texts(browser, "#fields small") == ["may be left empty", ""]
    all_of(browser, "spinbutton")["Tokens"].send_keys("7")
    run(browser, text="it's a film")
    assert texts(browser, "article .text")[0] and was_read(browser) == ["<s>text: it's a film\nanswer:"]
    assert browser.find_element(By.ID, "curl").get_attribute("textContent").startswith("curl -N http://127.0.0.1:")
    asked = {"model": "titles", "fields": {"text": "it's a film"}, "show_input": True, "stream": True, "max_tokens": 7}
    assert sent(browser) == asked


@needs_browser
def test_the_bare_model_goes_on_with_a_text(browser, site):
    opened(browser, site)
    choose(browser, "tiny-llama bare model")
    assert list(boxes(browser)) == ["text"] and texts(browser, "#fields small") == ["which the model goes on with"]
    run(browser, text="a warm")
    assert was_read(browser) == ["<s>a warm"] and sent(browser)["prompt"] == "a warm"


@needs_browser
def test_the_nearest_tokens_are_shown(browser, site):
    opened(browser, site)
    run(browser, sentence="dull")
    all_of(browser, "button")["Nearest tokens of p0"].click()
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "article table tr:nth-child(4)"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "article table tr")) == 4  # the head and p0's three rows


@needs_browser
def test_the_endpoints_have_a_page_of_their_own(browser, site):
    browser.get(f"{site}docs")
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "article"))
    heads = texts(browser, "article h2")
    assert "POST /v1/classify" in heads and "PUT /v1/prompts/{name}" in heads and "GET /metrics" in heads
    page = browser.find_element(By.CSS_SELECTOR, "body").get_attribute("textContent")
    assert "Body: ClassifyRequest" in page and "429" in page
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
def test_mistakes_are_said_on_the_page(browser, site):
    opened(browser, site)
    all_of(browser, "button")["Run Ctrl Enter"].click()
    assert texts(browser, "[role=alert]") == ["fill in sentence first: p0 has nothing to answer"]
    assert browser.switch_to.active_element.accessible_name == "sentence"
    choose(browser)
    all_of(browser, "button")["Run Ctrl Enter"].click()
    assert texts(browser, "[role=alert]") == ["choose a prompt first"]
    choose(browser, "titles mine")
    all_of(browser, "radio")["label"].click()
    boxes(browser)["text"].send_keys("x", Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: "there are no labels to score" in " ".join(texts(b, "article .wrong")))


@needs_browser
def test_it_works_by_keyboard_alone(browser, site):
    opened(browser, site, 390)
    for _ in range(30):
        active = browser.switch_to.active_element
        if active.accessible_name == "sentence":
            break
        active.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys("dull", Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "article .said"))


def test_the_page_loads_nothing_from_elsewhere():
    folder = Path(__file__).parent.parent / "softprompt" / "serving" / "http" / "page"
    for path in folder.iterdir():
        assert "http://" not in path.read_text() and "https://" not in path.read_text(), path.name


@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_every_column_of_a_report_is_seen(browser, tmp_path, width):
    rows = []
    for name, size, seed, scoring in product(TABLE_3, ("large", "small"), (0, 1, VOTE), ("generate", "rank")):
        one = row("figure-1", "model tuning (multi-task)", seed, 0.5 + 0.1 * seed, scoring, task=f"superglue/{name}")
        model = f"google/t5-{size}-lm-adapt"
        rows.append(replace(one, config=one.config | {"asked": model, "frozen": model}))
    page = write_report(rows, tmp_path)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#figure-1-0 td')].map(cell => {"
        "  const box = cell.getBoundingClientRect(), head = getComputedStyle(cell, '::before').content;"
        "  return [cell.textContent, box.left, box.right, head]; })"
    )
    assert len(cells) == 4 * 14 and cells[13][0] == "40.0", "the vote is the last column"
    assert all(0 <= left < right <= width for _, left, right, _ in cells)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    heads = [head for *_, head in cells[:14]]
    assert (heads[13] == '"vote"') == (width < 960) and (heads[3] == '"superglue/boolq"') == (width < 960)
