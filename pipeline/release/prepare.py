"""A release: a bundle with its papers as they are published, ready in a folder.

Beside the bundle's own files it holds what was heard of it (samples and the figures of smoke), how it compares with
the other precisions, the model card, the licence, the part of dvc.lock that made it, and a signature where one is asked
for. None of that changes the bundle id.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pipeline.release import card, lock
from pipeline.release.attestations import evidence, write_papers
from pipeline.release.layout import NATIVE, link
from pipeline.stage import ROOT, Paths, PipelineError, metrics_of, one_line, output, paths, read_metrics, read_report
from qwen3_tts_ov.bundle import MANIFEST, Bundle, verified

SIGNATURE = "model.sig"
KEYLESS = "sigstore"
STAGES = ("build", "export", "compress")  # whose reports say of which graphs a bundle is made
SPEED = ("real_time_factor", "first_audio_seconds")


def releasable(cfg: DictConfig) -> Bundle:
    """The bundle, every file checked against the manifest.

    Raises BundleError or PipelineError for one that was changed, was not heard by smoke, came from uncommitted code or
    is under no known licence. In another runtime's layout it is heard through its native sibling, of the same graphs.
    """
    bundle, native = verified(paths(cfg).bundle), paths(cfg, NATIVE)
    manifest, git = bundle.manifest, bundle.manifest["provenance"]["git"]
    if git["commit"] is None or git["dirty"]:
        raise PipelineError(
            f"{bundle.folder}: made from uncommitted code; commit it and run `dvc repro -f` on the stage"
        )
    if manifest["source"]["licence"] is None:
        raise PipelineError(f"{bundle.folder}: under which licence? Set licence in conf/variant and run `dvc repro`")
    sibling = read_manifest(native.bundle)
    made_of = [(found["source"], *(found["evidence"][stage] for stage in STAGES)) for found in (manifest, sibling)]
    if made_of[0] != made_of[1]:
        raise PipelineError(f"{bundle.folder}: made of other graphs than {native.bundle}; run `dvc repro`")
    smoke = read_report(native.smoke)
    if smoke.get("bundle_id") != sibling["bundle_id"]:
        raise PipelineError(f"{native.bundle}: smoke has heard another bundle, not this one; run `dvc repro`")
    if not any(heard["status"] == "passed" for heard in smoke["devices"].values()):
        raise PipelineError(f"{native.bundle}: smoke has heard it on no device; run `dvc repro` where one is")
    return bundle


def prepare(cfg: DictConfig, bundle: Bundle) -> Bundle:
    """Writes artifacts/<variant>/<precision>/release from a bundle that `releasable` let pass, and returns it."""
    where, native = paths(cfg), paths(cfg, NATIVE)
    smoke = read_metrics(native.smoke)
    manifest = bundle.manifest | {"smoke": figures(smoke), "precisions": precisions(cfg, bundle)}
    manifest |= scores(native)
    with output(where.release) as folder:
        for name in bundle.manifest["files"]:
            (folder / name).parent.mkdir(exist_ok=True)
            link(bundle.path(name), folder / name)
        samples = add_samples(smoke, native.smoke, folder)
        if manifest["source"]["licence"] == "Apache-2.0":
            shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
        (folder / "README.md").write_text(card.card(manifest, samples, cfg.publish), encoding="utf-8")
        if found := lock.made_by([where.bundle, native.smoke]):
            (folder / lock.LOCK).write_text(found, encoding="utf-8")
        write_papers(folder, manifest)
        if cfg.publish.signature:
            sign(folder, cfg.publish.signature)
        verified(folder)
    return verified(where.release)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle that the pipeline made. Raises PipelineError."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise PipelineError(f"{folder} is missing or damaged; run `dvc repro`") from None
    return manifest


def figures(smoke: dict[str, Any]) -> dict[str, Any]:
    """What smoke says of each device, without its files and its long lists."""
    kept: dict[str, dict[str, Any]] = {}
    for device, heard in smoke["devices"].items():
        measured = {key: value for key, value in heard.get("measured", {}).items() if not isinstance(value, list)}
        kept[device] = {key: value for key, value in heard.items() if isinstance(value, str | int | float)}
        if measured:
            kept[device]["measured"] = measured
    return kept


def scores(native: Paths) -> dict[str, Any]:
    """What the scorers said of the bundle that smoke heard; nothing where the optional stage has not run on it."""
    if not (native.score / "report.json").is_file():
        return {}
    found = read_report(native.score)
    if found["bundle_id"] != read_manifest(native.bundle)["bundle_id"]:
        return {}
    kept = ("status", "reason", "device", "figures", "not_run", "gates", "versions")
    return {"score": {key: found[key] for key in kept if key in found}}


def precisions(cfg: DictConfig, bundle: Bundle) -> dict[str, Any]:
    """Size, closeness and speed of every precision of the variant that was built of the same checkpoint and heard."""
    found = {}
    own = paths(cfg).bundle.relative_to(paths(cfg, NATIVE).bundle.parent)
    for cell in sorted((Path(cfg.artifacts) / cfg.variant.name).iterdir()):
        needed = (cell / own / MANIFEST, cell / "bundle" / MANIFEST, metrics_of(cell / "smoke"))
        if not all(path.is_file() for path in needed):
            continue
        manifest, native, smoke = (
            read_manifest(cell / own),
            read_manifest(cell / "bundle"),
            read_metrics(cell / "smoke"),
        )
        if manifest["source"] == bundle.manifest["source"] and smoke["bundle_id"] == native["bundle_id"]:
            found[manifest["precision"]] = {
                "bundle_id": manifest["bundle_id"],
                "size": sum(entry["size"] for entry in manifest["files"].values()),
                "quality": quality(manifest),
                "devices": {
                    device: {key: heard["measured"][key] for key in SPEED if key in heard["measured"]}
                    for device, heard in smoke["devices"].items()
                    if heard["status"] == "passed"
                },
            }
    return found


def quality(manifest: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each component the least that its outputs reached in every measure, and the figures on held-out texts."""
    found: dict[str, dict[str, float]] = {}
    for stages in evidence(manifest):
        for name, entry in stages["compress"]["components"].items():
            scores = found.setdefault(name, {})
            for port in entry["closeness"].values():
                for measure, value in port.items():
                    scores[measure] = min(value, scores.get(measure, value))
            scores |= {f"held_out_{measure}": value for measure, value in entry["quality"].items()}
    return found


def add_samples(smoke: dict[str, Any], source: Path, folder: Path) -> dict[str, str]:
    """Copies what each device spoke to samples/; returns device and path."""
    samples = {}
    for device, heard in smoke["devices"].items():
        if heard["status"] == "passed":
            samples[device] = f"samples/{Path(heard['wav']).name}"
            (folder / "samples").mkdir(exist_ok=True)
            shutil.copyfile(source / heard["wav"], folder / samples[device])
    return samples


def sign(folder: Path, by: str) -> None:
    """Signs every file of a folder with a private key (path of a PEM file), or `sigstore`: by a CI job's identity.

    Raises PipelineError.
    """
    try:
        from model_signing import hashing, signing
        from sigstore.oidc import detect_credential
    except ImportError:
        raise PipelineError("a signature needs the extra `release`: pip install '.[release]'") from None
    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE])
    config = signing.Config().set_hashing_config(hashed)
    try:
        if by == KEYLESS:
            token = detect_credential()  # without one the library would ask for a login in a browser
            if token is None:
                raise PermissionError("this is no CI job with an identity")
            config = config.use_sigstore_signer(identity_token=token)
        else:
            config = config.use_elliptic_key_signer(private_key=Path(by))
        config.sign(folder, folder / SIGNATURE)
    except Exception as error:  # the library raises nothing narrower
        raise PipelineError(
            f"publish.signature={by}: cannot sign ({one_line(error)}); give a private key (PEM, elliptic curve), or "
            f"{KEYLESS} in a CI job that may ask for an identity token"
        ) from error
