"""plan: which stages are stale, without fetching what they made; as JSON for the matrices of the workflows.

A stage is fresh when some machine has run it with the same command, parameters and dependencies. DVC's run cache knows
what it made: an entry like that of dvc.lock, under the hash of all but the outputs, pushed by `dvc push --run-cache`.
`dvc repro --pull` asks it too, but brings gigabytes of outputs to do so; a plan reads the entries and, where a stage
depends on a file inside a directory, the listing of that directory. Entries that hold are written to dvc.lock, which is
all that `dvc repro --allow-missing` needs to skip a stage. Everything that relies on DVC's internals is in `settle`
and below it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils import dict_sha256
from dvc.utils.serialize import YAMLFileCorruptedError, dump_yaml, load_yaml, parse_yaml
from omegaconf import DictConfig

from pipeline.stage import PipelineError, main

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
    """The stages of dvc.yaml, and for each the entry of dvc.lock that holds for it, as soon as one is known.

    `lock` has entries to start from; those of the run cache that hold are added to it.
    """

    def __init__(self, repo: Repo, lock: Entries) -> None:
        self.repo, self.lock, self.root = repo, lock, Path(repo.root_dir)
        self.axes: dict[str, list[str]] = load_yaml(self.root / "params.yaml")
        self.stages = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"}
        self.makers = {out.fs_path: (name, out) for name, stage in self.stages.items() for out in stage.outs}
        self.settled: set[str] = set()

    def maker(self, path: str) -> tuple[str, Any] | None:
        """The stage that makes a file or directory, and the output in which it lies; None for a source."""
        return next((self.makers[p] for p in map(str, (Path(path), *Path(path).parents)) if p in self.makers), None)

    def before(self, name: str) -> list[str]:
        """The stages that make what a stage depends on."""
        found = (self.maker(dep.fs_path) for dep in self.stages[name].deps)
        return list(dict.fromkeys(made[0] for made in found if made))

    def inputs(self, names: Sequence[str]) -> list[str]:
        """What these stages read of what other stages make: paths in the checkout."""
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

    def chosen(self, name: str) -> dict[str, str]:
        """The values of the matrix's axes that a stage's name stands for: its variant, its precision, its layout."""
        axes = {axis: self.axes.get(f"{axis}s", []) for axis in ("layout", "variant", "precision")}
        for layout, variant, precision in product(["", *axes["layout"]], axes["variant"], ["", *axes["precision"]]):
            if name.partition("@")[2] == "-".join(filter(None, (layout, variant, precision))):
                return {k: v for k, v in zip(axes, (layout, variant, precision), strict=True) if v}
        return {}

    def is_cell(self, name: str) -> bool:
        """Whether a stage belongs to one precision; what the others make is shared by all precisions of a variant."""
        return "precision" in self.chosen(name)

    def select(self, cells: str | Sequence[str]) -> list[str]:
        """The stages of the cells that match one pattern of several, with all they need. Raises PipelineError."""
        patterns = [cells] if isinstance(cells, str) else cells
        named = [name for name in self.stages if any(fnmatchcase(name.partition("@")[2], each) for each in patterns)]
        if not named:
            known = sorted({name.partition("@")[2] for name in self.stages})
            raise PipelineError(f"cells={cells} matches nothing; there are {', '.join(known)}")
        return self.closure(named)

    def groups(self, names: Iterable[str], apart: Sequence[str] = ()) -> dict[str, Group]:
        """Stages by the part of their names after the @; a stage in `apart` gets a group of its own."""

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
        """Those of the stages that no machine is known to have run as they are now, or that need such a stage."""
        for name in self.closure(names):
            if name not in self.settled and self.settled.issuperset(self.before(name)):
                self.settle(name)
        return [name for name in names if name not in self.settled]

    def save(self, names: Iterable[str]) -> None:
        """Writes what is known of these stages to dvc.lock."""
        with self.repo.lock:
            write_lock(self.root, {name: self.lock[name] for name in names if name in self.lock})

    def settle(self, name: str) -> None:
        """Looks for an entry that holds for a stage; for all stages that it needs there is one."""
        stage = self.stages[name]
        for dep in stage.deps:
            made = self.maker(dep.fs_path)
            if made is None:
                dep.save()  # the hash of the source as it is
            elif not borrow(dep, made[1]):
                return
        key = recipe(to_single_stage_lockfile(stage))
        for entry in self.known(name, key):
            if recipe(entry) == key and self.kept(entry):
                StageLoader.fill_from_lock(stage, entry)
                for out in stage.outs:
                    out.obj = None  # the listing of an earlier entry's directory
                self.lock[name] = entry
                self.settled.add(name)
                return

    def known(self, name: str, key: str) -> Iterator[Entry]:
        """Entries that may hold for a stage: that of dvc.lock, then the remote's, in the same order on every machine.

        Two machines that built the same stage at once may have made different bytes; all others agree on one of them.
        """
        if name in self.lock:
            yield self.lock[name]
        odb = self.repo.cloud.get_remote_odb(None, "plan", hash_name="md5-dos2unix")  # where the run cache lies
        odb.fs.fs.invalidate_cache()
        folder = odb.fs.join(odb.path, "runs", key[:2], key)
        for path in sorted(odb.fs.find(folder)) if odb.fs.exists(folder) else ():
            try:
                yield parse_yaml(odb.fs.read_text(path), path)
            except (FileNotFoundError, YAMLFileCorruptedError):
                continue

    def kept(self, entry: Entry) -> bool:
        """Whether the outputs lie in this cache or in the remote: a run cache may be pushed without them."""
        stores = [self.repo.cache.local, self.repo.cloud.get_remote_odb(None, "plan")]
        return all(any(store.exists(out["md5"]) for store in stores) for out in entry.get("outs", ()))


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
    """The key of DVC's run cache: the hash of command, parameters, dependencies and names of the outputs."""
    outs = [out["path"] for out in entry.get("outs", ())]
    return dict_sha256({**entry, "outs": outs}, exclude=["size", "nfiles"])


def read_lock(root: Path) -> Entries:
    """The entries of dvc.lock by stage."""
    path = root / LOCK
    return dict(load_yaml(path).get("stages", {})) if path.exists() else {}


def write_lock(root: Path, entries: Entries) -> None:
    """Lays entries over those of dvc.lock, whole or not at all. The caller holds DVC's lock where others may write."""
    path = (root / LOCK).resolve()  # `make cell` works in a view of the project, where it is a link
    partial = path.with_name(f".{LOCK}.part")
    dump_yaml(partial, {"schema": "2.0", "stages": read_lock(root) | entries})
    partial.replace(path)


def meeting_place(repo: Repo) -> Settings | None:
    """The settings of DVC's default remote that other machines get; None without one."""
    if not (name := repo.config["core"].get("remote")):
        return None
    remote = repo.config["remote"][name]
    return {"core": {"remote": name}, "remote": {name: {key: remote[key] for key in SETTINGS if key in remote}}}


def own_cache(repo: Repo) -> Settings:
    """Without a remote, processes of one machine meet in the cache of its checkout."""
    cache = repo.cache.local_cache_dir
    return {"core": {"remote": "cache"}, "remote": {"cache": {"url": cache}}, "cache": {"dir": cache}}


def run(cfg: DictConfig) -> None:
    """Prints for $GITHUB_OUTPUT the variants whose shared stages are stale, the stale cells, and the axes of all."""
    repo = Repo()
    plan = Plan(Repo(config=meeting_place(repo) or own_cache(repo)), read_lock(Path(repo.root_dir)))
    chosen = [plan.chosen(name) for name in plan.stale(plan.select(cfg.cells))]
    cells = ["-".join([each["variant"], each["precision"]]) for each in chosen if "precision" in each]
    lines = {
        "shared": list(dict.fromkeys(each["variant"] for each in chosen if "precision" not in each)),
        "cells": list(dict.fromkeys(cells)),
        "matrix": {"variant": plan.axes["variants"], "precision": plan.axes["precisions"]},
    }
    for key, value in lines.items():
        print(f"{key}={json.dumps(value)}")


if __name__ == "__main__":
    main(run)
