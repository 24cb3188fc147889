"""publish: releases a verified, smoked bundle to a folder or to the Hugging Face Hub, whole or not at all.

What a tag names never changes: the same bundle again is a no-op, another bundle is refused. A branch moves on from
bundle to bundle. The release lies ready in artifacts/<variant>/<precision>/release before anything leaves. A bundle
that misses bounds on quality stays, unless `publish.allow_missed` is true.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from pipeline.release import hub
from pipeline.release.prepare import prepare, release_files
from pipeline.stage import PipelineError, main, output
from qwen3_tts_ov.bundle import Bundle, verified
from qwen3_tts_ov.manifest import MANIFEST


def run(cfg: DictConfig) -> None:
    """Publishes artifacts/<variant>/<precision>/bundle, or a layout's, to the target of conf/publish."""
    targets: dict[str, Callable[[DictConfig, str, Bundle], str]] = {"folder": to_folder, "hub": to_hub}
    if cfg.publish.target not in targets:
        raise PipelineError(f"unknown publish.target {cfg.publish.target!r}; known: {', '.join(targets)}")
    if cfg.layout.name not in cfg.publish.layouts:
        raise PipelineError(f"conf/publish names no repository for the layout {cfg.layout.name}; add it to layouts")
    repository = cfg.publish.layouts[cfg.layout.name]
    print(targets[cfg.publish.target](cfg.publish, repository, prepare(cfg)))


def to_folder(publish: DictConfig, repository: str, release: Bundle) -> str:
    """Copies the release to <path>/<repository>/<tag or branch>; returns what was done."""
    target = Path(publish.path, repository, publish.tag or publish.branch)
    found, name = id_in(target), release.manifest["bundle_id"]
    if found == name:
        return f"{target}: {name[:12]} is published already"
    if publish.tag and target.exists():
        raise PipelineError(f"{target} holds another bundle ({found[:12] or 'none'}); choose a new publish.tag")
    if not found and target.is_dir() and any(target.iterdir()):
        raise PipelineError(f"{target} holds files that are no bundle; move them away, or set publish.path")
    if publish.dry_run:
        return f"{target}: would copy {release.folder} there"
    with output(target, [release.folder]) as fresh:
        for name in release_files(release.folder):
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(release.path(name), fresh / name)
        verified(fresh)
    return f"{target}: published {name[:12]}"


def to_hub(publish: DictConfig, repository: str, release: Bundle) -> str:
    """Commits the release to a repository of the Hub; returns what was done."""
    place = hub.Place(repository, publish.private, publish.branch, publish.tag)
    return hub.publish(place, release, publish.dry_run)


def id_in(folder: Path) -> str:
    """The bundle id in a folder's manifest; empty where that is missing or damaged."""
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["bundle_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


if __name__ == "__main__":
    main(run)
