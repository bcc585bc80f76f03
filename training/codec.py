"""The codec as transformers' class, its quantiser filled with the codebooks of stage 4.

The semantic half is a small Hubert that hears the sound as the ear does: its first convolution is a bank of filters on the
mel scale, in four phases each, every 10 ms; a rectifier after it makes magnitudes of them. It works at 16 kHz and yields
25 frames a second, so nothing is thrown away between it and the codes. The acoustic half and the decoder are DAC's.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

from training.codebooks import LATENT, Basis
from training.settings import CODEBOOK_SIZE

ACOUSTIC, SEMANTIC = 128, 160  # channels of the two halves
BANDS, PHASES, LEVELS = 80, 4, 16  # LEVELS: channels of constant value, against which the layer norm keeps loudness
FILTER = 480  # samples at 16 kHz


def config() -> HiggsAudioV2TokenizerConfig:
    """The codec's architecture, in the hub's own fields."""
    return HiggsAudioV2TokenizerConfig(
        acoustic_model_config={
            "model_type": "dac",
            "encoder_hidden_size": 12,
            "downsampling_ratios": [8, 5, 4, 2, 3],
            "decoder_hidden_size": 512,
            "upsampling_ratios": [8, 5, 4, 2, 3],
            "hidden_size": ACOUSTIC,
        },
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": SEMANTIC,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 320,
            "conv_dim": (BANDS * PHASES + LEVELS, 192, 320),
            "conv_kernel": (FILTER, 1, 4),
            "conv_stride": (160, 1, 4),
            "conv_bias": True,
            "feat_extract_norm": "layer",
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "apply_spec_augment": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "layerdrop": 0.0,
        },
        codebook_size=CODEBOOK_SIZE,
        codebook_dim=LATENT,
        target_bandwidths=[0.2, 0.4, 0.8, 1.6],
        downsample_factor=640,
    )


def filters() -> Tensor:
    """Windowed waves [320, 1, 480] on the mel scale, narrow where hearing is sharp."""
    mels = torch.linspace(
        2595 * torch.log10(torch.tensor(1 + 60 / 700)), 2595 * torch.log10(torch.tensor(1 + 7600 / 700)), BANDS + 2
    )
    hertz = 700 * (10 ** (mels / 2595) - 1)
    time = (torch.arange(FILTER) - (FILTER - 1) / 2) / 16_000
    waves = []
    for band in range(1, BANDS + 1):
        width = float(hertz[band + 1] - hertz[band - 1])
        length = min(FILTER / 16_000, 4 / width)
        window = torch.cos(torch.pi * time / length).clamp(min=0) ** 2 * (time.abs() < length / 2)
        window = window / window.norm()
        for phase in range(PHASES):
            waves.append(window * torch.cos(2 * torch.pi * hertz[band] * time + torch.pi / 2 * phase))
    return torch.stack(waves)[:, None]


def build(metrics: Tensor, books: Tensor) -> HiggsAudioV2TokenizerModel:
    """A fresh codec with these codebooks; latents are the first 160 of its channels."""
    model = HiggsAudioV2TokenizerModel(config())
    with torch.no_grad():
        first = model.semantic_model.feature_extractor.conv_layers[0].conv
        first.weight.zero_()
        first.weight[: BANDS * PHASES] = filters() * 3
        first.bias.zero_()
        first.bias[BANDS * PHASES :] = torch.linspace(0.02, 0.5, LEVELS)
    fill(model, metrics, books)
    return model.eval()


@torch.no_grad()
def fill(model: HiggsAudioV2TokenizerModel, metrics: Tensor, books: Tensor) -> None:
    """Give a codec these codebooks [8, 256, 160]; each looks for its nearest entry by its metric [160, 160]."""
    for quantizer, to, book in zip(model.quantizer.quantizers, metrics, books, strict=True):
        quantizer.project_in.weight.zero_()
        quantizer.project_in.weight[:, :LATENT] = to
        quantizer.project_in.bias.zero_()
        quantizer.project_out.weight.zero_()
        quantizer.project_out.weight[:LATENT] = torch.linalg.inv(to)
        quantizer.project_out.bias.zero_()
        quantizer.codebook.embed.copy_(book @ to.T)
        quantizer.codebook.embed_avg.zero_()


def start_from(model: HiggsAudioV2TokenizerModel, folder: Path, old: Basis, new: Basis) -> None:
    """Take over DAC's two halves of an earlier codec whose latents had the basis `old`, by a change of basis."""
    earlier = HiggsAudioV2TokenizerModel.from_pretrained(folder, dtype=torch.float32)
    model.acoustic_encoder.load_state_dict(earlier.acoustic_encoder.state_dict())
    model.acoustic_decoder.load_state_dict(earlier.acoustic_decoder.state_dict())
    onward = old.scale * old.components.T @ new.components / new.scale  # new = earlier @ onward + shift
    shift = (old.mean - new.mean) @ new.components / new.scale
    back = new.scale * new.components.T @ old.components / old.scale
    back_shift = (new.mean - old.mean) @ old.components / old.scale
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
        model.fc.weight[:LATENT, :ACOUSTIC] = onward.T @ earlier.fc.weight[:, :ACOUSTIC]
        model.fc.weight[:LATENT, ACOUSTIC:].normal_(std=0.01)
        model.fc.bias[:LATENT] = earlier.fc.bias @ onward + shift
        model.fc2.weight.zero_()
        model.fc2.weight[:, :LATENT] = earlier.fc2.weight @ back.T
        model.fc2.bias.copy_(earlier.fc2.bias + back_shift @ earlier.fc2.weight.T)


def semantic_features(model: HiggsAudioV2TokenizerModel, audio: Tensor) -> Tensor:
    """`_extract_semantic_features` with its gradient: [B, 1, T] at 24 kHz -> [B, frames, 160]."""
    import torchaudio

    heard = torchaudio.functional.resample(audio, 24_000, 16_000)[:, 0]
    states = model.semantic_model(torch.nn.functional.pad(heard, (160, 160)), output_hidden_states=True).hidden_states
    return torch.stack(states, 1).mean(1)
