"""The download stage: its sources, every kind of damaged file, and a Hub that disconnects, corrupts and refuses.

Whether configuration and weights agree needs the networks, so build checks that, before anything else.
"""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import build, download
from pipeline.checkpoints.hub import size_of
from pipeline.stage import ROOT, PipelineError, configuration
from tests.conftest import configured, run_stage
from tests.doubles.hub import Fault, Hub, refuse, serving, use

REPO = "acme/Qwen3-TTS-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MAIN, CODEC = "model.safetensors", "speech_tokenizer/model.safetensors"


@pytest.fixture
def folder(artifact, tmp_path) -> Path:
    """A checkpoint for a test to damage, made of hard links: tests replace files and never write to them."""
    made = tmp_path / "given"
    shutil.copytree(artifact("download"), made, copy_function=os.link)
    (made / "report.json").unlink()
    return made


def local(folder: Path, artifacts: Path, *overrides: str) -> Path:
    arguments = ["variant=local", f"variant.path={folder}", f"artifacts={artifacts}", *overrides]
    download.run(configured(*arguments))
    return artifacts / "local" / "checkpoint"


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_a_folder_is_copied_with_its_hashes(folder, tmp_path):
    (folder / "README.md").write_text("left in place")
    (folder / "inner").mkdir()
    (folder / "inner" / "vocab.json").write_bytes((folder / "vocab.json").read_bytes())
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").symlink_to("inner/vocab.json")  # a link inside the folder is fine
    made = local(folder, tmp_path / "artifacts")
    report = json.loads((made / "report.json").read_text())
    assert report["source"] == "local"
    assert report["revision"].startswith("sha256:")
    assert set(report["files"]) == {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} - {
        "report.json"
    }
    for name, entry in report["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert not (made / "vocab.json").is_symlink()
    assert (made / MAIN).stat().st_ino != (folder / MAIN).stat().st_ino, "the original must stay modifiable"


def test_a_sharded_checkpoint_is_copied_whole(folder, tmp_path):
    shard(folder, MAIN, 3)
    made = local(folder, tmp_path / "artifacts")
    assert len(list(made.glob("model-*-of-3.safetensors"))) == 3
    assert not (made / MAIN).exists()


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(PipelineError, match=r"variant\.path=.*nowhere is not a folder"):
        local(tmp_path / "nowhere", tmp_path)


Tensors = dict[str, dict]


def edit_json(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        replace(folder / name, json.dumps(value).encode())

    return damage


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: replace(folder / name, change((folder / name).read_bytes()))


def edit_tensors(
    name: str, change: Callable[[dict[str, tuple[str, list[int], bytes]]], object]
) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = read_tensors(folder / name)
        change(tensors)
        write_tensors(folder / name, tensors)

    return damage


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def read_tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            entry["shape"],
            content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    replace(path, struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def shard(folder: Path, name: str, count: int) -> None:
    tensors = list(read_tensors(folder / name).items())
    (folder / name).unlink()
    weight_map = {}
    for i in range(count):
        part = dict(tensors[i::count])
        file = f"model-{i}-of-{count}.safetensors"
        write_tensors((folder / name).with_name(file), part)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def listed_nowhere(folder: Path) -> None:
    shard(folder, MAIN, 2)
    edit_json(f"{MAIN}.index.json", lambda v: v["weight_map"].popitem())(folder)


def without_a_shard(folder: Path) -> None:
    shard(folder, MAIN, 2)
    (folder / "model-1-of-2.safetensors").unlink()


def with_index_to(shard_name: str) -> Callable[[Path], None]:
    return lambda folder: replace(
        folder / f"{MAIN}.index.json", json.dumps({"weight_map": {"talker.model.norm.weight": shard_name}}).encode()
    )


def linked_outside(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    outside.write_bytes((folder / "vocab.json").read_bytes())
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").symlink_to(outside)


NORM = "talker.model.norm.weight"
HEAD = "talker.codec_head.weight"
DAMAGED = {
    "truncated weights": (edit_bytes(MAIN, lambda b: b[:-1000]), r"^model\.safetensors is truncated or damaged"),
    "truncated codec": (edit_bytes(CODEC, lambda b: b[:4]), r"^speech_tokenizer/model\.safetensors is truncated"),
    "pointer instead of weights": (edit_bytes(MAIN, lambda _: b"version https://git-lfs"), r"truncated or damaged"),
    "garbage header": (edit_bytes(MAIN, lambda b: b[:8] + b"?" * 100 + b[108:]), r"truncated or damaged"),
    "huge header": (edit_bytes(MAIN, lambda b: b"\xff" * 8 + b[8:]), r"truncated or damaged"),
    "trailing bytes": (edit_bytes(MAIN, lambda b: b + b"\0" * 8), r"truncated or damaged"),
    "config is not JSON": (edit_bytes("config.json", lambda b: b[:-3]), r"^config\.json is not JSON"),
    "config is a list": (edit_bytes("config.json", lambda _: b"[]"), r"^config\.json holds no JSON object"),
    "vocabulary is not JSON": (edit_bytes("vocab.json", lambda b: b[:1000]), r"^vocab\.json is not JSON"),
    "another model": (
        edit_json("config.json", lambda v: v.update(model_type="qwen3")),
        r"model_type is 'qwen3', not qwen3_tts;",
    ),
    "the 25 Hz tokenizer": (
        edit_json("config.json", lambda v: v.update(tokenizer_type="qwen3_tts_tokenizer_25hz")),
        r"tokenizer_type is 'qwen3_tts_tokenizer_25hz', not qwen3_tts_tokenizer_12hz",
    ),
    "an unknown kind": (
        edit_json("config.json", lambda v: v.update(tts_model_type="singing")),
        r"tts_model_type is 'singing', not base or custom_voice or voice_design",
    ),
    "another codec": (
        edit_json("speech_tokenizer/config.json", lambda v: v.update(model_type="mimi")),
        r"speech_tokenizer/config\.json: model_type is 'mimi'",
    ),
    "a missing file": (lambda folder: (folder / "merges.txt").unlink(), r"merges\.txt missing"),
    "no weights": (lambda folder: (folder / CODEC).unlink(), r"speech_tokenizer/model\.safetensors missing"),
    "a pickle": (
        lambda folder: replace(folder / "optimizer.pt", b"x"),
        r"^optimizer\.pt: loading a pickle can run code",
    ),
    "a pickle below": (lambda folder: replace(folder / "old/model.BIN", b"x"), r"^old/model\.BIN: loading a pickle"),
    "other weights": (
        lambda folder: replace(folder / "model.gguf", b"x"),
        r"^model\.gguf: config\.json does not explain",
    ),
    "more weights": (
        lambda folder: replace(folder / "adapter.safetensors", b"x"),
        r"^adapter\.safetensors: config\.json does not explain",
    ),
    "a link outside": (linked_outside, r"^vocab\.json is a link that leaves"),
    "a missing shard": (without_a_shard, r"index\.json lists model-1-of-2\.safetensors, which is missing"),
    "a tensor outside the index": (
        listed_nowhere,
        r"its tensors are not those that model\.safetensors\.index\.json lists for it",
    ),
    "an index that leads away": (with_index_to("../other.safetensors"), r"weight_map names '\.\./other\.safetensors'"),
    "an index to a pickle": (with_index_to("pytorch_model.bin"), r"weight_map names 'pytorch_model\.bin'"),
    "an index that is not JSON": (lambda f: replace(f / f"{MAIN}.index.json", b"["), r"index\.json is not JSON"),
    "an empty index": (
        lambda f: replace(f / f"{MAIN}.index.json", b'{"weight_map": {}}'),
        r"weight_map is missing or empty",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_checkpoint_is_refused(folder, tmp_path, damage, message):
    artifacts = tmp_path / "artifacts"
    (artifacts / "local" / "checkpoint").mkdir(parents=True)
    (artifacts / "local" / "checkpoint" / "report.json").write_text("earlier")
    damage(folder)
    with pytest.raises(PipelineError, match=message) as refused:
        local(folder, artifacts)
    assert "\n" not in str(refused.value)
    assert (artifacts / "local" / "checkpoint" / "report.json").read_text() == "earlier"
    assert [path.name for path in (artifacts / "local").iterdir()] == ["checkpoint"]


CONTRADICTIONS = {
    "missing tensor": (edit_tensors(MAIN, lambda t: t.pop(NORM)), rf"missing: {NORM};"),
    "extra tensor": (
        edit_tensors(MAIN, lambda t: t.update(extra=("F32", [1], b"\0" * 4))),
        r"the weights do not fit config\.json: unknown: extra;",
    ),
    "other shape": (
        edit_tensors(MAIN, lambda t: t.update({NORM: ("BF16", [32], b"\0" * 64)})),
        rf"of the wrong shape: {NORM} is \[32\], config\.json makes it \[64\]",
    ),
    "other dtype": (
        edit_tensors(MAIN, lambda t: t.update({NORM: ("I8", [64], b"\0" * 64)})),
        rf"tensor {NORM} is I8, not BF16 or F16 or F32;",
    ),
    "config that contradicts the weights": (
        edit_json("config.json", lambda v: v["talker_config"].update(vocab_size=3080)),
        rf"{HEAD} is \[3072, 64\], config\.json makes it \[3080, 64\]",
    ),
    "a missing key": (
        edit_json("config.json", lambda v: v["talker_config"].pop("intermediate_size")),
        r"^config\.json\.talker_config\.intermediate_size is missing",
    ),
    "a missing special id": (
        edit_json("config.json", lambda v: v.pop("tts_pad_token_id")),
        r"^config\.json\.tts_pad_token_id is missing",
    ),
    "a size that is text": (
        edit_json("config.json", lambda v: v["talker_config"].update(hidden_size="64")),
        r"^config\.json\.talker_config\.hidden_size is '64', not int",
    ),
    "a size of zero": (
        edit_json("config.json", lambda v: v["talker_config"].update(num_key_value_heads=0)),
        r"num_key_value_heads is 0; it must be above 0",
    ),
    "groups that differ": (
        edit_json("config.json", lambda v: v["talker_config"].update(num_code_groups=15)),
        r"talker_config\.num_code_groups is 15, but .*num_code_groups is 16",
    ),
    "rates that differ": (
        edit_json("speech_tokenizer/config.json", lambda v: v.update(decode_upsample_rate=960)),
        r"decode_upsample_rate is 960, but decoder_config's rates multiply to 1920",
    ),
    "a speaker outside the vocabulary": (
        edit_json("config.json", lambda v: v["talker_config"]["spk_id"].update(new=9999)),
        r"talker_config\.spk_id\.new is 9999, not an id below 3072",
    ),
    "a dialect that is no language": (
        edit_json("config.json", lambda v: v["talker_config"]["spk_is_dialect"].update(eric="klingon")),
        r"spk_is_dialect\.eric is 'klingon', which codec_language_id lacks",
    ),
    "a special id that the tokenizer lacks": (
        edit_json("config.json", lambda v: v.update(tts_pad_token_id=151800)),
        r"tts_pad_token_id is 151800, which tokenizer_config\.json does not add",
    ),
}


@pytest.mark.parametrize(("damage", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_checkpoint_that_contradicts_itself_is_refused_by_build(folder, tmp_path, damage, message):
    damage(folder)
    local(folder, tmp_path)
    with pytest.raises(PipelineError, match=message) as refused:
        build.run(configured("variant=local", f"variant.path={folder}", f"artifacts={tmp_path}"))
    assert str(refused.value).endswith(
        "; correct the checkpoint, then repeat its download: dvc repro --force --single-item download@local"
    )
    assert "\n" not in str(refused.value)
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["checkpoint"]


def test_the_kind_that_the_variant_names_is_required(folder, tmp_path):
    with pytest.raises(PipelineError, match=r"tts_model_type is 'custom_voice', not base;"):
        local(folder, tmp_path / "artifacts", "variant.kind=base")


def test_a_wrong_kind_is_refused_before_its_weights_are_fetched(hub, tmp_path):
    with pytest.raises(PipelineError, match=r"tts_model_type is 'custom_voice', not base;"):
        from_hub(tmp_path, "variant.kind=base")
    assert hub.ranges("config.json") == [""]
    assert hub.ranges(MAIN) == hub.ranges(CODEC) == hub.ranges("vocab.json") == []


def test_too_little_disk_space_is_detected_before_writing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(PipelineError, match=r"needs 0\.03 GB, 0\.00 GB are free; make room"):
        local(folder, tmp_path / "artifacts")


def test_an_unknown_source_lists_the_known_ones(tmp_path):
    with pytest.raises(PipelineError, match=r"variant\.source is 'web'; known: hub, local, packaged, synthetic"):
        download.run(configuration(["variant.source=web", f"artifacts={tmp_path}"]))


# ---- a seed --------------------------------------------------------------------------------------------------------


def test_a_hub_variant_can_be_made_from_a_seed(tmp_path):
    tiny = configuration(["variant=tiny-base"]).variant
    cfg = configuration(["variant=1.7b-base", "variant.source=synthetic", f"artifacts={tmp_path}"])
    assert (cfg.variant.size, cfg.variant.kind) == (tiny.size, tiny.kind)
    assert not cfg.variant.get("config"), "the size and the kind say it all"


def test_a_synthetic_checkpoint_is_reproducible(artifact, checkout_of_all, tmp_path):
    done = run_stage("download", "variant=tiny-custom-voice", f"artifacts={tmp_path}", checkout=checkout_of_all)
    assert done.returncode == 0, done.stderr
    again = tmp_path / "tiny-custom-voice" / "checkpoint" / "report.json"
    assert again.read_bytes() == (artifact("download", "tiny-custom-voice") / "report.json").read_bytes()


# ---- the Hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(folder, tmp_path, monkeypatch) -> Iterator[Hub]:
    (folder / "README.md").write_text("not needed")
    (folder / "sample.wav").write_bytes(b"not needed")
    with serving(Hub()) as double:
        double.mirror(REPO, COMMIT, folder)
        use(double, tmp_path, monkeypatch)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's attempts
        yield double


def once(name: str, fault: Fault) -> Callable[[int, str], Fault]:
    """A fault on the first request for a file."""
    left = [fault]
    return lambda number, path: left.pop() if left and path.endswith(f"/{COMMIT}/{name}") else None


def corrupt(hub: Hub, name: str) -> None:
    """Flips a bit of a file, or flips it back, without changing the hash that the Hub reports."""
    digest = hub.repositories[REPO].commits[COMMIT][name].sha256
    content = hub.objects[digest]
    hub.objects[digest] = content[:-1] + bytes([content[-1] ^ 1])


def from_hub(artifacts: Path, *overrides: str) -> Path:
    arguments = ["variant=0.6b-custom-voice", f"variant.repo={REPO}", "variant.revision=main", f"artifacts={artifacts}"]
    download.run(configured(*arguments, *overrides))
    return artifacts / "0.6b-custom-voice" / "checkpoint"


def test_only_needed_files_are_fetched_from_the_hub(hub, folder, tmp_path):
    made = from_hub(tmp_path)
    report = json.loads((made / "report.json").read_text())
    assert (report["source"], report["revision"]) == (REPO, COMMIT)
    assert set(report["files"]) == {
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix not in (".md", ".wav")
    }
    for name in report["files"]:
        assert (made / name).read_bytes() == (folder / name).read_bytes()
    assert not any(path.endswith((".md", ".wav")) for _, path, _ in hub.requests)
    assert [path.name for path in made.parent.iterdir()] == ["checkpoint"], "the partial download was kept"


def test_a_download_resumes_after_a_dropped_connection(hub, folder, tmp_path):
    hub.fault = once(MAIN, "cut")
    made = from_hub(tmp_path)
    first, second = hub.ranges(MAIN)
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) < (folder / MAIN).stat().st_size
    assert (made / MAIN).read_bytes() == (folder / MAIN).read_bytes()


def test_a_killed_download_resumes_and_is_never_taken_as_complete(hub, folder, tmp_path):
    hub.fault = once(MAIN, "hang")
    arguments = ["variant=0.6b-custom-voice", f"variant.repo={REPO}", "variant.revision=main", f"artifacts={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.download", *arguments],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    target = tmp_path / "0.6b-custom-voice" / "checkpoint"
    part = download.partial_of(target) / COMMIT / MAIN
    deadline = time.monotonic() + 60
    while size_of(part) < 10_000_000 and time.monotonic() < deadline:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    have = part.stat().st_size
    assert have < (folder / MAIN).stat().st_size
    asked = len(hub.requests)
    made = from_hub(tmp_path)
    assert hub.ranges(MAIN)[-1] == f"bytes={have}-"
    fetched = [path for _, path, _ in hub.requests[asked:] if "/resolve/" in path]
    assert not any(path.endswith("/merges.txt") for path in fetched), "a complete file was fetched again"
    assert (made / MAIN).read_bytes() == (folder / MAIN).read_bytes()
    assert [path.name for path in made.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", [MAIN, "vocab.json"])
def test_a_file_with_a_wrong_hash_is_refused_and_deleted(hub, tmp_path, name):
    corrupt(hub, name)
    with pytest.raises(PipelineError, match=rf"^{name}: its hash is not the one that the Hub gives; run again"):
        from_hub(tmp_path)
    corrupt(hub, name)
    assert json.loads((from_hub(tmp_path) / "report.json").read_text())["revision"] == COMMIT


def test_a_new_revision_discards_the_old_partial_download(hub, folder, tmp_path):
    corrupt(hub, MAIN)
    with pytest.raises(PipelineError):
        from_hub(tmp_path)
    newer = "f" * 40
    hub.mirror(REPO, newer, folder)
    assert json.loads((from_hub(tmp_path) / "report.json").read_text())["revision"] == newer


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (401, r"the Hub denies access \(401\).*HF_TOKEN"),
        (refuse(403, "GatedRepo"), r"is gated; ask for access on its page"),
        (500, r"the Hub answers 500"),
    ],
    ids=["401", "gated", "500"],
)
def test_a_refusal_says_what_to_do(hub, tmp_path, fault, message):
    hub.fault = lambda number, path: fault
    with pytest.raises(PipelineError, match=message) as refused:
        from_hub(tmp_path)
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "0.6b-custom-voice").iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variant.repo=acme/nothing", r"acme/nothing@main: the Hub shows no such repository; check variant\.repo"),
        ("variant.revision=v9", r"^acme/Qwen3-TTS-tiny@v9: the Hub knows no such revision; check variant\.revision"),
        ("variant.repo=a/b/c", r"^a/b/c@main: not the name of a Hub repository \(owner/name\); check variant\.repo"),
    ],
)
def test_an_unknown_repository_or_revision_is_named(hub, tmp_path, override, message):
    with pytest.raises(PipelineError, match=message):
        from_hub(tmp_path, override)


@pytest.mark.parametrize("name", ["../../.ssh/config", "/etc/passwd", "a//b", "a\\b", "pytorch_model.bin"])
def test_a_hostile_name_in_the_listing_is_refused(hub, tmp_path, name):
    hub.repositories[REPO].commits[COMMIT][name] = hub.small(b"x")
    with pytest.raises(PipelineError, match=r"refused|pickle"):
        from_hub(tmp_path)
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_no_network_is_one_line_and_the_exit_code_is_1(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.download", "variant=1.7b-base", f"artifacts={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Qwen/Qwen3-TTS-12Hz-1.7B-Base@")
    assert ": the Hub cannot be reached (" in done.stderr
    assert done.stderr.count("\n") == 1
