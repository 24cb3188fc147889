"""The report of a build, opened in a browser: audio plays, and tables show what the stages measured."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page

from pipeline import report as html
from pipeline.stage import output, read_metrics
from pipeline.stage import report as write_report
from tests.browsing import chromium
from tests.conftest import run_stage, until

CELLS = [
    ("tiny-custom-voice", "fp16"),
    ("tiny-custom-voice", "int8"),
    ("tiny-base", "int8"),
]


@pytest.fixture(scope="module")
def report(artifact, checkout_of_all, tmp_path_factory) -> Path:
    """The report, moved away from its sources: it must be self-contained."""
    root = tmp_path_factory.mktemp("cells")
    for variant, precision in CELLS:
        (root / variant).mkdir(exist_ok=True)
        (root / variant / precision).symlink_to(artifact("smoke", variant, precision).parent)
    done = run_stage("report", f"artifacts={root}", checkout=checkout_of_all)
    assert done.returncode == 0, done.stderr
    assert f"{len(CELLS)} cells" in done.stdout
    return shutil.move(root / "report.html", tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def opened(report) -> Iterator[tuple[Page, list[str], list[str]]]:
    """The report in headless Chromium without a network; the page's requests and console messages."""
    asked: list[str] = []
    console: list[str] = []
    with chromium() as browser:
        page = browser.new_context(offline=True).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: console.append(message.text))
        page.goto(report.as_uri())
        yield page, asked, console


@pytest.fixture
def page(opened) -> Page:
    return opened[0]


def smoke_report(artifact, variant: str, precision: str) -> dict:
    return read_metrics(artifact("smoke", variant, precision))


def rows(page: Page, table: str) -> list[list[str]]:
    """The text of the cells in a table's body."""
    lines = page.locator(f"#{table} tbody tr")
    return [lines.nth(number).locator("td").all_inner_texts() for number in range(lines.count())]


def test_every_cell_can_be_played_with_a_click(page, artifact):
    players = page.locator("audio")
    assert players.count() == len(CELLS)
    for number, cell in enumerate(CELLS):
        player: Locator = players.nth(number)
        found = smoke_report(artifact, *cell)["devices"]["CPU"]
        player.scroll_into_view_if_needed()
        until(lambda player=player: player.evaluate("player => player.readyState") == 4)
        assert player.evaluate("player => player.duration") == pytest.approx(found["frames"] * 0.08, abs=0.01)
        assert player.evaluate("player => player.paused")
        player.click(position={"x": 22, "y": player.bounding_box()["height"] / 2})  # its play button
        until(lambda player=player: player.evaluate("player => player.currentTime") > 0.1)
        player.evaluate("player => player.pause()")


def test_the_page_is_self_contained(opened, report):
    _, asked, console = opened
    assert asked == [report.as_uri()]
    assert console == []


def test_every_cell_shows_its_spectrogram(page):
    pictures = page.locator("figure img")
    assert pictures.count() == len(CELLS)
    for number in range(len(CELLS)):
        assert pictures.nth(number).evaluate("picture => picture.complete && picture.naturalWidth") > 100


def test_the_precisions_of_a_variant_are_heard_side_by_side(page):
    first, second = (page.locator("figure audio").nth(number).bounding_box() for number in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] < second["x"]
    assert page.locator("section h3").all_inner_texts() == list(dict.fromkeys(variant for variant, _ in CELLS))


def test_sizes_and_speed_are_drawn(page, artifact):
    charts = page.locator("#charts svg")
    assert charts.count() == 2
    for number, title in enumerate(("MB", "ms a frame of 80 ms")):
        parts = charts.nth(number).locator("path[aria-roledescription=bar]")
        drawn = [part.get_attribute("aria-label") for part in parts.all()]
        assert len([label for label in drawn if "component: talker" in label]) == len(CELLS)
        assert all(label.startswith(f"{title}: ") for label in drawn)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_stands_out_from_the_page_in_either_scheme(page, scheme):
    page.emulate_media(color_scheme=scheme)
    shown = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")
    text, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in shown)
    assert (text < paper) == (scheme == "light")
    assert abs(text - paper) > 500


def test_the_tables_show_what_the_stages_measured(page, artifact):
    devices = rows(page, "devices")
    for variant, precision in CELLS:
        found = smoke_report(artifact, variant, precision)["devices"]
        row = next(row for row in devices if row[:2] == [f"{variant} {precision}", "CPU"])
        assert row[2:5] == ["passed", str(found["CPU"]["frames"]), found["CPU"]["stop_reason"]]
        assert float(row[9]) == pytest.approx(found["CPU"]["measured"]["real_time_factor"], abs=0.01)
        absent = {device: entry["reason"] for device, entry in found.items() if entry["status"] == "not_run"}
        line = "; ".join(f"{device} ({reason})" for device, reason in absent.items())
        assert page.locator("#not_run").inner_text() == f"Not run: {line}.", "one line for all cells"
        assert not [row for row in devices if row[1] in absent]

    heads = page.locator("#sizes thead th").all_inner_texts()[1:]
    assert heads == [f"{variant}\n{precision}" for variant, precision in CELLS]
    sizes = {row[0]: row[1:] for row in rows(page, "sizes")}
    for column, cell in enumerate(CELLS):
        bundle = artifact("bundle", *cell)
        assert float(sizes["talker"][column]) == pytest.approx((bundle / "talker.bin").stat().st_size / 1e6, abs=0.01)
    assert sizes["speaker_encoder"][0] == "", "no component of a custom voice"

    quality = {tuple(row[:2]): row[2:] for row in rows(page, "quality")}
    compressed = json.loads((artifact("compress", *CELLS[1]) / "report.json").read_text())["components"]["talker"]
    assert float(quality["talker.logits", "snr_db"][1]) == pytest.approx(
        compressed["closeness"]["logits"]["snr_db"], 1e-3
    )
    score, _, bound = quality["talker", "top1"][1].partition(" ")
    assert float(score) == pytest.approx(compressed["quality"]["top1"], abs=1e-3)
    assert bound == f"(at least {compressed['bounds']['top1']})"

    timings = {row[0]: row[1:] for row in rows(page, "timings")}
    spoken = smoke_report(artifact, *CELLS[0])["devices"]["CPU"]
    per_frame = 1000 * spoken["measured"]["seconds_by_component"]["talker"] / spoken["frames"]
    assert float(timings["talker"][0]) == pytest.approx(per_frame, abs=0.01)


def test_a_build_without_speech_is_one_line(tmp_path):
    done = run_stage("report", f"artifacts={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "smoke has heard no cell of params.yaml; run `dvc repro`" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missed_bound_is_marked_in_its_cell_and_listed(artifact, tmp_path):
    shutil.copytree(artifact("smoke").parent, tmp_path / "tiny-custom-voice/int8")
    path = tmp_path / "tiny-custom-voice/int8/ir/report.json"
    recorded = json.loads(path.read_text())
    recorded["components"]["talker"]["quality"]["kl"] = 0.5
    recorded["missed"] = [{"subject": "talker", "measure": "kl", "bound": 0.02, "value": 0.5}]
    path.write_text(json.dumps(recorded))
    page = html.render([html.load(str(tmp_path), "tiny-custom-voice", "int8")])
    assert '<td class="missed">0.5 (at most 0.02)</td>' in page
    assert "<li>tiny-custom-voice int8: talker: kl is 0.5, bound: at most 0.02</li>" in page
    assert page.count('class="missed"') == 2


def test_what_was_heard_is_shown_beside_what_was_said(artifact, tmp_path):
    shutil.copytree(artifact("smoke").parent, tmp_path / "tiny-custom-voice/int8")
    cell = html.load(str(tmp_path), "tiny-custom-voice", "int8")
    assert html.understood(cell) == []
    assert "no transcript: random weights speak no words" in html.render([cell])
    cell.smoke["devices"]["CPU"] |= {"transcript": "The quick brown dog.", "word_error": 0.5}
    heard = [
        {"text": "Good morning.", "transcript": "Good mourning.", "wrong_words": 1, "ended": True},
        {"text": "Good night.", "ended": False},
    ]
    miss = {"subject": "speech", "measure": "word_error_english", "bound": 0.1, "value": 0.25}
    cell.score.update(figures={"word_error_english": 0.25}, heard=heard, missed=[miss])
    assert [line.partition("heard as ")[2] for line in html.understood(cell)] == ["'The quick brown dog.'"]
    page = html.render([cell])
    assert "<dd>The quick brown <mark>fox </mark><mark>jumps </mark><mark>over </mark><mark>the </mark>" in page
    assert "<dd>The quick brown dog.</dd>" in page
    assert "<dd>50 %</dd>" in page
    marked = "<td>Good <mark>morning.</mark></td><td>Good <mark>mourning.</mark></td>"
    assert f'<tr class="missed">\n{marked}\n<td>1</td>' in page
    assert "<td>Good night.</td><td></td>\n<td> did not end</td>" in page
    assert "word_error_english is 0.25, bound: at most 0.1" in page


@pytest.mark.parametrize(
    ("said", "heard", "marked"),
    [
        ("One, two.", "one two", [[], []]),
        ("One two three.", "One three four.", [["two "], ["four."]]),
        ("今日は良い天気です。", "今日は悪い天気です", [["良"], ["悪"]]),
        ("One.", "", [["One."], []]),
    ],
)
def test_words_that_differ_are_marked(said, heard, marked):
    words = html.compared(said, heard)
    assert ["".join(word for word, _ in text) for text in words] == [said, heard]
    assert [[word for word, common in text if not common] for text in words] == marked


def test_recorded_text_is_escaped_and_never_executed(artifact, tmp_path):
    cell = artifact("smoke").parent
    shutil.copytree(cell, tmp_path / "tiny-custom-voice/int8")
    folder = tmp_path / "tiny-custom-voice/int8/smoke"
    recorded = read_metrics(folder)
    recorded["devices"]["GPU"] = {"status": "failed", "reason": "<script>alert(1)</script>"}
    with output(folder) as fresh:
        shutil.copytree(folder, fresh, dirs_exist_ok=True)
        write_report(fresh, recorded)
    page = html.render([html.load(str(tmp_path), "tiny-custom-voice", "int8")])
    assert "failed: &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
