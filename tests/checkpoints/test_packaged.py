"""Checkpoints in a git repository: small, the same to the bit wherever they are written out, close to the original."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline import build, download
from pipeline.checkpoints import packaged
from pipeline.checkpoints.files import WEIGHTS
from pipeline.checkpoints.packaged import TEXT_EMBEDDING, WEIGHTS_OF
from pipeline.stage import ROOT, PipelineError, configuration, list_files

MERGES = ("s s", "ss i", "ssi s", "ssis t", "ssist a", "ssista n", "ssistan t", "a ssistant")


@pytest.fixture(scope="module")
def original(artifact, tmp_path_factory) -> Path:
    """A checkpoint whose tokenizer merges only what the prompt needs."""
    folder = tmp_path_factory.mktemp("original") / "checkpoint"
    shutil.copytree(artifact("download"), folder, ignore=shutil.ignore_patterns("report.json"))
    (folder / "merges.txt").write_text("".join(f"{pair}\n" for pair in MERGES))
    return folder


@pytest.fixture(scope="module")
def packed(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voices") / "mini"
    packaged.pack(original, folder)
    return folder


def tensors(file: Path) -> dict[str, np.ndarray]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name).float().numpy() for name in opened.keys()}  # noqa: SIM118


def test_what_is_written_out_is_the_checkpoint_but_for_its_rounding(original, packed, tmp_path):
    packaged.unpack(packed, tmp_path)
    assert list_files(tmp_path) == list_files(original)
    for name in set(list_files(original)) - set(WEIGHTS):
        assert (tmp_path / name).read_bytes() == (original / name).read_bytes()
    for name in WEIGHTS:
        given, made = tensors(original / name), tensors(tmp_path / name)
        assert given.keys() == made.keys()
        for tensor in given.keys() - {TEXT_EMBEDDING}:
            step = np.abs(given[tensor]).max() / packaged.LARGEST
            assert np.abs(given[tensor] - made[tensor]).max() <= 0.55 * step + 2**-8 * np.abs(given[tensor]).max()
    with safe_open(tmp_path / WEIGHTS[0], framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_rows_that_no_text_can_reach_are_not_stored(original, packed, tmp_path):
    packaged.unpack(packed, tmp_path)
    made = tensors(tmp_path / WEIGHTS[0])[TEXT_EMBEDDING]
    ids = json.loads((original / "vocab.json").read_text())
    assert np.abs(made[[ids["a"], ids["ss"], 77091, 151644]]).max(axis=1).min() > 0, "letters, merges, control tokens"
    assert not made[ids["ing"]].any()
    assert np.abs(made).max(axis=1).astype(bool).sum() < 400
    assert (packed / WEIGHTS[0]).stat().st_size < (original / WEIGHTS[0]).stat().st_size / 3


def test_constant_rows_come_back_exactly():
    values = np.random.default_rng(0).normal(size=(512, 40)).astype(np.float32)
    values[100:300] = np.linspace(-3, 3, 200, dtype=np.float16)[:, None]
    parts = packaged.packed_tensor(values)
    assert parts["bits"].shape == (312, 40 * packaged.BITS // 8)
    np.testing.assert_array_equal(packaged.unpacked_tensor(parts)[100:300], values[100:300])
    np.testing.assert_allclose(packaged.unpacked_tensor(parts), values, atol=4 / packaged.LARGEST / 1.9)


def test_packing_what_was_written_out_changes_nothing_more(packed, tmp_path):
    """So a voice that is packed again from its own checkpoint does not wear away."""
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    packaged.unpack(packed, tmp_path / "once")
    packaged.pack(tmp_path / "once", tmp_path / "voices" / "again")
    packaged.unpack(tmp_path / "voices" / "again", tmp_path / "twice")
    codec = WEIGHTS[1]  # float32; those in bfloat16 are rounded twice
    assert (tmp_path / "once" / codec).read_bytes() == (tmp_path / "twice" / codec).read_bytes()


def test_a_second_voice_keeps_with_it_what_it_does_not_share(original, packed, tmp_path):
    voices, other = tmp_path / "voices", tmp_path / "other"
    shutil.copytree(packed.parent, voices)
    shutil.copytree(original, other)
    before = {name: (voices / name).read_bytes() for name in list_files(voices)}
    packaged.pack(other, voices / "second")
    assert list_files(voices / "second") == ["config.json", "generation_config.json", WEIGHTS_OF]
    (other / "merges.txt").write_text("a b\n")
    codec = load_file(other / WEIGHTS[1])
    codec["decoder.pre_transformer.norm.weight"] += 1
    save_file(codec, other / WEIGHTS[1])
    for name in ("second", "third"):  # the third has what is the second's
        packaged.pack(other, voices / name)
        (tmp_path / name).mkdir()
        packaged.unpack(voices / name, tmp_path / name)
        assert (tmp_path / name / "merges.txt").read_text() == "a b\n"
        made = tensors(tmp_path / name / WEIGHTS[1])["decoder.pre_transformer.norm.weight"]
        np.testing.assert_array_equal(made, codec["decoder.pre_transformer.norm.weight"].numpy())
    assert WEIGHTS[1] in list_files(voices / "second")
    assert list_files(voices / "third") == ["config.json", "generation_config.json", "merges.txt", WEIGHTS_OF]
    assert all((voices / name).read_bytes() == stored for name, stored in before.items()), "the first voice stays"


@pytest.fixture(scope="module")
def base_and_design(artifact, tmp_path_factory) -> Path:
    """The voices `base` and `design` of one training: the same weights, but for the speaker encoder of the first."""
    made = tmp_path_factory.mktemp("one-training")
    base, design = made / "checkpoints" / "base", made / "checkpoints" / "design"
    for folder in (base, design):
        shutil.copytree(artifact("download", "tiny-base"), folder, ignore=shutil.ignore_patterns("report.json"))
    config = json.loads((design / "config.json").read_text()) | {"tts_model_type": "voice_design"}
    (design / "config.json").write_text(json.dumps(config))
    talker = load_file(base / WEIGHTS[0])
    save_file({k: v for k, v in talker.items() if not k.startswith("speaker_encoder.")}, design / WEIGHTS[0])
    for folder in (base, design):
        packaged.pack(folder, made / "voices" / folder.name)
    return made


def test_voices_of_one_training_store_their_weights_once(base_and_design, tmp_path):
    voices = base_and_design / "voices"
    assert list_files(voices / "design") == ["config.json", "generation_config.json", WEIGHTS_OF]
    made = {}
    for name in ("base", "design"):
        (tmp_path / name).mkdir()
        packaged.unpack(voices / name, tmp_path / name)
        assert list_files(tmp_path / name) == list_files(base_and_design / "checkpoints" / name)
        made[name] = tensors(tmp_path / name / WEIGHTS[0])
        assert made[name].keys() == tensors(base_and_design / "checkpoints" / name / WEIGHTS[0]).keys()
    assert {name.partition(".")[0] for name in made["base"].keys() - made["design"].keys()} == {"speaker_encoder"}
    assert all(np.array_equal(values, made["base"][name]) for name, values in made["design"].items())
    build.checked(tmp_path / "design", "design")


def test_other_weights_are_stored_and_so_are_those_that_another_voice_has_in_part(base_and_design, tmp_path):
    checkpoints, voices = base_and_design / "checkpoints", tmp_path / "voices"
    shutil.copytree(base_and_design / "voices", voices)
    other = tmp_path / "other"
    shutil.copytree(checkpoints / "design", other)
    changed = load_file(other / WEIGHTS[0])
    changed["talker.model.norm.weight"] += 1
    save_file(changed, other / WEIGHTS[0])
    packaged.pack(other, voices / "design")
    packaged.pack(checkpoints / "base", voices / "base")
    assert list_files(voices / "design") == ["config.json", "generation_config.json", WEIGHTS[0]]
    assert (voices / "base" / WEIGHTS[0]).is_file()
    packaged.pack(checkpoints / "design", voices / "design")
    assert (voices / "design" / WEIGHTS_OF).read_text() == "base\n"


def test_what_else_lies_in_a_voice_is_kept_and_is_no_part_of_its_checkpoint(base_and_design, tmp_path):
    voice = tmp_path / "voices" / "base"
    shutil.copytree(base_and_design / "voices", tmp_path / "voices")
    (voice / "references").mkdir()
    (voice / "references" / "one.flac").write_bytes(b"sound")
    packaged.pack(base_and_design / "checkpoints" / "base", voice)
    assert (voice / "references" / "one.flac").is_file()
    (tmp_path / "made").mkdir()
    packaged.unpack(voice, tmp_path / "made")
    assert list_files(tmp_path / "made") == list_files(base_and_design / "checkpoints" / "base")


def test_a_voice_without_its_weights_is_refused_in_one_line(base_and_design, tmp_path):
    voices = tmp_path / "voices"
    shutil.copytree(base_and_design / "voices", voices)
    (tmp_path / "made").mkdir()

    def refused(message: str, name: str = "design") -> None:
        with pytest.raises(PipelineError, match=message):
            packaged.unpack(voices / name, tmp_path / "made")

    (voices / "design" / WEIGHTS_OF).write_text("nobody\r\n")
    refused(r"voices/nobody/model\.safetensors is missing; `git checkout` it")
    (voices / "design" / WEIGHTS_OF).write_text("design\n")
    refused(r"voices/design/model\.safetensors is missing")
    (voices / "design" / WEIGHTS_OF).write_text("base\n")
    config = json.loads((voices / "design" / "config.json").read_text())
    config["talker_config"]["num_hidden_layers"] += 1
    (voices / "design" / "config.json").write_text(json.dumps(config))
    refused(r"base/model\.safetensors lacks talker\.model\.layers\.2\.\S+, which \S+design/config\.json lists")
    shutil.rmtree(voices / packaged.COMMON)
    refused(r"common is missing", "base")


def test_the_download_stage_refuses_another_voice_than_the_variant_names(packed, tmp_path):
    chosen = ["variant=local", "variant.source=packaged", f"variant.path={packed}", f"artifacts={tmp_path}"]
    with pytest.raises(PipelineError, match=r"makes the checkpoint sha256:\w{64}, and variant\.revision is") as error:
        download.run(configuration([*chosen, "+variant.revision=sha256:0"]))
    found = str(error.value).partition("sha256:")[2][:64]
    download.run(configuration([*chosen, f"+variant.revision=sha256:{found}"]))
    report = json.loads((tmp_path / "local" / "checkpoint" / "report.json").read_text())
    assert (report["source"], report["revision"]) == ("packaged", f"sha256:{found}")


@pytest.mark.parametrize("variant", ["mini-custom-voice", "mini-base", "mini-voice-design"])
def test_a_voice_of_this_repository_is_the_one_that_its_variant_names(variant, tmp_path):
    download.run(configuration([f"variant={variant}", f"artifacts={tmp_path}"]))
    build.checked(tmp_path / variant / "checkpoint", variant)


def test_the_voices_of_this_repository_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "voices").rglob("*")) <= 55e6
