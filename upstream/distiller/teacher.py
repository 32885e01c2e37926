"""Teachers: a name in the s3prl hub, a local checkpoint or a Hugging Face folder, turned into hidden states.

Always in eval mode and without gradient, unless the original's noisy targets are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .hub_expert import load_hub_expert
from .model import Encoder
from .model_config import EncoderConfig
from .twin import build_start, build_twin, hub_normalizes, mismatch

log = logging.getLogger(__name__)

_PROBE = 16_000  # samples of noise on which a teacher is tried
_SLACK = 5  # frames by which models of one rate may differ at the edges, as in s3prl
# What code that we did not write raises where it is not what s3prl's interface asks for.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass
class TeacherConfig:
    """Which teacher, and how it is run. ``model`` and ``n_layers`` are s3prl's."""

    model: str = "hubert_base"  # a name in the s3prl hub; a checkpoint file, Hugging Face folder or run
    ckpt: str | None = None  # what a hub name that ends in _custom or _local is to load
    n_layers: int | None = None  # if given, the teacher must have that many
    twin: bool = True  # run the teacher in our Encoder where that gives the same numbers, which is faster
    train_mode: bool = False  # dropout in the teacher, as s3prl's trainer has it by mistake; needs twin: false


@dataclass(frozen=True)
class TeacherInfo:
    """What a teacher was found to be."""

    name: str
    n_layers: int
    width: int  # of each hidden state
    downsample_rate: int  # samples a frame
    normalize: bool  # whether it brings waveforms to zero mean and unit variance
    architecture: EncoderConfig | None  # what a student follows and starts from; None: not of the wav2vec 2.0 family
    parameters: int = 0  # those that its hidden states pass through, where the architecture is known


class Teacher(nn.Module):
    """A frozen teacher.

    Args:
        expert: a hub expert.
        twin: its weights in our Encoder, if they fit there: what is run.
        info: what it is.
        config: how it is to be run.
        start: what a student starts from, if that is not the twin.
    """

    def __init__(
        self,
        expert: nn.Module,
        twin: Encoder | None,
        info: TeacherInfo,
        config: TeacherConfig,
        start: Encoder | None = None,
    ):
        super().__init__()
        self.expert: nn.Module | None = expert
        self.twin = twin
        self.start = start or twin
        self.info = info
        self.config = config
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Whatever mode is asked for, a teacher stays in eval mode: dropout in it would be noise in the targets."""
        return super().train(self.config.train_mode)

    @property
    def runs_twin(self) -> bool:
        """Whether hidden states come from our Encoder rather than from the hub's forward."""
        return self.twin is not None and self.config.twin

    def verify(self, wavs: Sequence[Tensor]) -> None:
        """Compare the twin with the hub's own forward on real utterances, then keep only the one that will be run.

        Students have started by then: what they start from is let go of too.

        Args:
            wavs: waveforms (samples,) at 16 kHz on the teacher's device.
        """
        self.start = None
        if not self.config.twin:
            self.twin = None
        if self.twin is None:
            return
        assert self.expert is not None, "a teacher is verified once"
        difference = mismatch(self.twin, self.expert, wavs)
        if difference is None:
            self.expert = None
        else:
            log.warning(
                "The teacher's twin gives %s: going on with the hub's own forward, which is slower and lets features "
                "depend on the padding of the batch.",
                difference,
            )
            self.twin = None

    @torch.no_grad()
    def forward(self, wave: Tensor, lengths: Tensor, layers: Sequence[int]) -> Tensor:
        """Hidden states of some layers.

        Args:
            wave: (B, samples) zero-padded waveforms at 16 kHz.
            lengths: (B,) samples of each, on the CPU.
            layers: which; 1 is the first layer's output, 0 its input.

        Returns:
            (B, len(layers), T, width); frames beyond an utterance's end mean nothing.
        """
        if self.twin is not None and self.config.twin:
            hidden_states = self.twin(wave, lengths, last_layer=max(layers)).hidden_states
        else:
            assert self.expert is not None
            # Half precision is not known to be safe in an architecture that we did not write.
            with torch.autocast(wave.device.type, enabled=False):
                utterances = [row[:length] for row, length in zip(wave, lengths.tolist(), strict=True)]
                hidden_states = self.expert(utterances)["hidden_states"]
        return torch.stack([hidden_states[layer] for layer in layers], 1)


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher and find out what it is.

    Raises:
        ValueError: it cannot be found, loaded or downloaded, or is not what the config says.
    """
    if config.train_mode and config.twin:
        raise ValueError("teacher.train_mode=true needs teacher.twin=false: a twin has no dropout")
    _, expert = load_hub_expert(config.model, config.ckpt, role="teacher")
    name = config.model if config.ckpt is None else f"{config.model} ({config.ckpt})"
    expert.eval().requires_grad_(False)
    probe = torch.randn(_PROBE, generator=torch.Generator().manual_seed(0)) * 0.1
    hidden_states = _probe(expert, probe, name)
    twin, start, parameters = _in_our_encoder(expert, probe, name)
    architecture = None if start is None else start.config
    info = TeacherInfo(
        name=name,
        n_layers=len(hidden_states) - 1,
        width=hidden_states[-1].shape[-1],
        downsample_rate=_rate(expert, hidden_states[-1].shape[1], name)
        if architecture is None
        else architecture.downsample_rate,
        normalize=hub_normalizes(expert) if architecture is None else architecture.normalize,
        architecture=architecture,
        parameters=parameters,
    )
    if config.n_layers is not None and config.n_layers != info.n_layers:
        raise ValueError(f"teacher.n_layers={config.n_layers}, but {info.name} has {info.n_layers} layers")
    return Teacher(expert, twin, info, config, start)


def _in_our_encoder(expert: nn.Module, probe: Tensor, name: str) -> tuple[Encoder | None, Encoder | None, int]:
    """A teacher's twin, what a student starts from, and how many parameters the teacher has, as far as there are."""
    if (twin := build_twin(expert)) is not None:
        if (difference := mismatch(twin, expert, [probe])) is None:
            return twin, twin, _parameters(twin)
        log.warning("The twin of teacher %s gives %s: going on with the hub's own forward.", name, difference)
    elif (found := build_start(expert)) is not None:
        start, left_out = found
        if not left_out:
            return None, start, _parameters(start)
        # The layers differ by what was left out; what leads up to them must not.
        if (difference := mismatch(start, expert, [probe], first=1)) is None:
            log.info(
                "Teacher %s attends by relative positions, which a student has not: it starts from the rest of the "
                "weights, and the teacher runs as the hub gives it",
                name,
            )
            return None, start, _parameters(start) + left_out
        log.warning("A student cannot start from teacher %s: it would give %s", name, difference)
    return None, None, 0


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _probe(expert: nn.Module, wav: Tensor, name: str) -> Sequence[Tensor]:
    """Hidden states of a waveform (samples,).

    Raises:
        ValueError: the expert fails, or gives anything but hidden states of one shape, as s3prl's interface has them.
    """
    try:
        with torch.no_grad():
            output: Any = expert([wav])
    except _FAILURES as error:
        reason = str(error).split("\n")[0][:300] or type(error).__name__
        raise ValueError(
            f"teacher {name} fails on a second of noise: {reason}. It must take a list of waveforms and return a "
            "dictionary with hidden_states"
        ) from error
    if not isinstance(output, Mapping):
        raise ValueError(
            f"teacher {name} returns a {type(output).__name__}: it must return a dictionary whose hidden_states are a "
            "list of tensors (utterances, frames, width), as the experts of the s3prl hub do"
        )
    states = output.get("hidden_states")
    if not isinstance(states, (list, tuple)) or not states or not all(isinstance(s, Tensor) for s in states):
        kind = type(states).__name__
        if isinstance(states, (list, tuple)):
            kind += f" of {', '.join(sorted({type(state).__name__ for state in states})) or 'nothing'}"
        raise ValueError(
            f"teacher {name} gives no list of hidden states but a {kind}, so it has no layers to predict: "
            "hidden_states must be a list of tensors (utterances, frames, width)"
        )
    shapes = {tuple(state.shape) for state in states}
    if len(shapes) != 1:
        raise ValueError(f"teacher {name} has layers of several widths or frame rates, which are not supported")
    (shape,) = shapes
    if len(shape) != 3 or shape[0] != 1:
        raise ValueError(
            f"teacher {name} gives hidden states of shape {shape} for one utterance: they must be (utterances, frames, "
            "width)"
        )
    return states


def _rate(expert: Any, frames: int, name: str) -> int:
    """Samples a frame, as an expert says it, or where it does not, as the ``frames`` of the probe show it.

    Raises:
        ValueError: it says one rate and gives frames at another.
    """
    if not hasattr(expert, "get_downsample_rates"):
        # Only the difference of two lengths: how many frames are lost at the edges is not known.
        more = _probe(expert, torch.zeros(2 * _PROBE), name)[-1].shape[1] - frames
        return round(_PROBE / max(1, more))
    said = expert.get_downsample_rates("hidden_states")
    rate = said if isinstance(said, int) else said[-1]
    if abs(_PROBE / rate - frames) > _SLACK:
        raise ValueError(
            f"teacher {name} says that a frame is {rate} samples (get_downsample_rates), but gives {frames} frames for "
            f"{_PROBE} samples: correct one of them"
        )
    return rate
