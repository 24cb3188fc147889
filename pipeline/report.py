"""report: one self-contained HTML file about a whole build, to hear and compare its cells.

It is no stage of dvc.yaml, as it holds nothing new and takes a second: `make` runs it after them.
"""

import base64
import json
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf

from pipeline.judging import gates
from pipeline.stage import REPORT, ROOT, PipelineError, main, paths_of, read_json, read_metrics, read_report
from qwen3_tts_ov.manifest import MANIFEST

# The plot is DVC's too (`dvc plots show`), which puts the points where this marker stands.
PICTURE, POINTS = ROOT / ".dvc" / "plots" / "size_quality.json", '"<DVC_METRIC_DATA>"'
TEMPLATE = Path(__file__).with_suffix(".html.jinja")
MEDIA = {".wav": "audio/wav", ".png": "image/png"}
# Of every plot: no background, and text in the colour of the page, which may be dark.
THEME = {
    "background": None,
    "view": {"stroke": None},
    "axis": {"domainColor": "#888", "tickColor": "#888", "gridColor": "#8884"},
    "style": {name: {"fill": "currentColor"} for name in ("guide-label", "guide-title", "group-title")},
}
# A word, or a character of a script that is written without spaces, with the space around it.
WORDS = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+)\s*")


@dataclass(frozen=True)
class Cell:
    """What the stages recorded of one variant at one precision."""

    variant: str
    precision: str
    folder: Path  # of smoke
    smoke: dict[str, Any]
    compress: dict[str, Any]
    manifest: dict[str, Any]
    score: dict[str, Any]  # empty where the stage has not run

    @property
    def name(self) -> str:
        return f"{self.variant} {self.precision}"

    @property
    def spoke(self) -> dict[str, dict[str, Any]]:
        """The devices that passed, with what was found."""
        return {device: found for device, found in self.smoke["devices"].items() if found["status"] == "passed"}

    @property
    def megabytes(self) -> float:
        """What a user downloads."""
        return sum(entry["size"] for entry in self.manifest["files"].values()) / 1e6

    def embed(self, name: str) -> str:
        """A file of the smoke stage as a data URL."""
        data = base64.b64encode((self.folder / name).read_bytes()).decode()
        return f"data:{MEDIA[Path(name).suffix]};base64,{data}"


def run(cfg: DictConfig) -> None:
    """Writes artifacts/report.html about the cells of params.yaml that smoke has heard; PipelineError for none."""
    axes = OmegaConf.load(ROOT / "params.yaml")
    named = [(variant, precision) for variant in axes.variants for precision in axes.precisions]
    heard = [cell for cell in named if Path(cfg.artifacts, *cell, "smoke").is_dir()]
    if not heard:
        raise PipelineError(f"{cfg.artifacts}: smoke has heard no cell of params.yaml; run `dvc repro`")
    cells = [load(cfg.artifacts, *cell) for cell in heard]
    page = render(cells)
    path = Path(cfg.artifacts, "report.html")
    partial = path.with_suffix(".part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    print(f"{path}: {len(cells)} cells, {len(page) / 1e6:.1f} MB")
    for line in (line for cell in cells for line in understood(cell)):
        print(line)


def understood(cell: Cell) -> list[str]:
    """For each device whose speech a recogniser wrote down, what was said and what was heard."""
    return [
        f"{cell.variant} {cell.precision} on {device} said {cell.smoke['text']!r}, heard as {found['transcript']!r}"
        for device, found in cell.smoke["devices"].items()
        if "transcript" in found
    ]


def render(cells: list[Cell]) -> str:
    """The page about these cells."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(TEMPLATE.name)
    return template.render(
        cells=cells,
        variants=[(name, list(group)) for name, group in groupby(cells, lambda cell: cell.variant)],
        compared=compared,
        not_run=not_run(cells),
        sizes=sizes(cells),
        charts=[Markup(bars("MB", megabytes(cells))), Markup(bars("ms a frame of 80 ms", milliseconds(cells)))],
        quality=quality(cells),
        missed=missed(cells),
        scored=[cell for cell in cells if cell.score.get("figures")],
        figure_names=list(dict.fromkeys(name for cell in cells for name in cell.score.get("figures", {}))),
        measure=gates.measure,
        picture=Markup(picture(cells)),
    )


def picture(cells: list[Cell]) -> str:
    """Size against quality by component and precision, as SVG."""
    points = [point for cell in cells for point in cell.compress["costs"]]
    specification = PICTURE.read_text(encoding="utf-8").replace(POINTS, json.dumps(points))
    return vl_convert.vegalite_to_svg(specification, config=THEME)


def bars(title: str, values: list[tuple[Cell, str, float]]) -> str:
    """A bar for every cell, made of its components' values, the precisions of a variant together; as SVG."""
    points = [
        {"variant": cell.variant, "precision": cell.precision, "component": component, title: value}
        for cell, component, value in values
    ]
    specification = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": points},
        "mark": "bar",
        "encoding": {
            "row": {"field": "variant", "sort": None, "title": None, "header": {"labelAngle": 0, "labelAlign": "left"}},
            "y": {"field": "precision", "sort": None, "title": None},
            "x": {"field": title, "type": "quantitative", "title": title},
            "color": {"field": "component", "sort": None, "title": None},
        },
        "width": 320,
        "spacing": 6,
    }
    return vl_convert.vegalite_to_svg(specification, config=THEME)


def megabytes(cells: list[Cell]) -> list[tuple[Cell, str, float]]:
    """The weights of every component."""
    return [(cell, name, entry["bytes"] / 1e6) for cell in cells for name, entry in cell.compress["components"].items()]


def milliseconds(cells: list[Cell]) -> list[tuple[Cell, str, float]]:
    """The time that every component takes a frame, on the first device that spoke."""
    return [
        (cell, name, 1000 * found["measured"]["seconds_by_component"].get(name, 0.0) / found["frames"])
        for cell in cells
        for found in list(cell.spoke.values())[:1]
        for name in cell.compress["components"]
    ]


def compared(said: str, heard: str) -> list[list[tuple[str, bool]]]:
    """The words of both texts, each with whether the other has it too, whatever its case and punctuation."""
    words = [WORDS.findall(text) for text in (said, heard)]
    plain = [[re.sub(r"\W", "", word).casefold() for word in text] for text in words]
    blocks = SequenceMatcher(None, plain[0], plain[1], autojunk=False).get_matching_blocks()
    common = [{start[side] + at for start in blocks for at in range(start.size)} for side in (0, 1)]
    return [
        [(word, at in common[side] or not plain[side][at]) for at, word in enumerate(words[side])] for side in (0, 1)
    ]


def not_run(cells: list[Cell]) -> list[str]:
    """Every device that did not run with the reason, and the cells if it ran in others."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for device, entry in cell.smoke["devices"].items():
            if entry["status"] == "not_run":
                found.setdefault(f"{device} ({entry['reason']})", []).append(cell.name)
    return [what + ("" if len(where) == len(cells) else f" in {', '.join(where)}") for what, where in found.items()]


def load(artifacts: str, variant: str, precision: str) -> Cell:
    """Reads the reports of one cell."""
    where = paths_of(Path(artifacts), variant, precision)
    smoke, compress = read_metrics(where.smoke), read_report(where.compressed)
    score = read_report(where.score) if (where.score / REPORT).is_file() else {}
    return Cell(variant, precision, where.smoke, smoke, compress, read_json(where.bundle / MANIFEST), score)


def sizes(cells: list[Cell]) -> dict[str, list[float | None]]:
    """Weights of every component in MB, a column for each cell."""
    names = dict.fromkeys(name for cell in cells for name in cell.compress["components"])
    entries = {name: [cell.compress["components"].get(name) for cell in cells] for name in names}
    return {name: [entry and entry["bytes"] / 1e6 for entry in row] for name, row in entries.items()}


def quality(cells: list[Cell]) -> dict[tuple[str, str], list[dict[str, Any] | None]]:
    """How close every graph comes to its source, a column for each cell; rows by output or component, and measure.

    Outputs are compared with PyTorch; the other measures are those of pipeline/judging/quality.py.
    """
    table: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for column, cell in enumerate(cells):
        for name, entry in cell.compress["components"].items():
            found = {(f"{name}.{port}", m): score for port, ms in entry["closeness"].items() for m, score in ms.items()}
            found |= {(name, measure): score for measure, score in entry["quality"].items()}
            bounds = entry["parity"] | entry["bounds"]
            for row, value in found.items():
                bound = bounds.get(row[1])
                held = bound is None or gates.holds(row[1], value, bound)
                text = None if bound is None else gates.described(row[1], bound)
                table.setdefault(row, [None] * len(cells))[column] = {"value": value, "bound": text, "missed": not held}
    return table


def missed(cells: list[Cell]) -> list[str]:
    """A line for every bound on quality that a cell misses."""
    return [
        f"{cell.variant} {cell.precision}: {gates.Miss(**entry)}"
        for cell in cells
        for found in (cell.compress, *cell.smoke["devices"].values(), cell.score)
        for entry in found.get("missed", [])
    ]


if __name__ == "__main__":
    main(run)
