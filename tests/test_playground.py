"""The playground in headless Chromium, against a real server on this machine."""

import json
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_server import listening, make_server

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine")


@pytest.fixture
def site(llama, tmp_path):
    """The address of a server with two prompts and an ensemble."""
    server = make_server(llama, tmp_path)
    server.registry.set_ensemble("both", ["p0", "p1"])
    with listening(server) as address:
        yield address


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1100,800",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


def wait(browser, condition):
    return WebDriverWait(browser, 20).until(condition)


def opened(browser, site):
    browser.get(site)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#choices input"))
    return browser


def texts(browser, selector):
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


@needs_browser
def test_labels_as_bars_for_two_prompts_side_by_side(browser, site):
    opened(browser, site)
    assert texts(browser, "#choices label")[:2] == ["p0\nmine", "p1\nmine"]
    browser.find_elements(By.CSS_SELECTOR, "#choices input")[1].click()
    browser.find_element(By.ID, "input").send_keys("sentence: a warm film", Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "article .said")) == 2)
    assert texts(browser, "article h2") == ["p0", "p1"]
    shares = [float(text.split("\n")[1].removesuffix(" %")) for text in texts(browser, "article:first-child .bar")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(100, abs=0.2)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
def test_text_streams_and_the_curl_line_is_the_request(browser, site):
    opened(browser, site)
    browser.find_element(By.CSS_SELECTOR, "input[value=complete]").click()
    browser.find_element(By.ID, "input").send_keys("it's a film")
    browser.find_element(By.ID, "max-tokens").send_keys("7")
    browser.find_element(By.ID, "run").click()
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "article .said"))
    assert texts(browser, "article .text")[0]
    line = browser.find_element(By.ID, "curl").get_attribute("textContent")
    assert line.startswith("curl -N http://127.0.0.1:")
    body = json.loads(line.split(" -d '")[1].removesuffix("'").replace("'\\''", "'"))
    assert body == {"model": "p0", "prompt": "it's a film", "stream": True, "max_tokens": 7}


@needs_browser
def test_the_nearest_tokens_are_shown(browser, site):
    opened(browser, site)
    browser.find_element(By.ID, "input").send_keys("sentence: dull", Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "button.quiet"))[0].click()
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
    box = browser.find_element(By.ID, "input")
    box.send_keys('{"sentence": ', Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: texts(b, "article .wrong"))
    assert texts(browser, "article .wrong")[0].startswith("the record is not JSON")
    box.clear()
    box.send_keys('{"text": "x"}', Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: "no column 'sentence'" in " ".join(texts(b, "article .wrong")))


@needs_browser
def test_it_works_by_keyboard_alone_and_fits_a_phone(browser, site):
    browser.set_window_size(360, 740)
    opened(browser, site)
    for _ in range(30):
        active = browser.switch_to.active_element
        if active.get_attribute("id") == "input":
            break
        active.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys("sentence: dull", Keys.CONTROL, Keys.ENTER)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "article .said"))
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0


def test_the_page_loads_nothing_from_elsewhere():
    folder = Path(__file__).parent.parent / "softprompt" / "serving" / "http" / "page"
    for path in folder.iterdir():
        assert "http://" not in path.read_text() and "https://" not in path.read_text(), path.name
