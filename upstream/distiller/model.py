"""The student of DistilHuBERT (arXiv 2110.01900), on the encoder that it shares with its teacher's twin.

Tensors in, tensors out: no file, no printing. Parameter names are those of s3prl's ``DistillerModel``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import PositionalConv, TransformerEncoder, TransformerLayer, Where
from .fast import Packing, pack, packed_features, room_for
from .frontend import ConvFrontEnd, frame_lengths, normalize_wave, receptive_field, valid_mask
from .model_config import DistillerConfig, EncoderConfig


class EncoderOutput(NamedTuple):
    """B utterances, T frames, D wide; packed, one of as many frames as all utterances have."""

    hidden_states: list[Tensor]  # (B, T, D): the first layer's input, then each layer's output
    frames: Tensor  # (B,) frames of each utterance


class DistillerOutput(NamedTuple):
    """B utterances, T frames, D wide, N predicted layers; packed, one of as many frames as all utterances have.

    With task embeddings added or concatenated before the Transformer, B in ``projected`` and ``hidden_states`` stands
    for B times the number of tasks, as in s3prl.
    """

    features: Tensor  # (B, T, C): the front end's output
    projected: Tensor  # (B, T, D): its projection, before the positional embedding
    hidden_states: list[Tensor]  # (B, T, D): each layer's output
    output: Tensor  # (B, T, D): the encoder's output, the last layer's, normalised in a pre-norm encoder
    predictions: Tensor | None  # (B, N, T, final_dim)
    frames: Tensor  # (B,) frames of each utterance

    @property
    def listed(self) -> list[Tensor]:
        """Projection, layers, predictions: what s3prl's experts hand out as ``hidden_states``."""
        predictions = [] if self.predictions is None else list(self.predictions.unbind(1))
        return [self.projected, *self.hidden_states, *predictions]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        return grad_outputs[0] * ctx.scale, None


class SplitLinear(nn.Module):
    """N linear layers side by side: (B, T, N * width) to (B, N, T, out), each part by its own layer."""

    def __init__(self, width: int, parts: int, out: int):
        super().__init__()
        self.parts = parts
        if parts == 1:
            self.layer = nn.Linear(width, out)
        else:
            bound = width**-0.5
            self.weight = nn.Parameter(torch.empty(parts, width, out).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(1, 1, parts, out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if self.parts == 1:
            return self.layer(x)[:, None]
        split = x.flatten(0, 1).unflatten(-1, (self.parts, -1)).transpose(0, 1)
        made = torch.baddbmm(self.bias[0, 0, :, None], split, self.weight)
        return made.unflatten(1, x.shape[:2]).transpose(0, 1)


class Encoder(nn.Module):
    """Front end, projection and Transformer of the wav2vec 2.0 family.

    With all of a teacher's layers it is the teacher's twin; :class:`DistillerModel` puts prediction heads on a shallow
    one. An utterance's hidden states do not depend on what it is batched with.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        config.check()
        self.config = config
        self.conv_layers = config.conv_layers
        self.trains_front_end = config.feature_grad_mult > 0
        self.scales_gradient = config.feature_grad_mult not in (0.0, 1.0)
        width = config.encoder_embed_dim
        channels = self.conv_layers[-1][0]
        self.feature_extractor = ConvFrontEnd(
            self.conv_layers,
            config.extractor_mode,
            config.conv_bias,
            config.extractor_dropout,
            config.norm_over_padding,
        )
        self.layer_norm = nn.LayerNorm(channels) if config.feature_layer_norm else None
        features = channels + self._task_embedding_width(config)
        project = config.always_project or features != width
        self.post_extract_proj = nn.Linear(features, width) if project else None
        self.encoder = self._build_transformer(config) if config.encoder_layers else nn.GELU()

    def compile_fast_path(self) -> None:
        """Compile what is compiled once for all layers and any number of frames, in about half a minute."""
        if isinstance(self.encoder, TransformerEncoder):
            for layer in self.encoder.layers:
                layer.compile(dynamic=True)

    @staticmethod
    def _task_embedding_width(config: EncoderConfig) -> int:
        return 0

    @staticmethod
    def _build_transformer(config: EncoderConfig) -> TransformerEncoder:
        width = config.encoder_embed_dim
        layers = [
            TransformerLayer(
                width,
                config.encoder_ffn_embed_dim,
                config.encoder_attention_heads,
                config.dropout,
                config.attention_dropout,
                config.activation_dropout,
                config.activation_fn,
                config.layer_norm_first,
            )
            for _ in range(config.encoder_layers)
        ]
        positions = PositionalConv(width, config.conv_pos, config.conv_pos_groups, config.conv_pos_depth)
        return TransformerEncoder(
            positions, layers, width, config.layer_norm_first, config.dropout, config.encoder_layerdrop
        )

    def check_lengths(self, lengths: Tensor) -> None:
        """Raises ValueError where an utterance is shorter than the receptive field of one frame."""
        if torch.compiler.is_exporting():
            return  # a graph cannot say it: whoever runs it is told the shortest length beside it
        shortest = receptive_field(self.conv_layers)
        if int(lengths.min()) < shortest:
            raise ValueError(
                f"an utterance of {int(lengths.min())} samples is shorter than one frame of the model: "
                f"it needs at least {shortest} ({shortest / 16:.0f} ms at 16 kHz)"
            )

    def pack(self, wave: Tensor, lengths: Tensor, few_shapes: bool = False) -> tuple[Tensor, Packing]:
        """What the fast path takes: waveforms padded to whole frame shifts, and where their frames lie.

        Args:
            wave: (B, samples) zero-padded waveforms at 16 kHz.
            lengths: (B,) samples of each, on the CPU.
            few_shapes: round sizes up, by a hundredth or two, so that batches of about the same size have one shape.

        Raises:
            ValueError: an utterance is shorter than the receptive field of one frame.
        """
        self.check_lengths(lengths)
        hop = self.config.downsample_rate
        samples, frames = lengths.tolist(), frame_lengths(lengths, self.conv_layers).tolist()
        slots, room = room_for(samples, wave.shape[1], hop) if few_shapes else (-(-wave.shape[1] // hop), None)
        wave = F.pad(wave, (0, slots * hop - wave.shape[1]))
        return wave, pack(samples, frames, slots * hop, hop, wave.device, room)

    def extract(self, wave: Tensor, lengths: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor, Where]:
        """Run the front end.

        Args:
            wave: (B, samples) zero-padded waveforms at 16 kHz.
            lengths: (B,) samples of each, on any device (on the CPU it costs no synchronisation).
            packing: from :meth:`pack`, as is ``wave``, for the fast path.

        Returns:
            Features (B, T, C), frames of each utterance (B,), and which frames are content.

        Raises:
            ValueError: an utterance is shorter than the receptive field of one frame.
        """
        if packing is None:
            self.check_lengths(lengths)
        else:
            lengths = packing.samples
        if self.config.normalize:
            wave = normalize_wave(wave, lengths, self.config.normalize_eps)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_front_end):
            if packing is None:
                features = self.feature_extractor(wave, lengths)
            else:
                features = packed_features(self.feature_extractor, wave, packing)
        if self.scales_gradient:
            features = _ScaleGradient.apply(features, self.config.feature_grad_mult)
        frames = frame_lengths(lengths, self.conv_layers)
        where = valid_mask(frames, features.shape[1], features.device) if packing is None else packing
        return features, frames, where

    def project(self, features: Tensor) -> Tensor:
        """(B, T, C) to (B, T, D)."""
        if self.layer_norm is not None:
            features = self.layer_norm(features)
        return features if self.post_extract_proj is None else self.post_extract_proj(features)

    def forward(
        self, wave: Tensor, lengths: Tensor, last_layer: int | None = None, packing: Packing | None = None
    ) -> EncoderOutput:
        """Hidden states up to ``last_layer`` (by default all), the last of a pre-norm encoder normalised.

        Args:
            wave: (B, samples) zero-padded waveforms at 16 kHz.
            lengths: (B,) samples of each.
            packing: from :meth:`pack`, as is ``wave``, for the fast path.
        """
        features, frames, mask = self.extract(wave, lengths, packing)
        x = _zero_padding(self.project(features), mask)
        output, hidden_states = self.encoder(x, mask, last_layer)
        return EncoderOutput([*hidden_states[:-1], output], frames)


class DistillerModel(Encoder):
    """A student: encoder and prediction heads.

    Args:
        config: every option of s3prl's ``DistillerConfig`` that a checkpoint can carry.

    Raises:
        ValueError: the options do not fit together; the message names the key.
    """

    config: DistillerConfig

    def __init__(self, config: DistillerConfig):
        super().__init__(config)
        width = config.encoder_embed_dim
        kind = config.task_emb_type
        if kind == "add":
            self.task_embedding = nn.Embedding(config.n_tasks, width)
            nn.init.normal_(self.task_embedding.weight, 0.0, 0.1)
        elif kind in ("concat", "concat-last"):
            self.task_embedding = nn.Embedding(config.n_tasks, config.task_emb_size)
        last = width + (config.task_emb_size if kind == "concat-last" else 0)
        inner = config.out_layer_inter_dim if config.out_layer_inter_dim > 0 else last
        self.output_layer = None
        if config.out_layer_type == "expand-last":
            self.output_layer = nn.Sequential(
                nn.Linear(last, inner * config.n_tasks),
                nn.GELU(),
                SplitLinear(inner, config.n_tasks, config.final_dim),
            )
        elif config.out_layer_type == "linear":
            self.output_layer = nn.Linear(last, config.final_dim)

    @staticmethod
    def _task_embedding_width(config: EncoderConfig) -> int:
        assert isinstance(config, DistillerConfig)
        return config.task_emb_size if config.task_emb_type == "concat" else 0

    def forward(
        self, wave: Tensor, lengths: Tensor, predict: bool = True, packing: Packing | None = None
    ) -> DistillerOutput:
        """Run the student.

        Args:
            wave: (B, samples) zero-padded waveforms at 16 kHz.
            lengths: (B,) samples of each.
            predict: whether to run the prediction heads, which downstream tasks do without. A student with
                ``n_tasks`` 0 has none.
            packing: from :meth:`pack`, as is ``wave``, for the fast path; not with task embeddings that multiply the
                utterances.
        """
        return self.encode(*self.extract(wave, lengths, packing), predict)

    def encode(self, features: Tensor, frames: Tensor, mask: Where, predict: bool = True) -> DistillerOutput:
        """What comes after the front end, from what :meth:`extract` returns."""
        tasks = 1
        if self.config.task_emb_type in ("add", "concat"):
            tasks = self.config.n_tasks
            projected = self._project_with_tasks(features)
            assert not isinstance(mask, Packing), "each task embedding makes a copy of the batch"
            mask = None if mask is None else mask.repeat_interleave(tasks, 0)
        else:
            projected = self.project(features)
        projected = _zero_padding(projected, mask)
        if isinstance(self.encoder, TransformerEncoder):
            output, hidden_states = self.encoder(projected, mask)
            hidden_states = hidden_states[1:]
        else:
            output, hidden_states = self.encoder(projected), []
        predictions = None
        if predict and self.config.n_tasks:
            predictions = self._predict(projected, output, hidden_states, tasks)
        return DistillerOutput(features, projected, hidden_states, output, predictions, frames)

    def _project_with_tasks(self, features: Tensor) -> Tensor:
        """(B, T, C) to (B * N, T, D): one copy of the utterance for each task, its embedding added or concatenated."""
        tasks = self.task_embedding.weight
        if self.config.task_emb_type == "add":
            each = self.project(features)[:, None] + tasks[None, :, None]
        else:
            copies = features[:, None].expand(-1, len(tasks), -1, -1)
            labels = tasks[None, :, None].expand(len(features), -1, features.shape[1], -1)
            each = self.project(torch.cat([copies, labels], -1))
        return each.flatten(0, 1)

    def _predict(self, projected: Tensor, output: Tensor, hidden_states: list[Tensor], tasks: int) -> Tensor:
        """Predicted teacher layers (B, N, T, final_dim)."""
        kind = self.config.task_emb_type
        if kind == "self-hidden":
            return torch.stack([projected, *hidden_states], 1)
        if kind == "concat-last":
            labels = self.task_embedding.weight[None, :, None].expand(len(output), -1, output.shape[1], -1)
            output = torch.cat([output[:, None].expand(-1, labels.shape[1], -1, -1), labels], -1)
        else:
            output = output.unflatten(0, (-1, tasks))
        if self.output_layer is None:
            return output
        if kind == "expand-last":
            return self.output_layer(output[:, 0])
        return self.output_layer(output)


def _zero_padding(x: Tensor, where: Where) -> Tensor:
    return x.masked_fill(~where[..., None], 0) if isinstance(where, Tensor) else x
