"""The server's page in a browser: it speaks, is heard, stops, clones, asks for the key, survives the server."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.app.server import application
from qwen3_tts_ov.app.shelf import Shelf, bundle_slip
from qwen3_tts_ov.app.voices import Voices
from tests.browsing import chromium
from tests.conftest import free_port, until
from tests.serving import SPEECH, idle, served

RECORDING = Path(__file__).parents[1] / "data" / "speech-24khz.flac"
KINDS = ("tiny-custom-voice", "tiny-base", "tiny-voice-design")
LONG = "It goes on and on, and on, and on. " * 40
# Whatever is sent to the loudspeaker also reaches an analyser, which remembers the loudest sample.
LISTEN = """
  window.loudest = 0;
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target === this.context.destination) {
      if (!this.context.ear) {
        this.context.ear = this.context.createAnalyser();
        const samples = new Float32Array(this.context.ear.fftSize);
        setInterval(() => {
          this.context.ear.getFloatTimeDomainData(samples);
          window.now = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
          window.loudest = Math.max(window.loudest, window.now);
        }, 20);
      }
      connect.call(this, this.context.ear);
    }
    return connect.call(this, target, ...rest);
  };
"""


@pytest.fixture(scope="module")
def bundles(artifact) -> list[Bundle]:
    return [Bundle.load(artifact("bundle", kind, "int8")) for kind in KINDS]


@pytest.fixture(scope="module")
def app(bundles, model_cache, tmp_path_factory) -> Callable:
    """`app(api_key="...")`: a server of a bundle of each kind that lets clients change the voices."""
    slips = [bundle_slip(each, lambda each=each: Synthesizer(each, cache_dir=model_cache), []) for each in bundles]
    voices = Voices.load(tmp_path_factory.mktemp("voices"), change=True)
    return lambda **how: application(Shelf(slips), voices=voices, **how)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as found:
        yield found


@pytest.fixture(scope="module")
def client(app, browser) -> Iterator[httpx2.Client]:
    with served(app()) as found:
        yield found


@contextmanager
def opened(browser: Browser, address: object, **context: object) -> Iterator[Page]:
    with closing(browser.new_context(**context)) as fresh:
        fresh.add_init_script(LISTEN)
        page = fresh.new_page()
        page.set_default_timeout(20_000)
        page.goto(str(address))
        yield page


@pytest.fixture
def page(browser, client) -> Iterator[Page]:
    """The page, ready to speak, with a fixed seed."""
    with opened(browser, client.base_url) as page:
        page.get_by_text("3 models are served.").wait_for()
        page.get_by_label("Seed").fill("1")
        yield page


def fact(page: Page, name: str) -> str:
    return page.locator("dl div", has_text=name).locator("dd").inner_text()


def said(page: Page) -> bytes:
    """The samples that are offered for download, once they are."""
    page.get_by_text("Download WAV").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download WAV").click()
    return download.value.path().read_bytes()[44:]


def spoken(client: httpx2.Client, **request: object) -> bytes:
    """What the server says to a program."""
    return client.post(SPEECH, json={"seed": 1, "response_format": "pcm"} | request).content


def test_the_page_speaks_and_is_heard(page, client):
    page.get_by_label("Text").fill("Hi.")
    page.get_by_label("Voice", exact=True).select_option("ryan")
    page.get_by_label("Language").select_option("english")
    page.get_by_role("button", name="Speak").click()
    page.get_by_text("Speaking").wait_for()
    until(lambda: page.evaluate("loudest") > 0.001)
    content = said(page)
    assert content == spoken(client, input="Hi.", voice="ryan", language="english")
    assert fact(page, "Length") == f"{len(content) / 48_000:.1f} s"
    assert fact(page, "Ended") in ("by itself", "cut at its limit")
    assert fact(page, "Seed") == "1"
    assert fact(page, "First audio").endswith(" s")
    assert float(fact(page, "Real-time factor")) > 0
    assert fact(page, "Ran dry") == "never" or fact(page, "Ran dry").endswith(" times")
    for canvas in ("waveform", "spectrogram"):
        drawn = page.evaluate(
            f"{canvas}.getContext('2d').getImageData(0, 0, 1024, 100).data.some((value) => value > 50)"
        )
        assert drawn, canvas
    page.get_by_text("Said.").wait_for()


def test_it_stops_in_the_middle(page, client, bundles, monkeypatch):
    monkeypatch.setitem(bundles[0].manifest["generation"], "max_new_tokens", 8192)
    page.get_by_label("Text").fill(LONG)
    page.keyboard.press("Control+Enter")
    until(lambda: page.evaluate("loudest") > 0.001)
    page.keyboard.press("Escape")
    page.get_by_text("Stopped.").wait_for()
    assert fact(page, "Ended") == "stopped by you"
    until(lambda: idle(client))
    until(lambda: page.evaluate("now") == 0)
    assert len(said(page)) > 0, "what was said until then can be kept"
    assert page.get_by_role("button", name="Stop").is_disabled()


def test_a_design_bundle_asks_for_the_voice_in_words(page, client):
    page.get_by_label("Model").select_option("tiny-voice-design-int8")
    assert not page.get_by_label("Voice", exact=True).is_visible()
    page.get_by_label("Text").fill("Hi.")
    page.get_by_label("The voice in words").fill("An old man.")
    page.get_by_role("button", name="Speak").click()
    assert said(page) == spoken(client, input="Hi.", model="tiny-voice-design", instructions="An old man.")


def test_a_voice_is_cloned_from_a_file_saved_and_deleted(page, client):
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_label("Text").fill("Hi.")
    page.get_by_label("Model").select_option("tiny-base-int8")
    page.get_by_role("button", name="Speak").click()
    page.get_by_text("Choose a voice, or record one.").wait_for()
    page.locator("#file").set_input_files(RECORDING)
    page.get_by_text("speech-24khz.flac is ready to be cloned.").wait_for()
    page.get_by_label("What is said in it").fill("Some words.")
    page.get_by_role("button", name="Speak").click()
    url = f"data:audio/flac;base64,{base64.b64encode(RECORDING.read_bytes()).decode()}"
    expected = spoken(client, input="Hi.", ref_audio=url, ref_text="Some words.")
    assert said(page) == expected
    page.get_by_label("Name").fill("Anna")
    page.get_by_role("button", name="Save this voice").click()
    page.get_by_text("Anna is saved.").wait_for()
    assert page.get_by_label("Voice", exact=True).input_value() == "Anna"
    assert spoken(client, input="Hi.", voice="anna") == expected
    page.get_by_role("button", name="Delete the chosen voice").click()
    page.get_by_text("Anna is deleted.").wait_for()
    assert "Anna" not in client.get("/v1/audio/voices").text


def test_a_voice_is_recorded_from_the_microphone(page):
    page.get_by_label("Text").fill("Hi.")
    page.get_by_label("Model").select_option("tiny-base-int8")
    page.get_by_role("button", name="Record").click()
    page.get_by_text("Recording; it ends by itself").wait_for()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="End the recording").click()
    page.get_by_text("recording.webm is ready to be cloned.").wait_for()
    page.get_by_role("button", name="Speak").click()
    assert len(said(page)) > 0


def test_a_wrong_key_is_refused_and_the_right_one_kept_in_memory_alone(browser, app):
    with served(app(api_key="secret")) as client, opened(browser, client.base_url) as page:
        page.get_by_text("A key is needed.").wait_for()
        for key, answer in (("other", "This key is wrong."), ("secret", "3 models are served.")):
            page.get_by_label("This server needs its API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
            page.get_by_text(answer).wait_for()
        page.get_by_label("Text").fill("Hi.")
        page.get_by_role("button", name="Speak").click()
        assert len(said(page)) > 0
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert "secret" not in page.content()
        page.reload()
        page.get_by_text("A key is needed.").wait_for()


def test_the_server_may_go_and_come_back(browser, app):
    port = free_port()
    with served(app(), port) as client:
        page_of = opened(browser, client.base_url)
        page = page_of.__enter__()
        page.get_by_text("3 models are served.").wait_for()
    page.get_by_role("button", name="Speak").click()
    page.get_by_text("this page tries again every second").wait_for()
    assert page.locator("#status").inner_text() == "The server cannot be reached."
    with served(app(), port):
        page.get_by_text("3 models are served.").wait_for()
        page.get_by_label("Text").fill("Hi.")
        page.get_by_role("button", name="Speak").click()
        assert len(said(page)) > 0
        page_of.__exit__(None, None, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(browser, client, kind, scheme):
    with opened(browser, client.base_url, color_scheme=scheme, viewport={"width": 360, "height": 740}) as page:
        page.get_by_label("Model").select_option(f"{kind}-int8")
        page.evaluate("document.querySelectorAll('[hidden]').forEach((element) => { element.hidden = false; })")
        found = Axe().run(page).response["violations"]
        assert [f"{each['id']}: {each['nodes'][0]['html']}" for each in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_nothing_comes_from_outside_and_nothing_complains(browser, client):
    asked, complaints = [], []
    with opened(browser, "about:blank") as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(str(client.base_url))
        page.get_by_label("Text").fill("Hi.")
        page.get_by_role("button", name="Speak").click()
        said(page)
        assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
        assert {url.removeprefix("blob:").startswith(str(client.base_url)) for url in asked} == {True}
        assert complaints == []


def test_the_shown_requests_give_the_same_speech(page, client, tmp_path):
    page.get_by_label("Text").fill("It's Anna's \"voice\", né?")
    environment = os.environ | {"no_proxy": "127.0.0.1"}
    for kind in ("tiny-custom-voice", "tiny-base"):
        page.get_by_label("Model").select_option(f"{kind}-int8")
        if kind == "tiny-base":
            page.locator("#file").set_input_files(RECORDING)
            page.get_by_text("speech-24khz.flac is ready to be cloned.").wait_for()
            (tmp_path / RECORDING.name).write_bytes(RECORDING.read_bytes())
        page.get_by_role("button", name="Speak").click()
        expected = said(page)
        for command in (["bash", "-c", page.inner_text("#curl")], [sys.executable, "-c", page.inner_text("#python")]):
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "speech.wav").read_bytes()[44:] == expected


def test_the_page_can_be_left_out(app):
    with served(app(page=False)) as client:
        assert client.get("/").status_code == 404


@pytest.mark.prove
def test_two_hundred_requests_do_not_grow(page, client):
    def measured() -> tuple[int, int, int]:
        page.evaluate("window.gc && gc()")
        session = page.context.new_cdp_session(page)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        nodes = session.send("Memory.getDOMCounters")["nodes"]
        return heap, nodes, psutil.Process().memory_info().rss

    page.get_by_label("Text").fill("Hi.")
    for number in range(220):
        page.get_by_role("button", name="Speak").click()
        page.get_by_text("Speaking").wait_for()
        page.locator("#used-seed", has_text="1").wait_for()
        if number == 19:
            before = measured()
    heap, nodes, resident = measured()
    assert heap < before[0] + 2_000_000
    assert nodes <= before[1] + 20
    assert resident < before[2] + 20_000_000
