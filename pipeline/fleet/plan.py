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

import networkx as nx  # type: ignore[import-untyped]
from dvc.repo import Repo
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils import dict_sha256
from omegaconf import DictConfig
from ruamel.yaml import YAML, YAMLError

from pipeline.stage import PipelineError, main

LOCK = "dvc.lock"
Entry = dict[str, Any]
Entries = dict[str, Entry]
Settings = dict[str, dict[str, Any]]  # of .dvc/config
OWN_CACHE = "own-cache"  # where there is no remote, processes of one machine meet in its cache, under this name
# What of a remote's settings goes to other machines. Secrets stay: each has its own, in ~/.aws or its environment.
SETTINGS = ("url", "endpointurl", "region", "profile", "user", "port")


@dataclass(frozen=True)
class Group:
    """Stages of one cell, or of what cells share, that one machine builds one after the other."""

    name: str  # what follows @ in the names of its stages: tiny-base, tiny-base-int8, npu-tiny-base
    stages: tuple[str, ...]  # in the order in which they need each other
    after: frozenset[str]  # the groups that make what they need


class Plan:
    """The stages of a checkout, which of them are `settled`, that is known to be fresh, and the entries of dvc.lock."""

    def __init__(self, root: Path, lock: Entries | None = None) -> None:
        self.root, self.lock = root, read_lock(root) if lock is None else lock
        self.settings = meeting_place(Repo(str(root)))
        self.alone = OWN_CACHE in self.settings["remote"]
        self.repo = Repo(str(root), config=self.settings)
        self.index = self.repo.index
        self.stages = {stage.name: stage for stage in self.index.stages if stage.path_in_repo == "dvc.yaml"}
        self.axes: dict[str, list[str]] = YAML(typ="safe").load(root / "params.yaml")
        self.settled: set[str] = set()

    def before(self, name: str) -> list[str]:
        """The stages that make what a stage depends on."""
        return [stage.name for stage in self.index.graph.successors(self.stages[name])]

    def closure(self, names: Iterable[str]) -> list[str]:
        """These stages and all that they need, each after what it needs."""
        walks = (nx.dfs_postorder_nodes(self.index.graph, self.stages[name]) for name in names)
        return list(dict.fromkeys(stage.name for walk in walks for stage in walk))

    def maker(self, dep: Any) -> Any:
        """The output in which a dependency lies; None for a source."""
        return self.index.outs_trie.longest_prefix(dep.fs.parts(dep.fs_path)).get(None)

    def inputs(self, names: Sequence[str]) -> list[str]:
        """What these stages read of what other stages make: paths in the checkout."""
        made = {dep.def_path: self.maker(dep) for name in names for dep in self.stages[name].deps}
        return sorted(path for path, out in made.items() if out and out.stage.name not in names)

    def chosen(self, name: str) -> dict[str, str]:
        """The values of the matrix's axes that a stage's name stands for: its layout, its variant, its precision."""
        axes, cell = ("layout", "variant", "precision"), name.partition("@")[2]
        layouts, variants, precisions = (self.axes[f"{axis}s"] for axis in axes)
        choices = product(["", *layouts], variants, ["", *precisions])
        values = next(choice for choice in choices if "-".join(filter(None, choice)) == cell)
        return {axis: value for axis, value in zip(axes, values, strict=True) if value}

    def select(self, cells: str | Sequence[str]) -> list[str]:
        """The stages of the cells that match one pattern of several, with all they need. Raises PipelineError."""
        patterns = [cells] if isinstance(cells, str) else cells
        named = [name for name in self.stages if any(fnmatchcase(name.partition("@")[2], each) for each in patterns)]
        if not named:
            known = sorted({name.partition("@")[2] for name in self.stages})
            raise PipelineError(f"cells={cells} matches nothing; there are {', '.join(known)}")
        return self.closure(named)

    def groups(self, names: Sequence[str], apart: Sequence[str] = ()) -> dict[str, Group]:
        """Stages by the part of their names after the @; a stage in `apart` gets a group of its own."""
        group_of = {}
        for name in names:
            stage, _, cell = name.partition("@")
            group_of[name] = f"{cell}-{stage}" if stage in apart else cell
        groups = {}
        for group in dict.fromkeys(group_of.values()):
            stages = tuple(name for name in names if group_of[name] == group)
            before = {group_of[earlier] for name in stages for earlier in self.before(name) if earlier in group_of}
            groups[group] = Group(group, stages, frozenset(before - {group}))
        return groups

    def stale(self, names: Iterable[str]) -> list[str]:
        """Those of the stages that no machine is known to have run as they are now, or that need such a stage."""
        for name in self.closure(names):
            if name not in self.settled and self.settled.issuperset(self.before(name)):
                self.settle(name)
        return [name for name in names if name not in self.settled]

    def save(self) -> None:
        """Lays what is known over the entries of dvc.lock, whole or not at all."""
        path = (self.root / LOCK).resolve()  # `make cell` works in a view of the project, where it is a link
        partial = path.with_name(f".{LOCK}.part")
        with self.repo.lock:
            YAML().dump({"schema": "2.0", "stages": read_lock(self.root) | self.lock}, partial)
            partial.replace(path)

    def settle(self, name: str) -> None:
        """Looks for an entry that holds for a stage; for all stages that it needs there is one."""
        stage = self.stages[name]
        for dep in stage.deps:
            if out := self.maker(dep):
                if not borrow(dep, out):
                    return
            else:
                dep.save()  # the hash of the source as it is
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
                yield YAML(typ="safe").load(odb.fs.read_text(path)) or {}
            except (FileNotFoundError, YAMLError):
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
    inside = Path(dep.fs_path).relative_to(out.fs_path).parts
    for key, meta, hash_info in out.get_dir_cache() or ():
        if key == inside:
            dep.meta, dep.hash_info = meta, hash_info
            return True
    return False


def recipe(entry: Entry) -> str:
    """The key of DVC's run cache: the hash of command, parameters, dependencies and names of the outputs."""
    outs = [out["path"] for out in entry.get("outs", ())]
    return dict_sha256({**entry, "outs": outs}, exclude=["size", "nfiles"])


def read_lock(root: Path) -> Entries:
    """The entries of dvc.lock by stage."""
    path = root / LOCK
    return dict(YAML(typ="safe").load(path).get("stages", {})) if path.exists() else {}


def meeting_place(repo: Repo) -> Settings:
    """The settings of DVC's default remote that other machines get; without one, of the cache as a remote."""
    if name := repo.config["core"].get("remote"):
        remote = repo.config["remote"][name]
        return {"core": {"remote": name}, "remote": {name: {key: remote[key] for key in SETTINGS if key in remote}}}
    cache = repo.cache.local_cache_dir
    return {"core": {"remote": OWN_CACHE}, "remote": {OWN_CACHE: {"url": cache}}, "cache": {"dir": cache}}


def run(cfg: DictConfig) -> None:
    """Prints for $GITHUB_OUTPUT the variants whose shared stages are stale, the stale cells, and the axes of all."""
    plan = Plan(Path.cwd())
    chosen = [plan.chosen(name) for name in plan.stale(plan.select(cfg.cells))]
    shared = [each["variant"] for each in chosen if "precision" not in each]
    cells = [f"{each['variant']}-{each['precision']}" for each in chosen if "precision" in each]
    print(f"shared={json.dumps(list(dict.fromkeys(shared)))}")
    print(f"cells={json.dumps(list(dict.fromkeys(cells)))}")
    print(f"matrix={json.dumps({'variant': plan.axes['variants'], 'precision': plan.axes['precisions']})}")


if __name__ == "__main__":
    main(run)
