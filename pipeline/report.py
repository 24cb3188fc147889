"""report: one HTML file about a whole build, to hear and compare its cells; it needs nothing beside it.

No stage of dvc.yaml, as it says nothing new and is made in a second: `make` runs it after them.
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

from pipeline.stage import ROOT, PipelineError, configuration, main, paths, read_metrics, read_report

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

    @property
    def megabytes(self) -> float:
        """What a user downloads."""
        return sum(entry["size"] for entry in self.manifest["files"].values()) / 1e6

    def embed(self, name: str) -> str:
        """A file of the smoke stage as a data URL."""
        data = base64.b64encode((self.folder / name).read_bytes()).decode()
        return f"data:{MEDIA[Path(name).suffix]};base64,{data}"


def run(cfg: DictConfig) -> None:
    """Writes artifacts/report.html about what smoke has heard of params.yaml. Raises PipelineError for nothing."""
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
    return template.render(cells=cells, sizes=sizes(cells), quality=quality(cells), picture=Markup(picture(cells)))


def picture(cells: list[Cell]) -> str:
    """Size against quality by component and precision, as SVG."""
    points = [point for cell in cells for point in cell.compress["costs"]]
    specification = PICTURE.read_text(encoding="utf-8").replace(POINTS, json.dumps(points))
    return vl_convert.vegalite_to_svg(specification)


def load(artifacts: str, variant: str, precision: str) -> Cell:
    """Reads the reports of one cell."""
    where = paths(configuration((f"variant={variant}", f"precision={precision}", f"artifacts={artifacts}")))
    smoke, compress = read_metrics(where.smoke), read_report(where.compressed)
    manifest = json.loads((where.bundle / "manifest.json").read_text(encoding="utf-8"))
    return Cell(variant, precision, where.smoke, smoke, compress, manifest)


def sizes(cells: list[Cell]) -> dict[str, list[float | None]]:
    """Weights of every component in MB, a column for each cell."""
    names = dict.fromkeys(name for cell in cells for name in cell.compress["components"])
    entries = {name: [cell.compress["components"].get(name) for cell in cells] for name in names}
    return {name: [entry and entry["bytes"] / 1e6 for entry in row] for name, row in entries.items()}


def quality(cells: list[Cell]) -> dict[tuple[str, str], list[tuple[float, float | None] | None]]:
    """How close every graph comes to its source, with the gate, a column for each cell; rows by port and measure.

    Outputs are compared with PyTorch; the other measures are those of pipeline/judging/quality.py.
    """
    table: dict[tuple[str, str], list[tuple[float, float | None] | None]] = {}
    for column, cell in enumerate(cells):
        for name, entry in cell.compress["components"].items():
            found = {(f"{name}.{port}", m): score for port, ms in entry["closeness"].items() for m, score in ms.items()}
            found |= {(name, measure): score for measure, score in entry["quality"].items()}
            for row, score in found.items():
                table.setdefault(row, [None] * len(cells))[column] = (score, entry["gate"].get(row[1]))
    return table


if __name__ == "__main__":
    main(run)
