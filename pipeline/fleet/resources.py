"""What nodes of a fleet offer and what groups of stages need: memory, disk, and the devices that smoke speaks on."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.checkpoints import packaged, synthetic
from pipeline.fleet.plan import Group
from pipeline.stage import ROOT, configuration
from qwen3_tts_ov.engine import devices

GB = 1e9


def scratch_root() -> Path:
    """Where this user's nodes put their checkouts; TMPDIR moves it to a larger disk."""
    return Path(tempfile.gettempdir(), f"qwen3-tts-fleet-{os.getuid()}")


def offers() -> dict[str, float]:
    """What this machine has besides what Ray counts itself: GB of free disk for checkouts, and Intel's devices."""
    present = {device.partition(".")[0] for device in devices()} - {"CPU"}
    disk = shutil.disk_usage(scratch_root().parent).free / GB
    return {"disk": float(int(disk)), **dict.fromkeys(map(resource, sorted(present)), 1.0)}


def resource(device: str) -> str:
    """The name of a device among the resources of Ray, which knows cards of its own as GPU."""
    return f"intel_{device.lower()}"


def wanted(device: DictConfig, nodes: list[dict[str, float]]) -> list[str]:
    """The devices that smoke needs a node for: the required ones, and the optional ones that a node has beside them."""
    found = [name for name in device.required if name != "CPU"]
    for name in device.optional:
        if any(all(resource(each) in node for each in [*found, name]) for node in nodes):
            found.append(name)
    return found


def needs(group: Group, chosen: dict[str, str], cpus: int, smoke_on: list[str]) -> dict[str, float]:
    """The resources of Ray that must be free on a node for a group; `chosen` is its part of the matrix.

    Memory and disk grow with the components together: rollout and smoke hold all of them uncompressed, 6.1 GB at 0.6B
    and 6.7 GB at 1.7B; calibrated int4 takes 9.0 GB there. On disk a cell has the exported graphs and its own twice,
    beside the checkpoint that another runtime's layout copies from.
    """
    size = weights(configuration([f"{key}={value}" for key, value in chosen.items()]).variant)
    spoken_on = smoke_on if any(name.startswith(("smoke@", "layout_smoke@")) for name in group.stages) else []
    return {
        "CPU": cpus,
        "memory": int(1 * GB + 2.3 * size),
        "disk": (4 if "precision" in chosen else 2.5) * size / GB,
        **{resource(name): 1.0 for name in spoken_on},
    }


def weights(variant: DictConfig) -> float:
    """Bytes of a variant's checkpoint; nothing is downloaded to know them. Raises OSError for a local one not there."""
    if variant.source == "local":
        return float(sum(path.stat().st_size for path in Path(variant.path).rglob("*.safetensors")))
    if variant.source == "packaged":
        return float(synthetic.size(*packaged.configurations(ROOT / variant.path)))
    own: list[Any] = [
        OmegaConf.to_container(variant.get(key) or OmegaConf.create()) for key in ("config", "speech_tokenizer")
    ]
    return float(synthetic.size(*synthetic.configurations(variant.size, variant.kind, *own)))


def fits(asked: dict[str, float], node: dict[str, float]) -> bool:
    """Whether a node has, when nothing runs there, what a task asks for."""
    return all(node.get(name, 0) >= amount for name, amount in asked.items())


def describe(asked: dict[str, float]) -> str:
    """What a task asks for, in words."""
    devices = "".join(f", {name}" for name in asked if name.startswith(resource("")))
    return f"{asked['CPU']:.0f} CPUs, {asked['memory'] / GB:.1f} GB of memory, {asked['disk']:.1f} GB of disk{devices}"
