"""publish: releases a verified, smoked bundle to a folder or to the Hugging Face Hub, whole or not at all.

A release is named by its tag and never changes: the same bundle again is a no-op, another bundle is refused.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from omegaconf import DictConfig

from pipeline.stage import Paths, PipelineError, main, output, paths, read_report
from qwen3_tts_ov.bundle import Bundle

ATTEMPTS = 5  # at a commit whose parent somebody else's commit replaced in the meantime
STALE_PARENT = 412


def run(cfg: DictConfig) -> None:
    """Publishes artifacts/<variant>/<precision>/bundle to the target of conf/publish."""
    bundle = releasable(paths(cfg))
    targets: dict[str, Callable[[DictConfig, Bundle], str]] = {"folder": to_folder, "hub": to_hub}
    if cfg.publish.target not in targets:
        raise PipelineError(f"unknown publish.target {cfg.publish.target!r}; known: {', '.join(targets)}")
    print(targets[cfg.publish.target](cfg.publish, bundle))


def releasable(where: Paths) -> Bundle:
    """The bundle, every file checked against the manifest.

    Raises BundleError or PipelineError for one that was changed, was not heard by smoke, or came from uncommitted code.
    """
    bundle = Bundle.load(where.bundle)
    git = bundle.manifest["provenance"]["git"]
    if git["commit"] is None or git["dirty"]:
        raise PipelineError(
            f"{where.bundle}: made from uncommitted code; commit it and run `dvc repro -f` on the stage"
        )
    if read_report(where.smoke).get("bundle_id") != bundle.manifest["bundle_id"]:
        raise PipelineError(f"{where.bundle}: smoke has heard another bundle, not this one; run `dvc repro`")
    return bundle


def to_folder(publish: DictConfig, bundle: Bundle) -> str:
    """Copies the bundle to <path>/<repository>/<tag>; returns what was done."""
    target = Path(publish.path, publish.repository, publish.tag)
    if target.exists():
        return unchanged(str(target), published_id(target / "manifest.json"), bundle)
    if publish.dry_run:
        return f"would copy {bundle.folder} to {target}"
    with output(target) as fresh:
        shutil.copytree(bundle.folder, fresh, copy_function=shutil.copyfile, dirs_exist_ok=True)
        Bundle.load(fresh)
    return f"{target}: published {short_id(bundle)}"


def to_hub(publish: DictConfig, bundle: Bundle) -> str:
    """Puts the bundle on the Hub in one commit and tags it; returns what was done.

    A run that died between commit and tag is completed by the next one.
    """
    api, repository = HfApi(), publish.repository
    exists = api.repo_exists(repository)
    tag = f"{repository}@{publish.tag}"
    if exists and publish.tag in [ref.name for ref in api.list_repo_refs(repository).tags]:
        return unchanged(tag, hub_manifest(api, repository, publish.tag).get("bundle_id"), bundle)
    if publish.dry_run:
        create = "" if exists else f"create the {'private' if publish.private else 'public'} repository {repository}, "
        return f"would {create}commit {len(release_files(bundle))} files in one commit and tag it {publish.tag}"
    api.create_repo(repository, private=publish.private, exist_ok=True)
    api.create_tag(repository, tag=publish.tag, revision=commit(api, repository, bundle))
    return f"{tag}: published {short_id(bundle)}"


def commit(api: HfApi, repository: str, bundle: Bundle) -> str:
    """Commits the bundle on the head that was seen, and again on a newer head if that one moved.

    Of what the head holds, only files that an earlier release's manifest lists are deleted. Returns the commit's id.
    """
    files = release_files(bundle)
    for _ in range(ATTEMPTS):
        head = api.repo_info(repository).sha
        assert head is not None
        old = hub_manifest(api, repository, head)
        if old.get("bundle_id") == bundle.manifest["bundle_id"]:
            return head
        stale = sorted(set(old.get("files", {})) - set(files))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, bundle.folder / name) for name in files),
            *(CommitOperationDelete(name) for name in stale),
        ]
        try:
            message = f"Release {bundle.manifest['variant']} {bundle.manifest['precision']} {short_id(bundle)}"
            return api.create_commit(repository, operations, commit_message=message, parent_commit=head).oid
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != STALE_PARENT:
                raise
    raise PipelineError(f"{repository}: other commits arrived during each of {ATTEMPTS} attempts; publish again")


def hub_manifest(api: HfApi, repository: str, revision: str) -> dict:
    """The manifest of a revision; empty where there is none yet."""
    try:
        return json.loads(Path(api.hf_hub_download(repository, "manifest.json", revision=revision)).read_text())
    except (EntryNotFoundError, RepositoryNotFoundError):
        return {}


def release_files(bundle: Bundle) -> list[str]:
    """Relative paths of everything that a release holds."""
    return sorted([*bundle.manifest["files"], "SHA256SUMS", "manifest.json"])


def unchanged(place: str, found: str | None, bundle: Bundle) -> str:
    """Says that the bundle stands at `place` already. Raises PipelineError when another one does."""
    if found != bundle.manifest["bundle_id"]:
        raise PipelineError(f"{place} holds another bundle ({(found or 'none')[:12]}); choose a new publish.tag")
    return f"{place}: {short_id(bundle)} is published already"


def published_id(manifest: Path) -> str | None:
    """The bundle id in a manifest on disk; none where it is missing or damaged."""
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["bundle_id"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def short_id(bundle: Bundle) -> str:
    """The start of the bundle id, for people."""
    return bundle.manifest["bundle_id"][:12]


if __name__ == "__main__":
    main(run)
