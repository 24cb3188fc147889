"""exporters: from a checkpoint on disk to its graphs, by this pipeline and by optimum-intel: seconds and peak memory.

    python -m benchmarks.exporters OPTIMUM VARIANT [--rounds 1]

OPTIMUM is an environment with optimum-intel and qwen-tts, artifacts/VARIANT/checkpoint what `python -m
pipeline.download variant=VARIANT` wrote. In every round each side makes fp16 and int8 graphs in turn, in a temporary
folder. Ours are those of the same layout, without the stages' comparisons with PyTorch, which optimum-intel has not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model_src.checkpoint import Checkpoint
from pipeline.compress import by_component
from pipeline.graphs.adaptors import GRAPHS
from pipeline.graphs.compression import compress
from pipeline.graphs.convert import export
from pipeline.stage import alone, configuration, paths
from qwen3_tts_ov.memory import peak_bytes

PRECISIONS = ("fp16", "int8")
LAYOUT = "genai"  # of the same graphs as optimum-intel makes


def ours(variant: str, precision: str, folder: Path) -> tuple[float, float]:
    """Seconds and the largest process' gigabytes."""
    cfg = configuration([f"variant={variant}", f"precision={precision}", f"layout={LAYOUT}"])
    policies = by_component(cfg.precision, "weights")
    kind = Checkpoint(paths(cfg).checkpoint).config.tts_model_type
    (folder / "exported").mkdir()
    start, peak = time.perf_counter(), 0
    for name in (name for name in cfg.layout.graphs if kind in GRAPHS[name].kinds):
        made = alone(export, name, paths(cfg).checkpoint, folder / "exported", {}, cfg.layout)
        source = folder / "exported" / f"{name}.xml"
        stored = alone(compress, source, folder / source.name, policies[GRAPHS[name].adapts or name], folder)
        peak = max(peak, made["peak_bytes"], stored["peak_bytes"])
        for part in (source, source.with_suffix(".bin")):
            part.unlink()
    return time.perf_counter() - start, max(peak, peak_bytes()) / 1e9


def theirs(optimum: Path, variant: str, precision: str, folder: Path) -> tuple[float, float]:
    """Seconds and the process' gigabytes."""
    checkpoint = paths(configuration([f"variant={variant}"])).checkpoint.resolve()
    command = [optimum / "bin/optimum-cli", "export", "openvino", "-m", checkpoint, "--task", "text-to-audio"]
    start = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--weight-format", precision, folder],
            stdout=log,
            stderr=log,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: optimum-cli failed\n{(folder / 'log').read_text()[-2000:]}")
    return time.perf_counter() - start, used.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimum", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    for _ in range(arguments.rounds):
        for precision in PRECISIONS:
            for side in ("ours", "optimum-intel"):
                with tempfile.TemporaryDirectory() as folder:
                    if side == "ours":
                        seconds, gigabytes = ours(arguments.variant, precision, Path(folder))
                    else:
                        seconds, gigabytes = theirs(arguments.optimum, arguments.variant, precision, Path(folder))
                print(f"{arguments.variant} {precision} {side}: {seconds:.0f} s, {gigabytes:.1f} GB", flush=True)


if __name__ == "__main__":
    main()
