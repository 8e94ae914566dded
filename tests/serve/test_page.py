"""The page in a real browser, headless: Debian's chromium and chromium-driver."""

import contextlib
import http.client
import shutil
import threading
import time

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from hf_cots import ImageIndex
from hf_cots.cli.serve import listen
from hf_cots.serve import create_app
from tests.support.clip_files import BLUE, GREEN, RED, WHITE, write_film, write_mixed_folder
from tests.support.pixel_encoder import PixelEncoder


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
)


@contextlib.contextmanager
def serving(index):
    """The address of a running server."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(index), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address(index):
    with serving(index) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,800",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def test_answers_are_sent_at_once(address):
    """Not after the 40 ms for which a kernel may wait to fill a packet."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        connection.request("GET", "/favicon.ico")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < 0.02


def until(condition, seconds=20):
    """Wait for what a page will show."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


class Page:
    """What a user sees and does."""

    def __init__(self, browser, address, what="30 images"):
        self.browser, self.address = browser, address
        browser.get(address)
        until(lambda: f"Search {what}" in self.text("#message"))

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)

    def titles(self):
        script = "return [...document.querySelectorAll('.grid:not(.stale) .title')].map(each => each.textContent)"
        return self.browser.execute_script(script)

    def shows(self, matches):
        expected = [match.columns["title"] for match in matches]
        until(lambda: self.titles() == expected)

    def press(self, *keys):
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self):
        return self.browser.switch_to.active_element


@pytest.fixture
def page(browser, address):
    return Page(browser, address)


def test_a_search_with_keys_only(page, index):
    assert page.focused() == page.one("#text")
    page.press("a red circle", Keys.ENTER)
    expected = index.search("a red circle", 30)
    page.shows(expected)
    assert "q=a+red+circle" in page.browser.current_url
    assert "encode" in page.text("#status")
    until(lambda: page.browser.execute_script("return document.querySelector('.open img').naturalWidth") == 6)
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert page.focused() == page.all(".open")[1]
    page.press(Keys.ENTER)
    until(lambda: page.one("#detail").get_attribute("open"))
    assert page.text("#detail-title") == expected[1].columns["title"]
    page.press(Keys.ARROW_RIGHT)
    assert page.text("#detail-title") == expected[2].columns["title"]
    page.press(Keys.ESCAPE)
    until(lambda: not page.one("#detail").get_attribute("open"))
    assert page.focused() == page.all(".open")[2]
    page.press("/")
    assert page.focused() == page.one("#text")
    page.press(Keys.ESCAPE)
    assert page.focused() != page.one("#text")


def test_filters_minus_similar_and_the_back_button(page, index):
    page.press("a text", Keys.ENTER)
    page.shows(index.search("a text", 30))
    page.all(".facet input")[0].click()
    flat = index.search("a text", 30, where="style = 'flat'")
    page.shows(flat)
    page.one("#minus").send_keys("another", Keys.ENTER)
    without = index.search("a text", 30, minus="another", where="style = 'flat'")
    page.shows(without)
    page.browser.refresh()
    page.shows(without)  # the address holds it all
    assert page.one("#minus").get_attribute("value") == "another"
    page.browser.back()
    page.shows(flat)
    page.one("#where").send_keys("size > 9", Keys.ENTER)
    page.shows(index.search("a text", 30, where="style = 'flat' and size > 9"))
    page.one("#clear").click()
    page.shows(index.search("a text", 30))
    page.one("#text").click()
    page.press(Keys.ARROW_DOWN, "m")
    like = index.search("a text", 1)[0]
    page.shows([match for match in index.search(like.path, 30) if match.id != like.id])


def test_the_switch_for_keywords(page, index):
    assert not page.one("#hybrid-columns").is_displayed()
    page.press("number 7", Keys.ENTER)
    page.shows(index.search("number 7", 30))
    page.one("#hybrid + .track").click()
    page.shows(index.search("number 7", 30, hybrid=["title"]))  # style is a filter
    assert "hybrid=title" in page.browser.current_url
    assert page.text(".score") == f"{index.search('number 7', 1, hybrid='title')[0].score:.4f}"
    boxes = page.all("#hybrid-columns input")
    assert [(box.get_attribute("value"), box.is_selected()) for box in boxes] == [
        ("style", False),
        ("title", True),
        ("path", False),
    ]
    boxes[2].click()
    page.shows(index.search("number 7", 30, hybrid=["title", "path"]))
    assert page.focused().get_attribute("value") == "path"
    page.browser.refresh()
    page.shows(index.search("number 7", 30, hybrid=["title", "path"]))
    page.one("#hybrid + .track").click()
    page.shows(index.search("number 7", 30))
    page.one("#hybrid + .track").click()
    page.shows(index.search("number 7", 30, hybrid=["title", "path"]))  # the columns of before
    for box in (1, 2):
        page.all("#hybrid-columns input")[box].click()
    page.shows(index.search("number 7", 30))
    assert not page.one("#hybrid").is_selected()
    page.browser.back()
    page.shows(index.search("number 7", 30, hybrid=["path"]))


def test_words_beside_an_image(page, index, photos):
    page.one("#text").send_keys("number 7", Keys.ENTER)
    page.one("#hybrid + .track").click()
    page.one("#file").send_keys(str(photos / "004.png"))
    page.shows(index.search("number 7", 30, image=photos / "004.png", hybrid=["title"]))
    page.one("#text").clear()
    page.one("#text").send_keys(Keys.ENTER)
    page.shows(index.search(photos / "004.png", 30))


def test_an_image_from_a_file_by_paste_and_by_drop(page, index, photos):
    page.one("#file").send_keys(str(photos / "004.png"))
    page.shows(index.search(photos / "004.png", 30))
    page.one("#text").send_keys("with words", Keys.ENTER)
    page.shows(index.search("with words", 30, image=photos / "004.png"))
    page.one("#chip-remove").click()
    page.shows(index.search("with words", 30))
    page.browser.back()
    page.shows(index.search("with words", 30, image=photos / "004.png"))
    page.one("#home").click()
    for event, field in (("ClipboardEvent('paste'", "clipboardData"), ("DragEvent('drop'", "dataTransfer")):
        data = list((photos / "005.png").read_bytes())
        page.browser.execute_script(
            f"""const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(arguments[0])], "x.png", {{type: "image/png"}}));
            document.dispatchEvent(new {event}, {{{field}: data, bubbles: true, cancelable: true}}));""",
            data,
        )
        page.shows(index.search(photos / "005.png", 30))
        page.one("#home").click()
        until(lambda: not page.titles())


def test_errors_empty_results_themes_and_narrow_windows(page, address, photos):
    page.browser.get(f"{address}/?q=a&where=nope%20%3D%201")
    until(lambda: page.all(".error"))
    assert "no column 'nope'" in page.text(".error")
    page.browser.get(f"{address}/?q=a&where=size%20%3C%200")
    until(lambda: "No image passes the filters" in page.text("#message"))
    page.one("#message button").click()
    until(lambda: len(page.titles()) == 30)

    def background():
        return page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    before = background()
    page.one("#theme").click()
    after = background()
    assert after != before
    page.browser.refresh()
    until(lambda: len(page.titles()) == 30)
    assert background() == after
    page.one("#theme").click()
    metrics = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert page.browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    (photos / "note.txt").write_text("a text")
    page.one("#file").send_keys(str(photos / "note.txt"))
    until(lambda: "is not an image" in page.text("#message"))
    (photos / "note.txt").unlink()


def test_nothing_is_loaded_from_elsewhere_and_the_docs_work(page, address):
    page.browser.get(f"{address}/docs")
    until(lambda: "POST /api/search" in page.text("#docs"))
    asked = "".join(entry["message"] for entry in page.browser.get_log("performance"))
    urls = {part.split('"')[0] for part in asked.split('"url":"')[1:]}
    elsewhere = {url for url in urls if url and not url.startswith((address, "blob:", "data:", "about:", "chrome"))}
    assert elsewhere == set()
    violations = [line for line in page.browser.get_log("browser") if "Content Security Policy" in line["message"]]
    assert violations == []


def test_it_tells_that_a_search_is_approximate(browser, approximate_index):
    with serving(approximate_index) as address:
        page = Page(browser, address)
        page.one("#text").send_keys("a", Keys.ENTER)
        until(lambda: "approximate" in page.text("#status"))
        assert "approximate, recall@100 0.992 measured" in page.one("#status").text
        page.one("#where").send_keys("1", Keys.ENTER)
        until(lambda: "filtered" in page.text("#status"))
        assert "approximate" not in page.text("#status")


def seconds(time):
    """As the page writes them: JavaScript rounds halves up."""
    return f"{time + 1e-9:.2f} s"


def test_clips_show_their_moment_their_frames_and_play(browser, tmp_path):
    folder = write_mixed_folder(tmp_path / "mixed")
    index = ImageIndex.build(PixelEncoder(), folder, tmp_path / "index")
    with serving(index) as address:
        page = Page(browser, address, "6 images and clips")
        script = browser.execute_script
        page.one("#file").send_keys(str(folder / "film.mp4"))  # a clip as the query
        expected = index.search(folder / "film.mp4", 9)
        until(lambda: page.titles())
        assert page.titles() == [match.columns["label"] or match.path.name for match in expected]
        assert page.one("#chip-video").is_displayed()
        assert "of 6 images and clips" in page.text("#status")
        shown = [element.text for element in page.all(".moment")]
        assert shown == [seconds(match.moment) for match in expected if match.moment is not None]
        at = [match.path.name for match in expected].index("film.mp4")
        card = page.all(".open")[at]
        until(lambda: script("return arguments[0].querySelector('img').naturalWidth", card) == 32)
        assert not page.one("#sheet").is_displayed()
        webdriver.ActionChains(browser).move_to_element(card).perform()
        until(lambda: script("return document.querySelector('#sheet img').naturalWidth") == 4 * 160)
        assert page.one("#sheet").is_displayed()
        assert [element.text for element in page.all("#sheet li")] == [seconds(time) for time in expected[at].times]
        assert [element.text for element in page.all("#sheet li.best")] == [seconds(expected[at].moment)]
        box = page.one("#sheet").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1200
        webdriver.ActionChains(browser).move_to_element(page.one("#status")).perform()
        until(lambda: not page.one("#sheet").is_displayed())
        script("arguments[0].focus()", card)
        assert page.one("#sheet").is_displayed()
        page.press(Keys.ENTER)
        until(lambda: page.one("#detail").get_attribute("open"))
        assert not page.one("#sheet").is_displayed()
        assert f"{seconds(expected[at].moment)} of 2.00 s" in page.text("#detail-columns")
        others = [i for i, match in enumerate(expected) if match.path.name == "moving.webp"]
        page.press(*[Keys.ARROW_RIGHT if others[0] > at else Keys.ARROW_LEFT] * abs(others[0] - at))
        until(lambda: script("return document.querySelector('#detail-image').naturalWidth") == 32)
        assert page.one("#detail-image").is_displayed()
        assert not page.one("#detail-video").is_displayed()
        violations = [line for line in browser.get_log("browser") if "Content Security Policy" in line["message"]]
        assert violations == []


def test_a_video_plays_from_the_moment_if_it_is_long(browser, tmp_path):
    """And one that the browser cannot play shows its frames."""
    colors = (RED, GREEN, BLUE, WHITE)
    write_film(tmp_path / "clips" / "long.webm", colors, seconds=5, rate=4, codec="libvpx")
    write_film(tmp_path / "clips" / "other.avi", colors)
    index = ImageIndex.build(PixelEncoder(), tmp_path / "clips", tmp_path / "index")
    with serving(index) as address:
        page = Page(browser, address, "2 clips")
        script = browser.execute_script
        page.press("a text", Keys.ENTER)
        expected = index.search("a text", 2)
        until(lambda: len(page.titles()) == 2)
        at = [match.path.name for match in expected].index("long.webm")
        page.all(".open")[at].click()
        until(
            lambda: script("return document.querySelector('#detail-video').currentTime") >= expected[at].moment - 0.1
        )
        video = page.one("#detail-video")
        until(lambda: script("return !arguments[0].paused && arguments[0].videoWidth == 32", video))
        page.press(Keys.ARROW_LEFT if at else Keys.ARROW_RIGHT)
        sheet = f"/sheet/{expected[1 - at].id}"
        until(lambda: (page.one("#detail-image").get_attribute("src") or "").endswith(sheet))
        assert page.one("#detail-image").is_displayed()
        page.press(Keys.ESCAPE)
        assert script("return document.querySelector('#detail-video').getAttribute('src')") is None
