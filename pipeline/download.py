"""Stage `download`: a checkpoint in the released layout, from the Hub, a folder or voices/, or made from a seed.

The report records the source, the resolved revision, and the size and sha256 of each file. An interrupted download,
even one that was killed, resumes where it stopped: until every file is complete and its hash is right, the files lie
beside the output, in `.checkpoint.partial/<commit>/`.

This stage refuses a checkpoint of the wrong kind, files that could run code, and missing or damaged files. Whether the
configuration and the weights agree is checked by `build`, which loads them.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline.checkpoints import files as checkpoint_files
from pipeline.checkpoints import hub, packaged, synthetic
from pipeline.stage import ROOT, PipelineError, fingerprint, list_files, main, output, paths, report, track


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/checkpoint."""
    sources = {"hub": from_hub, "local": from_folder, "packaged": from_package, "synthetic": from_seed}
    variant = cfg.variant
    if variant.source not in sources:
        raise PipelineError(f"variant.source is {variant.source!r}; known: {', '.join(sources)}")
    target = paths(cfg).checkpoint
    read = [Path(variant.path).expanduser()] if variant.source == "local" else []
    with output(target, read) as directory:
        origin = sources[variant.source](variant, directory, target)
        checkpoint_files.check_intact(directory)
        files = {name: fingerprint(directory / name) for name in list_files(directory)}
        # Without a commit the content is the revision.
        revision = origin.get("revision") or f"sha256:{checkpoint_files.digest(files)}"
        report(directory, {**origin, "revision": revision, "files": files})
    shutil.rmtree(partial_of(target), ignore_errors=True)


def from_hub(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Downloads the files that `checkpoint_files.select` chooses, each checked against the Hub's hash for it."""
    repo, wanted = variant.repo, variant.revision
    try:
        commit, remote = hub.listing(repo, wanted)
        parts = partial_of(target) / commit
        for other in set(parts.parent.glob("*")) - {parts}:
            shutil.rmtree(other)

        def read(name: str) -> bytes:
            return hub.fetch(remote[name], parts / name).read_bytes()

        names = checkpoint_files.select(remote, read, variant.get("kind"))
        missing = sum(remote[name].size - hub.size_of(parts / name) for name in names)
        require_space(target, missing)
        for name in track(names, f"download {repo}"):
            hub.fetch(remote[name], parts / name)
    except hub.ERRORS as error:
        text = hub.explained(error, "variant.repo", "variant.revision")
        raise PipelineError(f"{repo}@{wanted}: {text}") from error
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(parts / name, directory / name)
    return {"source": repo, "revision": commit}


def partial_of(target: Path) -> Path:
    """Where files lie until all of them are complete."""
    return target.with_name(f".{target.name}.partial")


def from_folder(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Copies a checkpoint, for example a fine-tuned one, from a folder."""
    folder = Path(variant.path).expanduser()
    if not folder.is_dir():
        raise PipelineError(f"variant.path={folder} is not a folder")
    root = folder.resolve()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    for name, path in sorted(files.items()):
        if not path.resolve().is_relative_to(root):
            raise PipelineError(f"{name} is a link that leaves {folder}; put the file itself there (cp -L)")
    linked = [path for path in folder.rglob("*") if path.is_symlink() and path.is_dir()]
    if linked:
        raise PipelineError(f"{linked[0].relative_to(folder)} is a link to a folder; put the folder itself there")
    names = checkpoint_files.select(files, lambda name: files[name].read_bytes(), variant.get("kind"))
    require_space(target, sum(files[name].stat().st_size for name in names))
    for name in track(names, f"copy {folder}"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[name], directory / name)  # not a hard link: the original stays free to change
    return {"source": "local"}


def from_package(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Writes out a voice of this repository. Raises PipelineError unless it is the one that variant.revision names."""
    folder = ROOT / variant.path
    require_space(target, synthetic.size(*packaged.configurations(folder)))
    packaged.unpack(folder, directory)
    found = checkpoint_files.digest({name: fingerprint(directory / name) for name in list_files(directory)})
    if f"sha256:{found}" != variant.revision:
        raise PipelineError(
            f"{variant.path} makes the checkpoint sha256:{found}, and variant.revision is {variant.revision}; "
            "`git checkout` both, or name the new one in conf/variant"
        )
    return {"source": "packaged"}


def from_seed(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Makes a checkpoint with random weights."""
    said: Any = OmegaConf.to_container(variant, resolve=True)
    own = (said.get("config") or {}, said.get("speech_tokenizer") or {})
    config, speech_tokenizer = synthetic.configurations(variant.size, variant.kind, *own)
    require_space(target, synthetic.size(config, speech_tokenizer))
    synthetic.write(directory, config, speech_tokenizer, variant.seed)
    return {"source": "synthetic"}


def require_space(target: Path, needed: int) -> None:
    """Raises PipelineError unless the disk has `needed` bytes free and 64 MiB to spare."""
    free = shutil.disk_usage(target.parent).free
    if free < needed + (64 << 20):
        raise PipelineError(
            f"{target} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; make room, or set artifacts=<path>"
        )


if __name__ == "__main__":
    main(run)
