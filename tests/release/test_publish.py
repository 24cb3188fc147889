"""publish: releases only a verified bundle of committed code that passed smoke; whole, once, with attestations."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline import publish
from pipeline.release.attestations import write_papers
from pipeline.release.card import card, figure, megabytes
from pipeline.stage import (
    ROOT,
    Paths,
    PipelineError,
    list_files,
    metrics_of,
    paths_of,
    read_metrics,
    without_measured,
    write_json,
)
from qwen3_tts_ov import Bundle, BundleError
from qwen3_tts_ov.bundle import verified
from qwen3_tts_ov.manifest import bundle_id
from tests.conftest import configured, run_stage
from tests.doubles.hub import TOKEN, Hub, serving, use

CELL = ("variant=tiny-custom-voice", "precision=int8")
COMMITTED = {"commit": "0" * 40, "dirty": False}


@pytest.fixture(scope="module")
def built_cells(artifact, tmp_path_factory) -> Paths:
    """A root with bundles and smoke reports of two precisions, as if built from committed code; not to be changed."""
    root = tmp_path_factory.mktemp("publish") / "artifacts"
    for precision in ("int8", "fp16"):
        for stage in ("smoke", "bundle"):
            source = artifact(stage, precision=precision)
            copy = root / source.relative_to(source.parents[2])
            shutil.copytree(source, copy, copy_function=link_large)
            if metrics_of(source).exists():
                metrics_of(copy).parent.mkdir()
                shutil.copy2(metrics_of(source), metrics_of(copy))
        where = paths_of(root, "tiny-custom-voice", precision)
        edit_bundle(where, lambda manifest: manifest["provenance"].update(git=COMMITTED))
    return paths_of(root, "tiny-custom-voice", "int8")


def copied(cells: Paths, root: Path) -> Paths:
    shutil.copytree(cells.checkpoint.parents[1], root, copy_function=link_large)
    return paths_of(root, "tiny-custom-voice", "int8")


@pytest.fixture
def released(built_cells, tmp_path) -> Paths:
    """A copy of that root, for a test to release from and to change."""
    return copied(built_cells, tmp_path / "artifacts")


@pytest.fixture(scope="module")
def published(built_cells, tmp_path_factory) -> Path:
    """What a release from that root holds, for tests that only read it."""
    where = copied(built_cells, tmp_path_factory.mktemp("published") / "artifacts")
    run(where)
    return target(where)


def link_large(source: str, target: str) -> None:
    """Copies a file, or links it if it is large; no test writes to it."""
    (os.link if Path(source).suffix == ".bin" else shutil.copy2)(source, target)


def edit_bundle(where: Paths, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest, and what bundle and smoke would have written about it."""
    manifest = json.loads((where.bundle / "manifest.json").read_text())
    change(manifest)
    write_papers(where.bundle, manifest | {"bundle_id": bundle_id(manifest)})
    edit_smoke(where, lambda report: report.update(bundle_id=bundle_id(manifest)))


def edit_smoke(where: Paths, change: Callable[[dict[str, Any]], object]) -> None:
    report = read_metrics(where.smoke)
    change(report)
    write_json(metrics_of(where.smoke), report)
    write_json(where.smoke / "report.json", without_measured(report))


def overrides(where: Paths, *more: str) -> list[str]:
    root = where.checkpoint.parents[1]
    return [*CELL, f"artifacts={root}", f"publish.path={root.parent}/releases", *more]


def run(where: Paths, *more: str) -> None:
    publish.run(configured(*overrides(where, *more)))


def target(where: Paths, name: str = "v0.1.0") -> Path:
    return where.checkpoint.parents[2] / "releases" / "tiny-custom-voice-int8-ov" / name


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


# ---- contents of a release -----------------------------------------------------------------------------------------


def test_a_release_is_the_bundle_byte_for_byte_with_its_attestations(released):
    (released.bundle / "Thumbs.db").write_bytes(b"foreign")  # stays at home
    run(released)
    bundle, found = Bundle.load(released.bundle), Bundle.load(target(released))
    assert found.manifest["bundle_id"] == bundle.manifest["bundle_id"]
    for name in bundle.manifest["files"]:
        assert found.path(name).read_bytes() == bundle.path(name).read_bytes()
    papers = {"README.md", "LICENSE", "SHA256SUMS", "bom.cdx.json", "provenance.intoto.json", "samples/cpu.wav"}
    assert set(list_files(target(released))) == {*bundle.manifest["files"], *papers, "manifest.json"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=target(released), check=True)


def test_a_release_has_the_results_of_each_device_and_each_precision(built_cells, published):
    found, smoke = manifest_of(published), read_metrics(built_cells.smoke)
    assert found["smoke"]["CPU"]["status"] == "passed"
    measured = smoke["devices"]["CPU"]["measured"]
    assert found["smoke"]["CPU"]["measured"]["real_time_factor"] == measured["real_time_factor"]
    assert found["smoke"]["NPU"] == {"status": "not_run", "reason": smoke["devices"]["NPU"]["reason"]}
    assert set(found["precisions"]) == {"fp16", "int8"}
    ours, fp16 = found["precisions"]["int8"], found["precisions"]["fp16"]
    assert ours["size"] == sum(entry["size"] for entry in found["files"].values()) < fp16["size"]
    closeness = found["evidence"]["compress"]["components"]["talker"]["closeness"]
    assert ours["quality"]["talker"]["snr_db"] == min(port["snr_db"] for port in closeness.values())
    assert ours["quality"]["talker"]["snr_db"] < fp16["quality"]["talker"]["snr_db"]


def test_a_precision_of_a_different_checkpoint_is_not_compared(released):
    other = released.bundle.parents[1] / "fp16" / "bundle" / "manifest.json"
    manifest = json.loads(other.read_text())
    manifest["source"]["revision"] = "f" * 40
    write_json(other, manifest)
    run(released)
    assert set(manifest_of(target(released))["precisions"]) == {"int8"}


def test_the_same_inputs_give_the_same_release(released):
    run(released)
    run(released, "publish.tag=v0.1.1")
    first, second = ((target(released, tag) / "SHA256SUMS").read_text() for tag in ("v0.1.0", "v0.1.1"))
    assert first == second


# ---- the card ------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)")


def figures(data: Any) -> set[str]:
    """Every figure of a manifest in all formats of a card, and those inside its names."""
    if isinstance(data, dict):
        return set().union(*(figures(key) | figures(value) for key, value in data.items()))
    if isinstance(data, list):
        return set().union(*map(figures, data))
    if isinstance(data, str):
        return set(NUMBER.findall(data))
    if isinstance(data, bool) or data is None:
        return set()
    return {str(data), figure(data), megabytes(data).removesuffix(" MB")}


def test_every_figure_of_the_card_is_in_the_manifest(published):
    text = (published / "README.md").read_text().replace("http://127.0.0.1:8000", "OpenArc's address")
    known = figures(manifest_of(published))
    found = set(NUMBER.findall(text))
    assert len(found) > 20
    assert found <= known
    snr = figure(manifest_of(published)["precisions"]["int8"]["quality"]["talker"]["snr_db"])
    assert not set(NUMBER.findall(text.replace(snr, "98.76"))) <= known, "a wrong figure would be found"


def test_the_front_matter_passes_the_hubs_validation(published, tmp_path, monkeypatch):
    loaded = ModelCard.load(published / "README.md")
    fields = loaded.data.to_dict()
    assert (fields["library_name"], fields["pipeline_tag"]) == ("openvino", "text-to-speech")
    assert loaded.data.license == "apache-2.0"
    assert {"en", "zh"} <= set(loaded.data.language)
    measured = manifest_of(published)["precisions"]["int8"]["quality"]
    assert len(loaded.data.eval_results) == sum(map(len, measured.values()))
    with serving(Hub()) as hub:
        use(hub, tmp_path, monkeypatch)
        loaded.validate()


def test_the_card_states_which_way_each_measure_is_better(published):
    text = (published / "README.md").read_text()
    assert re.search(r"^\| talker \| snr_db \| higher \| [\d.]+ \| [\d.]+ \|$", text, re.MULTILINE)
    assert re.search(r"^\| talker \| held_out_kl \| lower \| ", text, re.MULTILINE)
    assert "misses bounds" not in text


@pytest.mark.parametrize("kind", ["base", "custom_voice", "voice_design"])
@pytest.mark.parametrize("layout", ["native", "openarc", "genai", "npu"])
def test_the_card_explains_how_to_run_it_everywhere(published, kind, layout):
    manifest = manifest_of(published) | {"kind": kind, "layout": layout}
    manifest["source"] |= {"repo": "Qwen/Qwen3-TTS-12Hz-0.6B-CustomVoice", "revision": "8" * 40}
    manifest["smoke"]["CPU"] |= {"transcript": "Good morning.", "word_error": 0.0}
    cfg = configured(*CELL, "publish=hub", "publish.owner=acme", "publish.tag=v1.2.3")
    text = card(manifest, {"CPU": "samples/cpu.wav"}, cfg.publish)
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation) == (manifest["source"]["repo"], "quantized")
    own = "" if layout == "native" else f"-{layout}"
    sample = f"https://huggingface.co/acme/tiny-custom-voice-int8{own}-ov/resolve/v1.2.3/samples/cpu.wav"
    option = {"base": "--voice voice.wav", "custom_voice": "--voice aiden", "voice_design": "--instruct"}[kind]
    openarc = {"base": "voice_clone"}.get(kind, kind)
    # What names the voice to OpenArc, optimum-intel and openvino.genai; each refuses a request without it.
    named = {
        "base": ('voice = {"ref_audio_b64": ', ', ref_audio="voice.wav", ', "None, voice_clone_ref_audio=recording, "),
        "custom_voice": ('voice = {"speaker": "aiden", ', ', speaker="aiden")', 'None, speaker="aiden")'),
        "voice_design": ('voice = {"voice_description": ', ', instruct="A calm', 'None, instruct="A calm'),
    }[kind]
    for said in (
        "qwen3-tts-ov pull acme/tiny-custom-voice-int8-ov@v1.2.3",
        option,
        f"--model-type qwen3_tts_{openarc} ",
        """--runtime-config '{"INFERENCE_PRECISION_HINT": "f32"}'""",
        f'"openarc_tts": {{"qwen3_tts_{openarc}": voice}}',
        'OVModelForTextToSpeechSeq2Seq.from_pretrained("acme/tiny-custom-voice-int8-genai-ov")',
        *named,
        'Text2SpeechPipeline("acme/tiny-custom-voice-int8-genai-ov"',
        f'<audio controls src="{sample}">',
    ):
        assert said in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, "card", "exec")
    assert "random" not in text


# ---- refusals ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_a_change_to_any_file_is_named_by_verify_and_refused_by_publish(released, record_property):
    names = list_files(released.bundle)
    for name in names:
        whole = (released.bundle / name).read_bytes()
        flip(released.bundle / name)
        said = r"manifest\.json|SHA256SUMS" if name in ("manifest.json", "SHA256SUMS") else re.escape(name)
        with pytest.raises(BundleError, match=said):
            verified(released.bundle)
        with pytest.raises((BundleError, PipelineError)):
            run(released)
        assert not target(released).parent.exists()
        (released.bundle / name).write_bytes(whole)
    run(released)
    record_property("changed files found", len(names))


@pytest.mark.parametrize(
    ("section", "change"),
    [("provenance", {"git": COMMITTED}), ("evidence", {}), ("speakers", ["nobody"])],
)
def test_any_edit_of_the_manifest_is_named(released, section, change):
    manifest = manifest_of(released.bundle) | {section: change}
    write_json(released.bundle / "manifest.json", manifest)
    with pytest.raises(BundleError, match=r"manifest\.json|manifest was edited"):
        run(released)


@pytest.mark.parametrize("git", [{"commit": "0" * 40, "dirty": True}, {"commit": None, "dirty": True}])
def test_a_bundle_of_uncommitted_code_is_refused(released, git):
    edit_bundle(released, lambda manifest: manifest["provenance"].update(git=git))
    with pytest.raises(PipelineError, match="uncommitted"):
        run(released)


def test_a_bundle_that_smoke_has_not_heard_is_refused(released):
    edit_smoke(released, lambda report: report.update(bundle_id="f" * 64))
    with pytest.raises(PipelineError, match="another bundle"):
        run(released)
    shutil.rmtree(released.smoke)
    with pytest.raises(PipelineError, match="smoke is missing"):
        run(released)


def test_a_bundle_that_passed_on_no_device_is_refused(released):
    edit_smoke(released, lambda report: report["devices"].update(CPU={"status": "not_run", "reason": "no CPU"}))
    with pytest.raises(PipelineError, match="on no device"):
        run(released)


def test_a_bundle_without_a_licence_is_refused(released):
    edit_bundle(released, lambda manifest: manifest["source"].update(licence=None))
    with pytest.raises(PipelineError, match="under which licence"):
        run(released)


MISSED = {"subject": "talker", "measure": "top1", "bound": 0.97, "value": 0.91}
HEARD = {"subject": "CPU", "measure": "code_agreement", "bound": 0.4, "value": 0.35}
SAID = {"subject": "speech", "measure": "pesq", "bound": 2.5, "reason": "no compiler"}


def miss_bounds(where: Paths) -> None:
    """Reports of compress, smoke and score in which the precision misses one bound each."""
    edit_bundle(where, lambda manifest: manifest.update(missed=[MISSED]))
    edit_smoke(where, lambda report: report["devices"]["CPU"].update(missed=[HEARD]))
    where.score.mkdir()
    found = {"bundle_id": manifest_of(where.bundle)["bundle_id"], "status": "measured", "figures": {}, "missed": [SAID]}
    write_json(where.score / "report.json", found)


def test_a_bundle_that_misses_quality_bounds_is_refused_in_one_line_that_names_them(released):
    miss_bounds(released)
    done = run_stage("publish", *overrides(released))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == (
        f"error: {released.bundle}: misses 3 bounds on quality (talker: top1 is 0.91, bound: at least 0.97; "
        "CPU: code_agreement is 0.35, bound: at least 0.4; "
        "speech: pesq is not measured (no compiler), bound: at least 2.5); "
        "store it in more bits (conf/precision), or set publish.allow_missed=true to release it with a card that "
        "lists them\n"
    )
    assert not target(released).parent.exists()


def test_allowed_missed_bounds_are_listed_in_manifest_and_card(released):
    before = manifest_of(released.bundle)["bundle_id"]
    miss_bounds(released)
    run(released, "publish.allow_missed=true")
    manifest, text = manifest_of(target(released)), (target(released) / "README.md").read_text()
    assert manifest["missed"] == [MISSED, HEARD, SAID]
    assert manifest["bundle_id"] == before
    assert "**This bundle misses bounds on quality.**" in text
    assert "\n- talker: top1 is 0.91, bound: at least 0.97\n" in text
    assert "\n- speech: pesq is not measured (no compiler), bound: at least 2.5\n" in text


def test_a_bound_of_score_refuses_real_weights_that_were_not_scored(released):
    run(released, "publish.tag=synthetic")
    for precision in ("int8", "fp16"):
        where = paths_of(released.checkpoint.parents[1], "tiny-custom-voice", precision)
        edit_bundle(where, lambda manifest: manifest["source"].update(repo="local"))
    with pytest.raises(
        PipelineError, match=r"misses 4 .* word_error_english is not measured \(score has not run"
    ) as error:
        run(released)
    assert "word_error_english" in str(error.value)
    assert "stoi" not in str(error.value), "a custom voice has no codec to send recordings through"


def test_an_unknown_target_lists_the_known_ones(released):
    with pytest.raises(PipelineError, match="known: folder, hub"):
        run(released, "publish.target=moon")


def test_a_layout_without_a_repository_is_refused(released):
    with pytest.raises(PipelineError, match="names no repository for the layout openarc"):
        run(released, "layout=openarc", "~publish.layouts.openarc")


# ---- other layouts ----------------------------------------------------------------------------------------------


@pytest.fixture
def openarc(released) -> Paths:
    """The bundle, disguised as one in OpenArc's layout that was built beside it."""
    where = paths_of(released.checkpoint.parents[1], "tiny-custom-voice", "int8", "openarc")
    shutil.copytree(released.bundle, where.bundle, copy_function=link_large)
    manifest = manifest_of(released.bundle)
    evidence = manifest["evidence"] | {"openarc": manifest["evidence"]}
    manifest |= {"layout": "openarc", "evidence": evidence}
    write_papers(where.bundle, manifest | {"bundle_id": bundle_id(manifest)})
    return where


def test_a_different_runtimes_layout_goes_to_its_own_repository(released, openarc):
    run(released, "layout=openarc")
    folder = target(released).parents[1] / "tiny-custom-voice-int8-openarc-ov" / "v0.1.0"
    manifest = verified(folder).manifest
    assert manifest["smoke"]["CPU"]["status"] == "passed", "heard through its native sibling"
    assert not target(released).exists()
    with pytest.raises(BundleError, match="made for another runtime"):
        Bundle.load(folder)


def test_a_layout_of_graphs_that_smoke_has_not_heard_is_refused(released, openarc):
    manifest = manifest_of(openarc.bundle)
    manifest["evidence"]["export"]["components"]["talker"] = {"logits": {"snr_db": 91.0}}
    write_papers(openarc.bundle, manifest)
    with pytest.raises(PipelineError, match="made of other graphs"):
        run(released, "layout=openarc")


# ---- folders -------------------------------------------------------------------------------------------------------


def test_the_same_bundle_again_changes_nothing(released, capsys):
    run(released)
    before = target(released).stat().st_ino
    run(released)
    assert "published already" in capsys.readouterr().out
    assert target(released).stat().st_ino == before


def test_a_folder_with_foreign_files_is_left_as_it_is(released):
    notes = target(released, "nightly") / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(PipelineError, match=r"holds files that are no bundle; move them away, or set publish\.path"):
        run(released, "publish.tag=null", "publish.branch=nightly")
    assert list_files(notes.parent) == ["notes.txt"]
    assert notes.read_text() == "mine"


def test_a_tag_never_moves_to_another_bundle_and_a_branch_does(released):
    run(released)
    run(released, "publish.tag=null", "publish.branch=nightly")
    for name in ("v0.1.0", "nightly"):
        manifest = manifest_of(target(released, name))
        write_json(target(released, name) / "manifest.json", manifest | {"bundle_id": "f" * 64})
    with pytest.raises(PipelineError, match=r"another bundle.*publish\.tag"):
        run(released)
    run(released, "publish.tag=null", "publish.branch=nightly")
    assert manifest_of(target(released, "nightly"))["bundle_id"] == manifest_of(released.bundle)["bundle_id"]


def test_a_dry_run_prints_its_plan_and_does_nothing(released, capsys):
    run(released, "publish.dry_run=true")
    assert "would copy" in capsys.readouterr().out
    assert not target(released).parent.exists()


# ---- the signature -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    """A private key, and its public key beside it."""
    pytest.importorskip("model_signing", reason="needs the extra `release`")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, secret = tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1())
    plain = (form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (folder / "key.pem").write_bytes(secret.private_bytes(*plain))
    public = secret.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder / "key.pem"


def test_a_signature_covers_every_file_and_comes_from_the_key(released, key):
    from model_signing import verifying

    run(released, f"publish.signature={key}")
    verified(target(released))
    check = verifying.Config().use_elliptic_key_verifier(public_key=key.with_suffix(".pub"))
    check.verify(target(released), target(released) / "model.sig")
    for name in ("README.md", "talker.bin", "samples/cpu.wav"):
        whole = (target(released) / name).read_bytes()
        flip(target(released) / name)
        with pytest.raises(ValueError, match="mismatch"):
            check.verify(target(released), target(released) / "model.sig")
        (target(released) / name).write_bytes(whole)


@pytest.mark.parametrize("by", ["/no/such/key.pem", "sigstore"])
def test_a_signature_that_cannot_be_made_is_one_line_and_nothing_is_published(released, by, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ACTIONS_", "GITHUB_", "SIGSTORE_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(PipelineError, match=f"publish.signature={by}: cannot sign"):
        run(released, f"publish.signature={by}")
    assert not target(released).parent.exists()


# ---- the Hub, through the command of the stage ---------------------------------------------------------------------

REPOSITORY = "acme/tiny-custom-voice-int8-ov"


@pytest.fixture(params=["lfs", "xet"])
def hub(request, tmp_path, monkeypatch):
    with serving(Hub(cas=tmp_path / "cas" if request.param == "xet" else None)) as hub:
        use(hub, tmp_path, monkeypatch)
        yield hub


def to_hub(where: Paths, *more: str) -> subprocess.CompletedProcess[str]:
    root = where.checkpoint.parents[1]
    return run_stage("publish", *CELL, f"artifacts={root}", "publish=hub", "publish.owner=acme", *more)


def test_a_real_bundle_goes_to_the_hub_and_is_pulled_back(released, hub):
    done = to_hub(released)
    assert done.returncode == 0, done.stderr
    repo = hub.repositories[REPOSITORY]
    assert repo.tags == {"v0.1.0": repo.branches["main"]}
    pulled = Bundle.load(f"{REPOSITORY}@v0.1.0")
    assert pulled.manifest["bundle_id"] == manifest_of(released.bundle)["bundle_id"]
    assert pulled.manifest["smoke"]["CPU"]["status"] == "passed"
    again = to_hub(released)
    assert "published already" in again.stdout


@pytest.mark.parametrize("moment", ["/lfs/", "/commit/", "/tag/"])
def test_a_killed_publish_is_completed_by_the_next(released, tmp_path, monkeypatch, moment):
    with serving(Hub(fault=lambda number, path: "stall" if moment in path else None)) as hub:
        use(hub, tmp_path, monkeypatch)
        root = released.checkpoint.parents[1]
        arguments = [*CELL, f"artifacts={root}", "publish=hub", "publish.owner=acme"]
        process = subprocess.Popen([sys.executable, "-m", "pipeline.publish", *arguments], cwd=ROOT)
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        repo = hub.repositories[REPOSITORY]
        files = repo.commits[repo.branches["main"]]
        assert set(files) == {".gitattributes"} or "SHA256SUMS" in files, "nothing, or all of it"
        uploaded = set(hub.objects)
        hub.calm()
        publish.run(configured(*arguments))
        sent = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "PUT" and "/lfs/" in path}
        assert not sent & uploaded, "uploaded content is not sent again"
        assert repo.tags == {"v0.1.0": repo.branches["main"]}
        assert Bundle.load(REPOSITORY).manifest["bundle_id"] == manifest_of(released.bundle)["bundle_id"]


def test_the_token_is_neither_printed_nor_written(released, tmp_path, monkeypatch):
    with serving(Hub()) as hub:
        use(hub, tmp_path, monkeypatch)
        hub.fault = lambda number, path: 403 if "/commit/" in path else None
        refused = to_hub(released)
        hub.calm()
        done = to_hub(released)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"error: {REPOSITORY}@v0.1.0: the Hub denies access")
    assert done.returncode == 0
    assert TOKEN not in "".join([refused.stdout, refused.stderr, done.stdout, done.stderr])
    written = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not written
    assert not any(TOKEN.encode() in content for content in hub.objects.values())


def test_no_network_is_one_line(released, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.release.hub.ATTEMPTS", 1)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    root = released.checkpoint.parents[1]
    with pytest.raises(PipelineError, match="the Hub cannot be reached"):
        publish.run(configured(*CELL, f"artifacts={root}", "publish=hub", "publish.owner=acme"))
