"""What an encoder and a student are made of: typed, with the field names and defaults of s3prl's ``DistillerConfig``.

A checkpoint is rebuilt from these fields and nothing else. Fields that s3prl does not know are marked; their defaults
give s3prl's model, which is why s3prl reads our checkpoints as long as they stay at those defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from .encoder import ACTIVATIONS
from .frontend import HUBERT_CONV_LAYERS, ConvLayer, parse_conv_layers

TASK_EMB_TYPES = ("expand-last", "none", "self-hidden", "add", "concat", "concat-last")
OUT_LAYER_TYPES = ("expand-last", "none", "self-hidden", "linear")


@dataclass
class EncoderConfig:
    """Front end and Transformer of a student, or of a teacher's twin (the same architecture at another depth)."""

    # Front end
    extractor_mode: str = "default"  # "default": one group norm (HuBERT base); "layer_norm": one a layer (XLSR)
    extractor_conv_feature_layers: str = HUBERT_CONV_LAYERS  # (channels, kernel, stride) a layer, never evaluated
    extractor_dropout: float = 0.0
    feature_grad_mult: float = 1.0  # scales the front end's gradient; 0 freezes it
    conv_bias: bool = False  # not s3prl's: biases in the front end
    feature_layer_norm: bool = False  # not s3prl's: the layer norm that teachers have between front end and projection
    always_project: bool = False  # not s3prl's: a projection even where the front end is as wide as the Transformer
    normalize: bool = False  # not s3prl's: bring each waveform to zero mean and unit variance, as its teacher does
    normalize_eps: float = 1e-5  # not s3prl's: added to that variance
    norm_over_padding: bool = False  # not s3prl's: take the group norm's statistics over padding too, as s3prl does

    # Convolutional positional embedding
    conv_pos: int = 128  # frames
    conv_pos_groups: int = 16
    conv_pos_depth: int = 1  # not s3prl's: data2vec-audio has 5

    # Transformer
    encoder_layers: int = 1
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    attention_type: str = "original"

    # Dropout, as probabilities
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    encoder_layerdrop: float = 0.0

    @property
    def conv_layers(self) -> list[ConvLayer]:
        return parse_conv_layers(self.extractor_conv_feature_layers)

    @property
    def downsample_rate(self) -> int:
        """Samples a frame: 320 for HuBERT's front end."""
        rate = 1
        for _, _, stride in self.conv_layers:
            rate *= stride
        return rate

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]):
        """Read a checkpoint's config as loosely as s3prl: unknown keys are passed over, ``"1e-1"`` is a number.

        Raises:
            ValueError: a value cannot be read as what it should be; its key is named.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"its config is a {type(values).__name__} and not a dictionary")
        read: dict[str, Any] = {}
        types = get_type_hints(cls)
        for key in types.keys() & values.keys():
            try:
                kind, value = types[key], values[key]
                read[key] = [int(item) for item in value] if kind == list[int] else kind(value)
            except (TypeError, ValueError):
                raise ValueError(f"{key}={values[key]!r} cannot be read as {types[key].__name__}") from None
        return cls(**read)

    def check(self) -> None:
        """Raises ValueError, naming the key, where no model can be built from these values."""
        _one_of("extractor_mode", self.extractor_mode, ("default", "layer_norm"))
        _one_of("activation_fn", self.activation_fn, tuple(ACTIVATIONS))
        # s3prl's "sparse" and "dynamic" attention come from fairseq and occur in no released checkpoint.
        _one_of("attention_type", self.attention_type, ("original",))
        _divides("encoder_attention_heads", self.encoder_attention_heads, self.encoder_embed_dim)
        _divides("conv_pos_groups", self.conv_pos_groups, self.encoder_embed_dim)
        if self.encoder_layers < 0:
            raise ValueError(f"encoder_layers={self.encoder_layers} must be 0 or more")
        parse_conv_layers(self.extractor_conv_feature_layers)


@dataclass
class DistillerConfig(EncoderConfig):
    """A student: an encoder, heads that predict teacher layers, and how it is trained.

    Defaults are s3prl's for a key that a checkpoint lacks, not a recipe: recipes are in ``config/pretrain``.
    """

    # Prediction heads
    final_dim: int = 768  # width of a predicted layer: the teacher's
    out_layer_type: str = "expand-last"  # "linear" is not s3prl's: a head for the embedding types below
    out_layer_inter_dim: int = -1  # hidden width of a head; -1: as wide as its input

    # Predicted layers and objective
    n_tasks: int = 12  # how many layers are predicted
    task_emb_type: str = "expand-last"
    task_emb_size: int = 0  # width of a task embedding, for concat and concat-last
    layer_emb_size: int = 0  # kept for s3prl's checkpoints; unused there and here
    loss_type: str = "l1"  # l1 or l2
    feat_pen_loss: float = 0.0  # weight of the mean square of the front end's output
    cosine_loss: float = 0.0  # weight of -log sigmoid(cosine similarity)
    pred_layer_id: list[int] = field(default_factory=list)  # teacher layers, 1 is the first; empty: 1 ... n_tasks

    # Initialisation from the teacher
    init_teacher_conv_layers: bool = False  # front end and projection
    init_teacher_encoder_layers: bool = False  # positional embedding and layers
    init_layers: list[int] = field(default_factory=list)  # not s3prl's: teacher layers; empty: 1 ... encoder_layers
    init_teacher_encoder_norm: bool = False  # not s3prl's: the encoder's own layer norm, which s3prl leaves out

    def __post_init__(self) -> None:
        if not self.pred_layer_id:
            self.pred_layer_id = list(range(1, self.n_tasks + 1))

    @property
    def targets(self) -> list[int]:
        """Teacher layers that are predicted, one for each prediction (1 is the first layer's output)."""
        if self.task_emb_type == "none":
            return [self.n_tasks]
        if self.task_emb_type in ("expand-last", "self-hidden"):
            return list(self.pred_layer_id)
        return list(range(1, self.n_tasks + 1))

    def check(self) -> None:
        super().check()
        _one_of("task_emb_type", self.task_emb_type, TASK_EMB_TYPES)
        _one_of("out_layer_type", self.out_layer_type, OUT_LAYER_TYPES)
        _one_of("loss_type", self.loss_type, ("l1", "l2"))
        if self.task_emb_type in ("expand-last", "self-hidden") and self.n_tasks != len(self.pred_layer_id):
            raise ValueError(
                f"n_tasks={self.n_tasks} but pred_layer_id={list(self.pred_layer_id)} names "
                f"{len(self.pred_layer_id)} layers: leave n_tasks out or make them agree"
            )
        if (self.task_emb_type == "expand-last") != (self.out_layer_type == "expand-last"):
            raise ValueError(
                f"task_emb_type={self.task_emb_type!r} does not go with out_layer_type={self.out_layer_type!r}: "
                "expand-last goes with expand-last only"
            )
        if self.task_emb_type == "self-hidden" and self.n_tasks != self.encoder_layers + 1:
            raise ValueError(
                f"task_emb_type='self-hidden' predicts from the projection and each of the {self.encoder_layers} "
                f"layers: pred_layer_id needs {self.encoder_layers + 1} entries, not {self.n_tasks}"
            )
        if self.task_emb_type in ("concat", "concat-last") and self.task_emb_size < 1:
            raise ValueError(f"task_emb_type={self.task_emb_type!r} needs task_emb_size of at least 1")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r} is not one of {', '.join(choices)}")


def _divides(key: str, divisor: int, width: int) -> None:
    if divisor < 1 or width % divisor:
        raise ValueError(f"{key}={divisor} does not divide encoder_embed_dim={width}")
