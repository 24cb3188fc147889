"""openvino_releases: finds the oldest OpenVINO that speaks as the newest does, and writes it down in WRITTEN.

    python -m benchmarks.openvino_releases [RELEASE ...]

Every release (by default the first of each minor version from 2025.1 on) is installed in a virtual environment of its
own, with the runtime, and speaks greedily from every tiny bundle: with compiled graphs, and with those restored from
the cache. Activations are in f32. Quantised on the fly, as conf/device recommends, they are rounded differently from
release to release, as they are from processor to processor; random weights turn that into different codes.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from pipeline.stage import ROOT

OLDEST = (2025, 1)
ENVIRONMENTS = ROOT / "build" / "openvino"
SPEAKER = Path(__file__).with_name("greedy_codes.py")
WRITTEN = {  # the places of the figure
    ROOT / "conf" / "config.yaml": r"(?<=minimum_openvino: ')[\d.]+",
    ROOT / "pyproject.toml": r'(?<="openvino>=)[\d.]+',
}


def main(chosen: list[str]) -> None:
    bundles = sorted(ROOT.glob("artifacts/tiny-*/*/bundle"))
    if not bundles:
        sys.exit("error: there is no tiny bundle in artifacts; run `make` first")
    newest = version("openvino")
    expected = spoken(Path(sys.executable), bundles)
    minimum = newest
    for release in reversed(chosen or releases(newest)):
        came = compared(release, bundles, expected)
        print(f"{release}: {came}", flush=True)
        if came != "the same codes":
            break
        minimum = release
    if not chosen:
        write(".".join(minimum.split(".")[:2]))


def releases(newest: str) -> list[str]:
    """The first release of each minor version from OLDEST to the installed one, oldest first."""
    told = run(sys.executable, "-m", "pip", "index", "versions", "openvino")
    found = {tuple(map(int, release.split("."))) for release in re.findall(r"\b\d+\.\d+\.\d+\b", told)}
    wanted = sorted(release for release in found if release[:2] >= OLDEST and release <= number(newest))
    first = {release[:2]: release for release in reversed(wanted)}
    return [".".join(map(str, first[minor])) for minor in sorted(first)]


def compared(release: str, bundles: list[Path], expected: dict[str, list[str]]) -> str:
    """How the speech of a release compares with the expected, in words."""
    try:
        found = spoken(environment(release), bundles)
    except subprocess.CalledProcessError as error:
        return f"fails: {error.stderr.strip().splitlines()[-1]}"
    different = [name for name in expected if found[name] != expected[name]]
    return f"different codes from {', '.join(different)}" if different else "the same codes"


def environment(release: str) -> Path:
    """The interpreter of a virtual environment with a release and the runtime."""
    folder = ENVIRONMENTS / release
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        run(sys.executable, "-m", "venv", str(folder))
        run(str(python), "-m", "pip", "install", "--quiet", f"openvino=={release}", str(ROOT))
        (folder / ".installed").touch()
    return python


def spoken(python: Path, bundles: list[Path]) -> dict[str, list[str]]:
    """By bundle, hashes of the codes of its greedy speech."""
    with tempfile.TemporaryDirectory() as cache:
        return json.loads(run(str(python), str(SPEAKER), cache, *map(str, bundles)))


def run(*command: str) -> str:
    """What a command prints. Raises CalledProcessError, with its stderr."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:3])


def write(minimum: str) -> None:
    for path, figure in WRITTEN.items():
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(figure, minimum, text, count=1), encoding="utf-8")
    print(f"minimum_openvino: {minimum}, in {' and '.join(str(path.relative_to(ROOT)) for path in WRITTEN)}")


if __name__ == "__main__":
    main(sys.argv[1:])
