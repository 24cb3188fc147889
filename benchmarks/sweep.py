"""What fewer bits cost in words: each component alone is stored by each policy of sweep.yaml, judged, and heard.

    python -m benchmarks.sweep [variant=mini-custom-voice] [score.sentences=60]

The measures are those of `compress` (teacher forcing on the held-out texts) beside those of `score` (the sentences of
conf/score). Everything is computed in float32, so that only the weights differ. Needs the stages up to rollout. Results
go to results/sweep-<variant>.json after each policy, and those that are there already are not computed again; a table
and a picture are drawn from them.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import vl_convert
import yaml
from omegaconf import DictConfig

from pipeline import score
from pipeline.graphs.compression import compress
from pipeline.graphs.teacher_forcing import EXACT
from pipeline.judging import quality
from pipeline.judging.gates import worst
from pipeline.judging.scorers import ended, speaker_similarity, word_error
from pipeline.rollout import exported
from pipeline.stage import alone, configuration, errors_for_people, paths, read_report
from qwen3_tts_ov import Synthesizer

HERE = Path(__file__).parent
POLICIES: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load((HERE / "sweep.yaml").read_text(encoding="utf-8"))
LANGUAGE = "english"  # of the figures
Row = dict[str, Any]


def measure(cfg: DictConfig, component: str, policy: dict[str, Any]) -> Row:
    """The measures of one component, and of the speech of a model with it; without a policy, of the exported graphs."""
    where = paths(cfg)
    model = exported(cfg.variant.name, where.checkpoint, where.ir)
    measures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder, f"{component}.xml")
        if policy:
            alone(compress, where.ir / xml.name, xml, policy, where.rollout)
            record = where.model / f"{component}.safetensors"
            compared, judged = alone(quality.assess, component, xml, record, where.ir / xml.name, where.rollout)
            measures = worst(compared) | judged
            model = replace(model, graphs={**model.graphs, component: xml})
        size = model.graphs[component].with_suffix(".bin").stat().st_size if policy else 0
        material = score.speak(Synthesizer(model, properties={"default": EXACT}, cache_dir=False), cfg, Path(folder))
    figures = word_error(material) | speaker_similarity(material) | ended(material)
    return {"megabytes": size / 1e6, "measures": measures, "figures": figures}


def run(cfg: DictConfig) -> list[Row]:
    """The rows of all policies, the first of them that of the exported graphs; kept in a file as they come."""
    file = HERE / "results" / f"sweep-{cfg.variant.name}.json"
    about = {
        "revision": read_report(paths(cfg).checkpoint)["revision"],
        "sentences": min(cfg.score.sentences or 10**9, len(cfg.score.texts[LANGUAGE])),
    }
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[Row] = kept["rows"] if {key: kept.get(key) for key in about} == about else []
    has = read_report(paths(cfg).ir)["components"]
    policies = {"": {"16 bits": {}}, **{component: named for component, named in POLICIES.items() if component in has}}
    asked = [
        {"component": component, "policy": name, "stored": policy}
        for component, named in policies.items()
        for name, policy in named.items()
    ]
    for known in asked:
        if not any(known.items() <= row.items() for row in rows):
            rows.append(known | measure(cfg, known["component"], known["stored"]))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return [row for known in asked for row in rows if known.items() <= row.items()]


def table(rows: list[Row]) -> str:
    """The rows in Markdown, with the measures of each component."""
    lines = ["| component | stored in | measures | word error | similarity | ended |", "|---|---|---|---|---|---|"]
    for row in rows:
        measures = ", ".join(f"`{name}` {value:.3g}" for name, value in row["measures"].items())
        figures = row["figures"]
        lines.append(
            f"| {row['component'].replace('_', ' ') or 'none'} | {row['policy']} | {measures} | "
            f"{figures[f'word_error_{LANGUAGE}']:.1%} | {figures['speaker_similarity']:.3f} | {figures['ended']:.0%} |"
        )
    return "\n".join(lines)


def picture(rows: list[Row]) -> str:
    """The first measure of each component against the word error rate, as SVG; the line is the exported graphs'."""
    exact = rows[0]["figures"][f"word_error_{LANGUAGE}"]
    points = [
        {
            "panel": f"{row['component'].replace('_', ' ')}: {next(iter(row['measures']))}",
            "policy": row["policy"],
            "measure": next(iter(row["measures"].values())),
            "word error": row["figures"][f"word_error_{LANGUAGE}"],
        }
        for row in rows[1:]
        if row["component"] in quality.JUDGES
    ]
    axis = {"type": "quantitative", "scale": {"zero": False}}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 90},
        "encoding": {
            "x": {"field": "measure", "title": None, **axis},
            "y": {"field": "word error", "type": "quantitative", "title": "word error rate", "axis": {"format": ".0%"}},
            "color": {"field": "policy", "type": "nominal", "title": None},
        },
    }
    rule = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"y": {"datum": exact}}}
    return vl_convert.vegalite_to_svg(
        {
            "data": {"values": points},
            "facet": {"field": "panel", "type": "nominal", "title": None},
            "columns": 3,
            "spec": {"width": 220, "height": 180, "layer": [rule, dots]},
            "resolve": {"scale": {"x": "independent"}},
        }
    )


def main() -> None:
    cfg = configuration(["variant=mini-custom-voice", "score.sentences=null", *sys.argv[1:]])
    rows = run(cfg)
    print(table(rows))
    (HERE.parent / "docs" / "sweep.svg").write_text(picture(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with errors_for_people():
        main()
