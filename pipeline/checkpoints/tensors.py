"""Every tensor of a Qwen3-TTS checkpoint, listed from its config.json: name, shape, and how a synthetic one is filled.

The listing is the module tree of the official implementation written out; `synthetic` fills it with random numbers,
scaled so that signals keep their size at any depth and width: a weight by its fan-in, a branch of a residual stack by
the number of branches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

Config = dict[str, Any]

# Defaults of the official speaker encoder; the releases give only enc_dim.
SPEAKER_ENCODER_DEFAULTS = {
    "mel_dim": 128,
    "enc_channels": [512, 512, 512, 512, 1536],
    "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_attention_channels": 128,
    "enc_res2net_scale": 8,
    "enc_se_channels": 128,
}
# Trained layer scales lie far above their initial 0.01; at this size an error in a branch shows in the output.
LAYER_SCALE = 0.2
# A frame goes back in as the sum of its 16 codes, which then has size 1.
CODE_STD = 0.25
# Mean second moment of silu(x), relu(x) and x * silu(y) for unit x and y is about 1 / gain ** 2.
SILU_GAIN, RELU_GAIN, GATED_GAIN = 1.7, sqrt(2), 1.7


@dataclass(frozen=True)
class Tensor:
    """One tensor of a weight file: a synthetic one is `mean` plus a bell-shaped random number times `std`."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)


Tensors = Iterator[Tensor]


def model(config: Config) -> list[Tensor]:
    """The tensors of model.safetensors for a config.json; those of the speaker encoder only for a base model."""
    tensors = [*talker(config["talker_config"])]
    if config["tts_model_type"] == "base":
        tensors += speaker_encoder({**SPEAKER_ENCODER_DEFAULTS, **config["speaker_encoder_config"]})
    return tensors


def speech_tokenizer(config: Config) -> list[Tensor]:
    """The tensors of speech_tokenizer/model.safetensors for its config.json."""
    return [*speech_encoder(config["encoder_config"]), *speech_decoder(config["decoder_config"])]


# ---- talker and code predictor -------------------------------------------------------------------------------------


def talker(c: Config) -> Tensors:
    """Text and codec embeddings, the language model, its head, and the code predictor under it."""
    width, text_width = c["hidden_size"], c["text_hidden_size"]
    yield Tensor("talker.model.text_embedding.weight", (c["text_vocab_size"], text_width), std=1.0)
    yield from affine("talker.text_projection.linear_fc1", text_width, text_width)
    yield from affine("talker.text_projection.linear_fc2", width, text_width)
    yield Tensor("talker.model.codec_embedding.weight", (c["vocab_size"], width), std=CODE_STD)
    yield from language_model("talker.model", c)
    yield from affine("talker.codec_head", c["vocab_size"], width, bias=False, gain=3.0)
    yield from code_predictor("talker.code_predictor", c["code_predictor_config"], width)


def code_predictor(name: str, c: Config, talker_width: int) -> Tensors:
    """A table and a head for each group after the first; tables are as wide as the talker, which adds their rows."""
    for group in range(c["num_code_groups"] - 1):
        yield Tensor(f"{name}.model.codec_embedding.{group}.weight", (c["vocab_size"], talker_width), std=CODE_STD)
        yield from affine(f"{name}.lm_head.{group}", c["vocab_size"], c["hidden_size"], bias=False, gain=3.0)
    if talker_width != c["hidden_size"]:
        yield from affine(f"{name}.small_to_mtp_projection", c["hidden_size"], talker_width)
    yield from language_model(f"{name}.model", c)


def language_model(name: str, c: Config) -> Tensors:
    """Qwen3 layers: grouped-query attention with normalised heads, gated feed-forward, both behind an RMSNorm."""
    layers = c["num_hidden_layers"]
    branch = sqrt(2 / layers)  # together the branches outweigh the input, so that attention decides
    for i in range(layers):
        layer = f"{name}.layers.{i}"
        yield from attention(layer, c, scaled=False, gain=branch)
        yield from norm(f"{layer}.self_attn.q_norm", c["head_dim"], mean=1.5)  # above 1, so that attention is
        yield from norm(f"{layer}.self_attn.k_norm", c["head_dim"], mean=1.5)  # sharp and the prompt matters
        yield from gated_mlp(f"{layer}.mlp", c, gain=branch)
    yield from norm(f"{name}.norm", c["hidden_size"])


def attention(layer: str, c: Config, norm_bias: bool = False, scaled: bool = True, gain: float = 1.0) -> Tensors:
    """What all transformer layers share: attention, the norms of both branches and, if `scaled`, their scales."""
    width, head = c["hidden_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    for projection, out in ("q_proj", heads * head), ("k_proj", kv_heads * head), ("v_proj", kv_heads * head):
        yield from affine(f"{layer}.self_attn.{projection}", out, width, bias=c["attention_bias"])
    yield from affine(f"{layer}.self_attn.o_proj", width, heads * head, bias=c["attention_bias"], gain=gain)
    yield from norm(f"{layer}.input_layernorm", width, norm_bias)
    yield from norm(f"{layer}.post_attention_layernorm", width, norm_bias)
    if scaled:
        yield layer_scale(f"{layer}.self_attn_layer_scale.scale", width)
        yield layer_scale(f"{layer}.mlp_layer_scale.scale", width)


def gated_mlp(name: str, c: Config, gain: float = 1.0) -> Tensors:
    """down(silu(gate(x)) * up(x))."""
    width, inner = c["hidden_size"], c["intermediate_size"]
    yield from affine(f"{name}.gate_proj", inner, width, bias=False)
    yield from affine(f"{name}.up_proj", inner, width, bias=False)
    yield from affine(f"{name}.down_proj", width, inner, bias=False, gain=gain * GATED_GAIN)


# ---- speaker encoder: ECAPA-TDNN -----------------------------------------------------------------------------------


def speaker_encoder(c: Config) -> Tensors:
    """Log-mel frames to one vector as wide as the talker."""
    channels, kernels, scale = c["enc_channels"], c["enc_kernel_sizes"], c["enc_res2net_scale"]
    name = "speaker_encoder"
    # A log-mel value is about -5, so unit weights would bury the differences between frames under their mean.
    yield from affine(f"{name}.blocks.0.conv", channels[0], c["mel_dim"], kernels[0], gain=0.2)
    for i in range(1, len(channels) - 1):
        block, inner = f"{name}.blocks.{i}", channels[i] // scale
        yield from affine(f"{block}.tdnn1.conv", channels[i], channels[i - 1], 1, gain=RELU_GAIN)
        for part in range(scale - 1):
            part_name = f"{block}.res2net_block.blocks.{part}.conv"
            yield from affine(part_name, inner, channels[i - 1] // scale, kernels[i], gain=RELU_GAIN / 2)
        yield from affine(f"{block}.tdnn2.conv", channels[i], channels[i], 1, gain=RELU_GAIN)
        yield from affine(f"{block}.se_block.conv1", c["enc_se_channels"], channels[i], 1, gain=RELU_GAIN)
        yield from affine(f"{block}.se_block.conv2", channels[i], c["enc_se_channels"], 1)
    last = channels[-1]
    yield from affine(f"{name}.mfa.conv", last, last, kernels[-1], gain=RELU_GAIN)
    yield from affine(f"{name}.asp.tdnn.conv", c["enc_attention_channels"], 3 * last, 1, gain=RELU_GAIN)
    yield from affine(f"{name}.asp.conv", last, c["enc_attention_channels"], 1)
    yield from affine(f"{name}.fc", c["enc_dim"], 2 * last, 1)


# ---- speech encoder: the encoder half of Mimi ----------------------------------------------------------------------


def speech_encoder(c: Config) -> Tensors:
    """Strided convolutions, a transformer, a convolution to 12.5 Hz and the two residual quantizers."""
    width = c["hidden_size"]
    yield from seanet_encoder("encoder.encoder", c)
    for i in range(c["num_hidden_layers"]):
        layer = f"encoder.encoder_transformer.layers.{i}"
        yield from attention(layer, c, norm_bias=True)
        yield from affine(f"{layer}.mlp.fc1", c["intermediate_size"], width, bias=False)
        yield from affine(f"{layer}.mlp.fc2", width, c["intermediate_size"], bias=False, gain=SILU_GAIN)
    yield from affine("encoder.downsample.conv", width, width, 2 * c["compress"], bias=False)
    semantic = c["num_semantic_quantizers"]
    for kind, quantizers in ("semantic", semantic), ("acoustic", c["num_quantizers"] - semantic):
        name = f"encoder.quantizer.{kind}_residual_vector_quantizer"
        inner = c["vector_quantization_hidden_dimension"]
        yield from affine(f"{name}.input_proj", inner, width, 1, bias=False)
        yield from affine(f"{name}.output_proj", width, inner, 1, bias=False)
        for i in range(quantizers):
            book = f"{name}.layers.{i}.codebook"
            yield Tensor(f"{book}.initialized", (1,), std=0.0, mean=1.0)
            # Smaller than what they quantize, so that each level leaves the next something to tell apart.
            yield from codebook(book, "embed_sum", c["codebook_size"], c["codebook_dim"], std=0.3)


def seanet_encoder(name: str, c: Config) -> Tensors:
    """Convolutions that halve the rate and double the channels; the gaps in the numbering are activations."""
    channels, index = c["num_filters"], 1
    # Speech has an rms of about 0.1; what follows wants it near 1.
    yield from affine(f"{name}.layers.0.conv", channels, c["audio_channels"], c["kernel_size"], gain=10.0)
    for ratio in reversed(c["upsampling_ratios"]):
        for _ in range(c["num_residual_layers"]):
            inner = channels // c["compress"]
            yield from affine(f"{name}.layers.{index}.block.1.conv", inner, channels, c["residual_kernel_size"])
            yield from affine(f"{name}.layers.{index}.block.3.conv", channels, inner, 1)
            index += 1
        yield from affine(f"{name}.layers.{index + 1}.conv", 2 * channels, channels, 2 * ratio)
        channels, index = 2 * channels, index + 2
    yield from affine(f"{name}.layers.{index + 1}.conv", c["hidden_size"], channels, c["last_kernel_size"])


# ---- speech decoder ------------------------------------------------------------------------------------------------


def speech_decoder(c: Config) -> Tensors:
    """Codes to waveform: quantizers, transformer, two upsampling blocks, four blocks of strided convolutions."""
    width, latent = c["hidden_size"], c["latent_dim"]
    yield from decoder_quantizers(c)
    yield from affine("decoder.pre_conv.conv", latent, c["codebook_dim"], 3)
    yield from affine("decoder.pre_transformer.input_proj", width, latent)
    for i in range(c["num_hidden_layers"]):
        layer = f"decoder.pre_transformer.layers.{i}"
        yield from attention(layer, c)
        yield from gated_mlp(f"{layer}.mlp", c)
    yield from norm("decoder.pre_transformer.norm", width)
    yield from affine("decoder.pre_transformer.output_proj", latent, width)
    for i, factor in enumerate(c["upsampling_ratios"]):
        yield from transposed_conv(f"decoder.upsample.{i}.0.conv", latent, latent, factor, stride=factor)
        yield from convnext(f"decoder.upsample.{i}.1", latent)
    yield from waveform_decoder("decoder.decoder", c)


def decoder_quantizers(c: Config) -> Tensors:
    """The semantic and the residual codebooks, half as wide as what they are projected to; input_proj is unused."""
    width, inner, semantic = c["codebook_dim"], c["codebook_dim"] // 2, c["num_semantic_quantizers"]
    for kind, quantizers in ("first", semantic), ("rest", c["num_quantizers"] - semantic):
        name = f"decoder.quantizer.rvq_{kind}"
        yield from affine(f"{name}.input_proj", inner, width, 1, bias=False)
        yield from affine(f"{name}.output_proj", width, inner, 1, bias=False, gain=1 / sqrt(2 * quantizers))
        for i in range(quantizers):
            yield from codebook(f"{name}.vq.layers.{i}._codebook", "embedding_sum", c["codebook_size"], inner)


def convnext(name: str, width: int) -> Tensors:
    """Depthwise convolution, LayerNorm, feed-forward, scaled and added to its input."""
    yield from affine(f"{name}.dwconv.conv", width, 1, 7)
    yield from norm(f"{name}.norm", width, bias=True)
    yield from affine(f"{name}.pwconv1", 4 * width, width)
    yield from affine(f"{name}.pwconv2", width, 4 * width, gain=SILU_GAIN)
    yield layer_scale(f"{name}.gamma", width)


def waveform_decoder(name: str, c: Config) -> Tensors:
    """A convolution, an upsampling block for each rate with half the channels of the one before, and the output."""
    channels = c["decoder_dim"]
    yield from affine(f"{name}.0.conv", channels, c["latent_dim"], 7)
    for i, rate in enumerate(c["upsample_rates"]):
        block = f"{name}.{i + 1}.block"
        yield from snake(f"{block}.0", channels)
        yield from transposed_conv(f"{block}.1.conv", channels, channels // 2, 2 * rate, stride=rate, gain=0.7)
        channels //= 2
        for unit in (2, 3, 4):
            yield from snake(f"{block}.{unit}.act1", channels)
            yield from affine(f"{block}.{unit}.conv1.conv", channels, channels, 7, gain=0.7)
            yield from snake(f"{block}.{unit}.act2", channels)
            yield from affine(f"{block}.{unit}.conv2.conv", channels, channels, 1, gain=0.4)
    last = len(c["upsample_rates"]) + 1
    yield from snake(f"{name}.{last}", channels)
    yield from affine(f"{name}.{last + 1}.conv", 1, channels, 7, gain=0.1)


# ---- layers --------------------------------------------------------------------------------------------------------


def affine(name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> Tensors:
    """Weight [out, in] or, of a convolution, [out, in / groups, kernel]: unit inputs give outputs of size `gain`."""
    yield Tensor(f"{name}.weight", shape, std=gain / sqrt(prod(shape[1:])))
    if bias:
        yield Tensor(f"{name}.bias", shape[:1], std=0.02)


def transposed_conv(name: str, channels: int, out: int, kernel: int, stride: int, gain: float = 1.0) -> Tensors:
    """Weight [in, out, kernel]; an output sample sums kernel / stride inputs of each channel."""
    yield Tensor(f"{name}.weight", (channels, out, kernel), std=gain / sqrt(channels * kernel / stride))
    yield Tensor(f"{name}.bias", (out,), std=0.02)


def norm(name: str, width: int, bias: bool = False, mean: float = 1.0) -> Tensors:
    """Weights around `mean`, not all at it, so that a forgotten one shows."""
    yield Tensor(f"{name}.weight", (width,), std=0.1, mean=mean)
    if bias:
        yield Tensor(f"{name}.bias", (width,), std=0.02)


def layer_scale(name: str, width: int) -> Tensor:
    """The factors of a residual branch, one for each channel."""
    return Tensor(name, (width,), std=LAYER_SCALE / 4, mean=LAYER_SCALE)


def snake(name: str, channels: int) -> Tensors:
    """Logarithms of frequency and magnitude of SnakeBeta: x + sin(x * exp(alpha)) ** 2 / exp(beta)."""
    yield Tensor(f"{name}.alpha", (channels,), std=0.1)
    yield Tensor(f"{name}.beta", (channels,), std=0.1)


def codebook(name: str, sums: str, size: int, width: int, std: float = 1.0) -> Tensors:
    """Moving averages: an entry is its row of sums divided by its usage."""
    yield Tensor(f"{name}.cluster_usage", (size,), std=0.1, mean=1.0)
    yield Tensor(f"{name}.{sums}", (size, width), std)
