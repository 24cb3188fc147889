"""report: one self-contained HTML file about a whole build, to hear and compare its cells.

It is no stage of dvc.yaml, as it holds nothing new and takes a second: `make` runs it after them.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf

from pipeline.judging import gates
from pipeline.stage import REPORT, ROOT, PipelineError, main, paths_of, read_json, read_metrics, read_report
from qwen3_tts_ov.bundle import MANIFEST

# The plot is DVC's too (`dvc plots show`), which puts the points where this marker stands.
PICTURE, POINTS = ROOT / ".dvc" / "plots" / "size_quality.json", '"<DVC_METRIC_DATA>"'
TEMPLATE = Path(__file__).with_suffix(".html.jinja")
MEDIA = {".wav": "audio/wav", ".png": "image/png"}


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
        sizes=sizes(cells),
        quality=quality(cells),
        missed=missed(cells),
        scored=[cell for cell in cells if cell.score.get("figures")],
        measure=gates.measure,
        picture=Markup(picture(cells)),
    )


def picture(cells: list[Cell]) -> str:
    """Size against quality by component and precision, as SVG."""
    points = [point for cell in cells for point in cell.compress["costs"]]
    specification = PICTURE.read_text(encoding="utf-8").replace(POINTS, json.dumps(points))
    return vl_convert.vegalite_to_svg(specification)


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
