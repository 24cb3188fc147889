"""Takes the picture of the server's page: python -m tests.screenshot BUNDLE docs/page.png"""

import io
import sys

from PIL import Image

from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.app.server import application
from tests.browsing import chromium
from tests.serving import served


def main(bundle: str, picture: str) -> None:
    synthesizer = Synthesizer(Bundle.load(bundle))
    with served(application(synthesizer)) as client, chromium() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 800}, device_scale_factor=1)
        page.goto(str(client.base_url))
        page.get_by_text("is served.").wait_for()
        page.get_by_label("Text").fill("Hello. I am a small voice, and I live in this repository.")
        page.get_by_label("Language").select_option("english")
        page.get_by_label("Seed").fill("0")
        page.get_by_role("button", name="Speak").click()
        page.get_by_text("Said.").wait_for(timeout=120_000)
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    taken.convert("RGB").quantize(128).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
