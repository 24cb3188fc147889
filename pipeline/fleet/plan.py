"""plan: which stages are stale, and what other machines know of the rest; as JSON for the workflows' matrices.

A stage is fresh when some machine has run it with the same command, parameters and dependencies. What it made then is
its entry of dvc.lock, and entries are kept in the DVC remote too, as DVC's own run cache keeps them: under the hash of
all but the outputs. (DVC's leaves out stages whose outputs `persist`.) So the blobs and the knowledge of them lie in
one place, and nothing that any machine shared is built again. To plan, no blob is moved but the listing of a directory.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils import dict_sha256
from dvc.utils.serialize import YAMLFileCorruptedError, dump_yaml, load_yaml, parse_yaml
from omegaconf import DictConfig

from pipeline.stage import ROOT, PipelineError, main

LOCK = "dvc.lock"
Entry = dict[str, Any]
Entries = dict[str, Entry]
Settings = dict[str, dict[str, Any]]  # of .dvc/config
# What of a remote's settings goes to other machines. Secrets stay: each has its own, in ~/.aws or its environment.
SETTINGS = ("url", "endpointurl", "region", "profile", "user", "port")


@dataclass(frozen=True)
class Group:
    """Stages of one cell, or of what cells share, that one machine builds one after the other."""

    name: str  # what follows @ in the names of its stages: tiny-base, tiny-base-int8, npu-tiny-base
    stages: tuple[str, ...]  # in the order in which they need each other
    after: frozenset[str]  # the groups that make what they need


class Plan:
    """The stages of dvc.yaml, and for each the entry of dvc.lock that is true of it, as soon as one is known.

    `lock` holds entries to start from; a true one in the remote is added to it.
    """

    def __init__(self, repo: Repo, lock: Entries) -> None:
        self.repo, self.lock = repo, lock
        self.stages = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"}
        self.makers = {out.fs_path: (name, out) for name, stage in self.stages.items() for out in stage.outs}
        self.settled: set[str] = set()

    def maker(self, path: str) -> tuple[str, Any] | None:
        """The stage that makes a file or directory, and its output in which that lies; None for a source."""
        return next((self.makers[p] for p in map(str, (Path(path), *Path(path).parents)) if p in self.makers), None)

    def before(self, name: str) -> list[str]:
        """The stages that make what a stage depends on."""
        found = (self.maker(dep.fs_path) for dep in self.stages[name].deps)
        return list(dict.fromkeys(made[0] for made in found if made))

    def inputs(self, names: Sequence[str]) -> list[str]:
        """What these stages read of what others make: paths in the checkout."""
        deps = [dep for name in names for dep in self.stages[name].deps]
        made = {dep.def_path: self.maker(dep.fs_path) for dep in deps}
        return sorted(path for path, found in made.items() if found and found[0] not in names)

    def closure(self, names: Iterable[str]) -> list[str]:
        """These stages and all that they need, each after what it needs."""
        ordered: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in ordered:
                for earlier in self.before(name):
                    visit(earlier)
                ordered[name] = None

        for name in names:
            visit(name)
        return list(ordered)

    def overrides(self, name: str) -> dict[str, str]:
        """What a stage's command hands to Hydra: its variant, and where they decide, its precision and layout."""
        commands = self.stages[name].cmd
        text = commands if isinstance(commands, str) else " ".join(commands)
        return dict(re.findall(r"\b(variant|precision|layout)=(\S+)", text))

    def is_cell(self, name: str) -> bool:
        """Whether a stage belongs to one precision; what others make is shared by all precisions of a variant."""
        return "precision" in self.overrides(name)

    def select(self, cells: str | Sequence[str]) -> list[str]:
        """The stages of the cells that a pattern or several name, with all they need. Raises PipelineError for none."""
        patterns = [cells] if isinstance(cells, str) else cells
        named = [name for name in self.stages if any(fnmatchcase(name.partition("@")[2], each) for each in patterns)]
        if not named:
            known = sorted({name.partition("@")[2] for name in self.stages})
            raise PipelineError(f"cells={cells} names nothing; there are {', '.join(known)}")
        return self.closure(named)

    def groups(self, names: Iterable[str], apart: Sequence[str] = ()) -> dict[str, Group]:
        """Stages by the part of their names after the @; a stage that is to stand `apart` is a group of its own."""

        def group_of(name: str) -> str:
            stage, _, cell = name.partition("@")
            return f"{cell}-{stage}" if stage in apart else cell

        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(group_of(name), []).append(name)
        groups = {}
        for group, stages in found.items():
            before = {group_of(earlier) for name in stages for earlier in self.before(name)}
            groups[group] = Group(group, tuple(stages), frozenset(before & found.keys() - {group}))
        return groups

    def stale(self, names: Iterable[str]) -> list[str]:
        """Those of the stages that no machine is known to have run as they are now, or that need such a one."""
        for name in self.closure(names):
            if name not in self.settled and self.settled.issuperset(self.before(name)):
                self.settle(name)
        return [name for name in names if name not in self.settled]

    def settle(self, name: str) -> None:
        """Looks for a true entry of a stage, here and in the remote; all that the stage needs has one."""
        stage = self.stages[name]
        for dep in stage.deps:
            made = self.maker(dep.fs_path)
            if made is None:
                dep.save()  # the hash of the source as it is
            elif not borrow(dep, made[1]):
                return
        key = recipe(to_single_stage_lockfile(stage))
        for entry in self.known(name, key):
            if recipe(entry) == key:
                StageLoader.fill_from_lock(stage, entry)
                for out in stage.outs:
                    out.obj = None  # the listing of an earlier entry's directory
                self.lock[name] = entry
                self.settled.add(name)
                return

    def known(self, name: str, key: str) -> Iterator[Entry]:
        """Entries that may be true of a stage: that of dvc.lock, then those of the remote, always the same first."""
        if name in self.lock:
            yield self.lock[name]
        fs, folder = self.recipes(key)
        for path in sorted(fs.find(folder)) if fs.exists(folder) else ():
            try:
                yield parse_yaml(fs.read_text(path), path)
            except (FileNotFoundError, YAMLFileCorruptedError):
                continue

    def recipes(self, key: str) -> tuple[Any, str]:
        """Where the remote keeps what was made by a recipe."""
        odb = self.repo.cloud.get_remote_odb(None, "plan", hash_name="md5-dos2unix")  # where DVC's run cache lies
        odb.fs.fs.invalidate_cache()
        return odb.fs, odb.fs.join(odb.path, "runs", key[:2], key)

    def share(self, names: Iterable[str]) -> None:
        """Tells the remote what these stages made; their blobs must lie there already."""
        for name in names:
            fs, folder = self.recipes(recipe(self.lock[name]))
            target = fs.join(folder, dict_sha256(self.lock[name], exclude=["size", "nfiles"]))
            with tempfile.TemporaryDirectory() as scratch:
                dump_yaml(Path(scratch, "entry"), self.lock[name])
                fs.makedirs(folder, exist_ok=True)
                fs.put_file(str(Path(scratch, "entry")), target)


def borrow(dep: Any, out: Any) -> bool:
    """Gives a dependency the hash of the output in which it lies; False where the remote lost the listing of that."""
    if dep.fs_path == out.fs_path:
        dep.meta, dep.hash_info = out.meta, out.hash_info
        return True
    tree = out.get_dir_cache()
    inside = Path(dep.fs_path).relative_to(out.fs_path).parts
    found = tree.get(out.cache, inside) if tree else None
    if found is None:
        return False
    dep.meta, dep.hash_info = next((meta, oid) for key, meta, oid in tree if key == inside)
    return True


def recipe(entry: Entry) -> str:
    """The hash of all that decides what a stage makes: command, parameters, dependencies, names of its outputs."""
    outs = [out["path"] for out in entry.get("outs", ())]
    return dict_sha256({**entry, "outs": outs}, exclude=["size", "nfiles"])


def read_lock(root: Path) -> Entries:
    """The entries of dvc.lock by stage."""
    path = root / LOCK
    return dict(load_yaml(path).get("stages", {})) if path.exists() else {}


def write_lock(root: Path, entries: Entries) -> None:
    """Lays entries over those of dvc.lock, whole or not at all. The caller holds DVC's lock where others may write."""
    partial = root / f".{LOCK}.part"
    dump_yaml(partial, {"schema": "2.0", "stages": read_lock(root) | entries})
    partial.replace(root / LOCK)


def meeting_place(cfg: DictConfig) -> Settings:
    """The default remote of DVC as other machines get it; without one, this checkout's cache, which they cannot see."""
    repo = Repo(str(ROOT))
    if name := repo.config["core"].get("remote"):
        remote = repo.config["remote"][name]
        return {"core": {"remote": name}, "remote": {name: {key: remote[key] for key in SETTINGS if key in remote}}}
    if cfg.address:
        raise PipelineError("no DVC remote for the cluster to meet in; dvc remote add --local --default NAME URL")
    cache = repo.cache.local_cache_dir
    return {"core": {"remote": "cache"}, "remote": {"cache": {"url": cache}}, "cache": {"dir": cache}}


def run(cfg: DictConfig) -> None:
    """Prints for $GITHUB_OUTPUT the variants whose shared stages are stale, the stale cells, and the axes of all."""
    plan = Plan(Repo(str(ROOT), config=meeting_place(cfg)), read_lock(ROOT))
    chosen = [plan.overrides(name) for name in plan.stale(plan.select(cfg.cells))]
    axes = load_yaml(ROOT / "params.yaml")
    lines = {
        "shared": list(dict.fromkeys(each["variant"] for each in chosen if "precision" not in each)),
        "cells": list(
            dict.fromkeys("-".join([each["variant"], each["precision"]]) for each in chosen if "precision" in each)
        ),
        "matrix": {"variant": axes["variants"], "precision": axes["precisions"]},
    }
    for key, value in lines.items():
        print(f"{key}={json.dumps(value)}")


if __name__ == "__main__":
    main(run)
