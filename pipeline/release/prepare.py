"""A release: a bundle with its papers as they are published, ready in a folder.

Beside the bundle's own files it holds samples of its speech and the figures of smoke, a comparison with the other
precisions, the bounds on quality that it misses, the model card, the licence, the part of dvc.lock that made it, and a
signature where one is asked for. None of that changes the bundle id.
"""

import shutil
from pathlib import Path

from omegaconf import DictConfig

from pipeline.judging.gates import Miss, missed, worst
from pipeline.judging.scorers import applicable, suitable
from pipeline.release import card, lock
from pipeline.release.attestations import Json, read_checksums, stage_reports, write_papers
from pipeline.release.card import HELD_OUT
from pipeline.release.layout import link
from pipeline.stage import (
    REPORT,
    ROOT,
    Paths,
    PipelineError,
    metrics_of,
    one_line,
    output,
    paths,
    read_json,
    read_metrics,
    read_report,
)
from qwen3_tts_ov.bundle import CHECKSUMS, Bundle, verified
from qwen3_tts_ov.manifest import MANIFEST, NATIVE

SIGNATURE = "model.sig"
KEYLESS = "sigstore"
STAGES = ("build", "export", "compress")  # whose reports say of which graphs a bundle is made
SPEED = ("real_time_factor", "first_audio_seconds")


def prepare(cfg: DictConfig) -> Bundle:
    """Writes artifacts/<variant>/<precision>/release and returns it.

    Raises BundleError or PipelineError for a bundle that must not be released. Another runtime's layout is released
    with what smoke and score heard of its native sibling, which is made of the same graphs.
    """
    where, native = paths(cfg), paths(cfg, NATIVE)
    bundle, sibling, smoke = verified(where.bundle), read_json(native.bundle / MANIFEST), read_metrics(native.smoke)
    check_origin(bundle)
    check_heard(bundle, sibling, smoke, native.bundle)
    score, unscored = scores(cfg, native, sibling)
    manifest = bundle.manifest | score | {"smoke": figures(smoke), "precisions": precisions(cfg, where, bundle)}
    heard = [*smoke["devices"].values(), score.get("score", {})]
    manifest["missed"] = [miss for found in (manifest, *heard) for miss in found.get("missed", [])] + unscored
    check_missed(bundle.folder, manifest["missed"], cfg.publish)
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


def release_files(folder: Path) -> list[str]:
    """What is published of a release's folder: the files that SHA256SUMS lists, itself, and a signature."""
    listed = read_checksums((folder / CHECKSUMS).read_text(encoding="utf-8"))
    return sorted({CHECKSUMS, *listed, *([SIGNATURE] if (folder / SIGNATURE).is_file() else [])})


def check_origin(bundle: Bundle) -> None:
    """Raises PipelineError for a bundle of uncommitted code, or under no known licence."""
    git = bundle.manifest["provenance"]["git"]
    if git["commit"] is None or git["dirty"]:
        raise PipelineError(
            f"{bundle.folder}: made from uncommitted code; commit it and run `dvc repro -f` on the stage"
        )
    if bundle.manifest["source"]["licence"] is None:
        raise PipelineError(f"{bundle.folder}: under which licence? Set licence in conf/variant and run `dvc repro`")


def check_heard(bundle: Bundle, sibling: Json, smoke: Json, native: Path) -> None:
    """Raises PipelineError unless smoke heard the native bundle, and this one is made of the same graphs."""
    manifests = (bundle.manifest, sibling)
    made_of = [(found["source"], *(found["evidence"][stage] for stage in STAGES)) for found in manifests]
    if made_of[0] != made_of[1]:
        raise PipelineError(f"{bundle.folder}: made of other graphs than {native}; run `dvc repro`")
    if smoke.get("bundle_id") != sibling["bundle_id"]:
        raise PipelineError(f"{native}: smoke has heard another bundle, not this one; run `dvc repro`")
    if not any(heard["status"] == "passed" for heard in smoke["devices"].values()):
        raise PipelineError(f"{native}: smoke has heard it on no device; run `dvc repro` where one is")


def check_missed(folder: Path, missed: list[Json], publish: DictConfig) -> None:
    """Raises PipelineError for missed bounds on quality, unless conf/publish allows them."""
    if missed and not publish.allow_missed:
        raise PipelineError(
            f"{folder}: misses {len(missed)} bounds on quality ({'; '.join(str(Miss(**entry)) for entry in missed)}); "
            "store it in more bits (conf/precision), or set publish.allow_missed=true to release it with a card that "
            "lists them"
        )


def figures(smoke: Json) -> Json:
    """The figures of smoke for each device, without files and long lists."""
    kept: dict[str, Json] = {}
    for device, heard in smoke["devices"].items():
        measured = {key: value for key, value in heard.get("measured", {}).items() if not isinstance(value, list)}
        kept[device] = {key: value for key, value in heard.items() if isinstance(value, str | int | float)}
        kept[device] |= {"measured": measured} if measured else {}
    return kept


def scores(cfg: DictConfig, native: Paths, sibling: Json) -> tuple[Json, list[Json]]:
    """What score said of the bundle that smoke heard, for the manifest, and the bounds missed if it has not run."""
    found = read_report(native.score) if (native.score / REPORT).is_file() else {}
    if found.get("bundle_id") == sibling["bundle_id"]:
        kept = ("status", "reason", "device", "figures", "not_run", "bounds", "missed", "versions")
        return {"score": {key: found[key] for key in kept if key in found}}, []
    if sibling["source"]["repo"] == "synthetic":
        return {}, []
    bounds = applicable(cfg.score.bounds, suitable(cfg, sibling["kind"]), list(cfg.score.texts))
    absent = dict.fromkeys(bounds, "score has not run on this bundle")
    return {}, [miss.entry() for miss in missed("speech", {}, bounds, absent)]


def precisions(cfg: DictConfig, where: Paths, bundle: Bundle) -> Json:
    """Size, closeness and speed of every precision of the variant that was built of the same checkpoint and heard."""
    found = {}
    variant = Path(cfg.artifacts, cfg.variant.name)
    own = where.bundle.relative_to(variant / cfg.precision.name)
    for cell in sorted(variant.iterdir()):
        needed = (cell / own / MANIFEST, cell / "bundle" / MANIFEST, metrics_of(cell / "smoke"))
        if not all(path.is_file() for path in needed):
            continue
        manifest, native, smoke = read_json(needed[0]), read_json(needed[1]), read_metrics(cell / "smoke")
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


def quality(manifest: Json) -> dict[str, dict[str, float]]:
    """By component, the worst that its outputs reached against PyTorch, and the figures on held-out texts."""
    return {
        name: worst(entry["closeness"]) | {f"{HELD_OUT}{measure}": value for measure, value in entry["quality"].items()}
        for stages in stage_reports(manifest)
        for name, entry in stages["compress"]["components"].items()
    }


def add_samples(smoke: Json, source: Path, folder: Path) -> dict[str, str]:
    """Copies each device's speech to samples/; returns the path by device."""
    samples = {}
    for device, heard in smoke["devices"].items():
        if heard["status"] == "passed":
            samples[device] = f"samples/{Path(heard['wav']).name}"
            (folder / "samples").mkdir(exist_ok=True)
            shutil.copyfile(source / heard["wav"], folder / samples[device])
    return samples


def sign(folder: Path, by: str) -> None:
    """Signs every file of a folder with a private key (path of a PEM file), or with a CI job's identity (`sigstore`).

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
