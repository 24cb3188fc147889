"""node: makes this machine a node of a fleet; and what nodes offer and groups need.

    python -m pipeline.fleet.node                           the first machine; prints the address for the others
    python -m pipeline.fleet.node address=192.0.2.1:6379    every other one

Ray asks every connection for the token in ~/.ray/auth_token (or RAY_AUTH_TOKEN), which the first machine makes and all
others need. Whoever has it can run programs on all of them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from json import dumps
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.checkpoints import synthetic
from pipeline.fleet.plan import Group
from pipeline.stage import PipelineError, configuration, main
from qwen3_tts_ov.engine import devices

GB = 1e9


def scratch_root() -> Path:
    """Where this user's nodes put their checkouts; TMPDIR moves it to a larger disk."""
    return Path(tempfile.gettempdir(), f"qwen3-tts-fleet-{os.getuid()}")


def offers() -> dict[str, float]:
    """What this machine has beside what Ray counts itself: GB of free disk for checkouts, and Intel's devices."""
    present = {device.partition(".")[0] for device in devices()} - {"CPU"}
    disk = shutil.disk_usage(scratch_root().parent).free / GB
    return {"disk": float(int(disk)), **dict.fromkeys(map(resource, sorted(present)), 1.0)}


def resource(device: str) -> str:
    """The name of a device among the resources of Ray, which knows cards of its own as GPU."""
    return f"intel_{device.lower()}"


def wanted(device: DictConfig, nodes: list[dict[str, float]]) -> list[str]:
    """The devices that smoke needs a node for: the required ones, and with them what optional ones one node has."""
    found = [name for name in device.required if name != "CPU"]
    for name in device.optional:
        if any(all(resource(each) in node for each in [*found, name]) for node in nodes):
            found.append(name)
    return found


def needs(group: Group, overrides: dict[str, str], cpus: int, smoke_on: list[str]) -> dict[str, Any]:
    """What Ray must find free on a node for a group, as options of a task; `overrides` are those of its stages.

    Memory and disk grow with the components together: rollout and smoke hold all of them uncompressed, 6.1 GB at 0.6B
    and 6.7 GB at 1.7B; calibrated int4 takes 9.0 GB there. On disk a cell has the exported graphs and its own twice,
    beside the checkpoint that another runtime's layout copies from.
    """
    cfg = configuration([f"{key}={value}" for key, value in overrides.items()])
    size = weights(cfg.variant)
    spoken_on = smoke_on if any(name.startswith("smoke@") for name in group.stages) else []
    return {
        "num_cpus": cpus,
        "memory": int(1 * GB + 2.3 * size),
        "resources": {
            "disk": (4 if "precision" in overrides else 2.5) * size / GB,
            **{resource(name): 1.0 for name in spoken_on},
        },
    }


def weights(variant: DictConfig) -> float:
    """Bytes of a variant's checkpoint; nothing is downloaded to know them. Raises OSError for a local one not there."""
    if variant.source == "local":
        return float(sum(path.stat().st_size for path in Path(variant.path).rglob("*.safetensors")))
    own: list[Any] = [
        OmegaConf.to_container(variant.get(key) or OmegaConf.create()) for key in ("config", "speech_tokenizer")
    ]
    return float(synthetic.size(*synthetic.configurations(variant.size, variant.kind, *own)))


def run(cfg: DictConfig) -> None:
    """Becomes `ray start`, which stays until it is stopped. Raises PipelineError where the token is missing."""
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        raise PipelineError("Ray is not installed; pip install -c constraints.txt -e '.[fleet]'")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray/auth_token"))
    if "RAY_AUTH_TOKEN" not in os.environ and not token.exists():
        if cfg.address:
            raise PipelineError(f"{token} is missing; copy it from the first machine, by a way that nobody listens to")
        subprocess.run([program, "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    place = [f"--address={cfg.address}"] if cfg.address else ["--head", "--port=6379", "--include-dashboard=false"]
    os.execv(program, ["ray", "start", *place, f"--resources={dumps(offers())}", "--block"])


if __name__ == "__main__":
    main(run)
