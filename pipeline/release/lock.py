"""The entries of dvc.lock that made a release: command, parameters and hashes of every stage."""

import hashlib
import json
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.stage import ROOT

LOCK = "dvc.lock"


def made_by(outputs: list[Path]) -> str | None:
    """The part of dvc.lock that tells how these outputs and all that they need were made, as YAML.

    None where DVC did not make what lies there: a stage was called by hand, or after DVC.
    """
    path = ROOT / LOCK
    entries: dict[str, Any] = YAML(typ="safe").load(path)["stages"] if path.exists() else {}
    makers = {out["path"]: (name, out["md5"]) for name, entry in entries.items() for out in entry.get("outs", ())}
    if any(makers.get(out.as_posix(), ("", ""))[1] != hash_of(out) for out in outputs):
        return None
    found: set[str] = set()
    waiting = [out.as_posix() for out in outputs]
    while waiting:
        path = Path(waiting.pop())
        for place in map(Path.as_posix, (path, *path.parents)):
            name = makers.get(place, ("", ""))[0]
            if name and name not in found:
                found.add(name)
                waiting += [dep["path"] for dep in entries[name].get("deps", ())]
    kept = {name: entry for name, entry in entries.items() if name in found}
    text = StringIO()
    YAML().dump({"schema": "2.0", "stages": kept}, text)
    return text.getvalue()


def hash_of(folder: Path) -> str:
    """A directory's hash as DVC writes it: the MD5 of its listing, of paths and MD5s, as JSON."""
    listing = []
    for name in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        listing.append({"md5": digest.hexdigest(), "relpath": name.as_posix()})
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
