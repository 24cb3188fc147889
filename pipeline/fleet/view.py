"""view: this project with other cells than params.yaml names, for `make cell` and `make plan`.

    python -m pipeline.fleet.view "0.6b-base 1.7b-base" "int8 int4" openarc     variants, precisions, layouts of conf/

Makes the folder build/cells: links to the project's files and folders, to dvc.lock and artifacts/ too, beside a
params.yaml of its own, with DVC settings that lead to the project's cache and remote. So `dvc repro` there builds what
it would build here if params.yaml named these cells, and nothing that is built already.
"""

import sys
from pathlib import Path

from dvc.config import Config
from dvc.repo import Repo
from omegaconf import OmegaConf

from pipeline.fleet.plan import LOCK
from pipeline.stage import CONF, ROOT

VIEW = ROOT / "build" / "cells"


def make_view(variants: list[str], precisions: list[str], layouts: list[str]) -> None:
    """Writes the view. Exits with one line for a name that conf/ does not have."""
    axes = {"variant": variants, "precision": precisions, "layout": layouts}
    for group, names in axes.items():
        known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if unknown := [name for name in names if name not in known]:
            sys.exit(f"error: unknown {group} {unknown[0]!r}; known: {', '.join(known)}")
    (VIEW / ".dvc").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({f"{group}s": names for group, names in axes.items()}), VIEW / "params.yaml")
    (ROOT / "artifacts").mkdir(exist_ok=True)
    if not (ROOT / LOCK).exists():
        (ROOT / LOCK).write_text("schema: '2.0'\n")  # DVC refuses a link that leads nowhere
    for path in [ROOT / ".dvcignore", *ROOT.glob("[!.]*")]:
        if path.name not in ("build", "params.yaml") and not (VIEW / path.name).is_symlink():
            (VIEW / path.name).symlink_to(Path("../..", path.name))
    repo = Repo(str(ROOT))
    core, cache, remote = (repo.config[section] for section in ("core", "cache", "remote"))  # their paths are absolute
    with Config(str(VIEW / ".dvc")).edit("repo") as config:
        # build/ is ignored by git, and so by DVC where it asks git.
        config.update(core={**core, "no_scm": True}, cache={**cache, "dir": repo.cache.local_cache_dir}, remote=remote)


if __name__ == "__main__":
    make_view(*(argument.split() for argument in sys.argv[1:]))
