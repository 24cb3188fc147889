"""summary: a table in Markdown of what is built under artifacts/, a line for each cell and device."""

from pathlib import Path

from omegaconf import DictConfig

from pipeline.release.card import figure, megabytes
from pipeline.stage import REPORT, main, read_json, read_metrics
from qwen3_tts_ov.manifest import MANIFEST

HEAD = "| variant | precision | size | bundle | device | result | real-time factor | first audio |"


def run(cfg: DictConfig) -> None:
    """Prints the table."""
    print(HEAD, "|---" * HEAD.count(" | ") + "|---|", sep="\n")
    for bundle in sorted(Path(cfg.artifacts).glob("*/*/bundle")):
        if (bundle / MANIFEST).is_file():
            print(*rows(bundle), sep="\n")


def rows(bundle: Path) -> list[str]:
    """A line for each device that smoke tried; one for a bundle that smoke has not run on."""
    manifest, smoke = read_json(bundle / MANIFEST), bundle.with_name("smoke")
    size = sum(entry["size"] for entry in manifest["files"].values())
    start = f"| {manifest['variant']} | {manifest['precision']} | {megabytes(size)} | `{manifest['bundle_id'][:12]}`"
    if not (smoke / REPORT).is_file():
        return [f"{start} | | not heard | | |"]
    found = []
    for device, heard in read_metrics(smoke)["devices"].items():
        speed = [figure(heard.get("measured", {}).get(key)) for key in ("real_time_factor", "first_audio_seconds")]
        missed = len(manifest.get("missed", [])) + len(heard.get("missed", []))
        result = heard["status"] + (f", {missed} bounds missed" if missed else "")
        found.append(f"{start} | {device} | {result} | {speed[0]} | {speed[1]}{' s' if speed[1] else ''} |")
    return found


if __name__ == "__main__":
    main(run)
