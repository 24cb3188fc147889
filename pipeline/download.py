"""Stage `download`: a checkpoint in the released layout from the Hub, from a folder, or made from a seed.

The report records where it came from, the resolved revision, and size and sha256 of each file. A download that was
interrupted, even by SIGKILL, goes on where it stopped: until a file is whole and its hash is right it lies beside the
output, in `.checkpoint.partial/<commit>/`.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from omegaconf import DictConfig, OmegaConf

from pipeline.checkpoints import files as checkpoint_files
from pipeline.checkpoints import synthetic
from pipeline.checkpoints.tensors import Config
from pipeline.stage import PipelineError, main, output, paths, report, track

BLOCK = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a Hub repository: its URL, size in bytes, and the hash that the Hub knows it by."""

    url: str
    size: int
    blob_id: str  # git's SHA-1 of the content, or of the pointer to it
    sha256: str | None  # of a file in large-file storage


def run(cfg: DictConfig) -> None:
    """Writes artifacts/<variant>/checkpoint."""
    sources = {"hub": from_hub, "local": from_folder, "synthetic": from_seed}
    variant = cfg.variant
    if variant.source not in sources:
        raise PipelineError(f"variant.source is {variant.source!r}; known: {', '.join(sources)}")
    target = paths(cfg).checkpoint
    with output(target) as directory:
        origin = sources[variant.source](variant, directory, target)
        checkpoint_files.check(directory, variant.get("kind"))
        files = {
            path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        # Without a commit the content is the revision.
        revision = origin.get("revision") or f"sha256:{digest_of(files)}"
        report(directory, {**origin, "revision": revision, "files": files})
    shutil.rmtree(partial_of(target), ignore_errors=True)


# ---- the Hub -------------------------------------------------------------------------------------------------------


def from_hub(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Downloads what `checkpoint_files.select` chooses, each file checked against the Hub's hash for it."""
    repo, wanted = variant.repo, variant.revision
    try:
        commit, remote = listing(repo, wanted)
        parts = partial_of(target) / commit
        forget_other_commits(parts)

        def read(name: str) -> bytes:
            return fetch(remote[name], parts / name).read_bytes()

        names = checkpoint_files.select(remote, read)
        missing = sum(remote[name].size - size_of(parts / name) for name in names)
        require_space(target, missing)
        for name in track(names, f"download {repo}"):
            fetch(remote[name], parts / name)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise explained(error, repo, wanted) from error
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(parts / name, directory / name)
    return {"source": repo, "revision": commit}


def listing(repo: str, revision: str) -> tuple[str, dict[str, RemoteFile]]:
    """The 40-hex commit that a branch, tag or commit resolves to, and the files at it."""
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    commit = info.sha
    if commit is None or info.siblings is None:
        raise PipelineError(f"{repo}: the Hub lists no files for {revision}; check the repository on its page")
    remote = {}
    for file in info.siblings:
        if file.size is None or file.blob_id is None:
            raise PipelineError(f"{repo}: the Hub gives no size or hash for {file.rfilename}; try again")
        remote[file.rfilename] = RemoteFile(
            url=hf_hub_url(repo, file.rfilename, revision=commit),
            size=file.size,
            blob_id=file.blob_id,
            sha256=file.lfs.sha256 if file.lfs else None,
        )
    return commit, remote


def fetch(file: RemoteFile, path: Path) -> Path:
    """Brings a file to `path`, from where an earlier run stopped, and returns the path.

    Raises PipelineError, and takes the file away, where the content is not what the Hub says it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    have = size_of(path)
    with path.open("r+b" if 0 < have <= file.size else "wb") as part:
        part.seek(0, os.SEEK_END)
        headers = build_hf_headers(library_name="qwen3-tts-ov")
        # Not hf_hub_download: since huggingface_hub 1.0 it starts a file again after a kill.
        http_get(file.url, part, resume_size=part.tell(), headers=headers, expected_size=file.size)
    if not is_intact(file, path):
        path.unlink()
        raise PipelineError(f"{path.name}: its hash is not the one that the Hub gives; run again to get a fresh copy")
    return path


def is_intact(file: RemoteFile, path: Path) -> bool:
    """Whether size and hash are the Hub's: SHA-256 for large files, git's blob hash for the others."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return sha256(path) == file.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == file.blob_id


def explained(error: Exception, repo: str, revision: str) -> PipelineError:
    """One line about a failed request: what to do about it."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    match error:
        case RevisionNotFoundError():
            text = f"the Hub knows no revision {revision!r} of {repo}; check variant.revision"
        case GatedRepoError():
            text = f"{repo} is gated; ask for access on its page, then `hf auth login` or set HF_TOKEN"
        case RepositoryNotFoundError():
            text = f"the Hub shows no repository {repo}; check variant.repo, and HF_TOKEN if it is private"
        case HFValidationError():
            text = f"variant.repo={repo!r} is not a name of a Hub repository (owner/name)"
        case OfflineModeIsEnabled():
            text = "HF_HUB_OFFLINE is set; unset it, or use variant=local variant.path=<folder>"
        case HfHubHTTPError() if status in (401, 403):
            text = f"the Hub denies access to {repo} ({status}); `hf auth login` or set HF_TOKEN"
        case HfHubHTTPError():
            text = f"the Hub answers {status} for {repo}; try again later"
        case _:
            reason = " ".join(str(error).split()) or type(error).__name__
            text = f"cannot reach the Hub ({reason}); check the network and HF_ENDPOINT, then run again to go on"
    return PipelineError(text)


def partial_of(target: Path) -> Path:
    """Where files wait until all are whole."""
    return target.with_name(f".{target.name}.partial")


def forget_other_commits(parts: Path) -> None:
    """Removes what was downloaded of a revision that is no longer asked for."""
    for other in parts.parent.glob("*"):
        if other != parts:
            shutil.rmtree(other)


# ---- a folder, a seed ----------------------------------------------------------------------------------------------


def from_folder(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Copies a checkpoint from a folder, for example one that was fine-tuned."""
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
    names = checkpoint_files.select(files, lambda name: files[name].read_bytes())
    require_space(target, sum(files[name].stat().st_size for name in names))
    for name in track(names, f"copy {folder}"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[name], directory / name)  # not a hard link: the original stays free to change
    return {"source": "local"}


def from_seed(variant: DictConfig, directory: Path, target: Path) -> dict[str, str]:
    """Makes a checkpoint with random weights."""
    config, speech_tokenizer = synthetic.configurations(
        variant.size,
        variant.kind,
        plain(variant.get("config")),
        plain(variant.get("speech_tokenizer")),
    )
    require_space(target, synthetic.size(config, speech_tokenizer))
    synthetic.write(directory, config, speech_tokenizer, variant.seed)
    return {"source": "synthetic"}


def plain(config: DictConfig | None) -> Config:
    """A dictionary of a part of the configuration; empty where the variant has none."""
    return OmegaConf.to_container(config, resolve=True) if config else {}  # type: ignore[return-value]


# ---- files ---------------------------------------------------------------------------------------------------------


def require_space(target: Path, needed: int) -> None:
    """Raises PipelineError where the disk has less than `needed` bytes free, and a little more."""
    free = shutil.disk_usage(target.parent).free
    if free < needed + (64 << 20):
        raise PipelineError(
            f"{target} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; make room, or set artifacts=<path>"
        )


def size_of(path: Path) -> int:
    """Size in bytes; 0 for a file that is not there."""
    return path.stat().st_size if path.exists() else 0


def sha256(path: Path) -> str:
    """Hash of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(partial(file.read, BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def digest_of(files: dict[str, dict]) -> str:
    """Hash of a checkpoint's content: of the names and hashes of its files."""
    lines: Iterable[str] = (f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    main(run)
