"""Teachers: a name in the s3prl hub, a local checkpoint or a Hugging Face folder, turned into hidden states.

Always in eval mode and without gradient, unless the original's noisy targets are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .hub_expert import load_hub_expert
from .model import Encoder
from .model_config import EncoderConfig
from .twin import build_twin, hub_normalizes, mismatch

log = logging.getLogger(__name__)


@dataclass
class TeacherConfig:
    """Which teacher, and how it is run. ``model`` and ``n_layers`` are s3prl's."""

    model: str = "hubert_base"  # a name in the s3prl hub, or the path of a checkpoint file or Hugging Face folder
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
    architecture: EncoderConfig | None  # None: not of the wav2vec 2.0 family
    parameters: int = 0  # those that its hidden states pass through, where the architecture is known


class Teacher(nn.Module):
    """A frozen teacher.

    Args:
        expert: a hub expert.
        twin: its weights in our Encoder, if they fit there: what a student starts from, and what is run.
        info: what it is.
        config: how it is to be run.
    """

    def __init__(self, expert: nn.Module, twin: Encoder | None, info: TeacherInfo, config: TeacherConfig):
        super().__init__()
        self.expert: nn.Module | None = expert
        self.twin = twin
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

        Args:
            wavs: waveforms (samples,) at 16 kHz on the teacher's device.
        """
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
    name, expert = load_hub_expert(config.model, config.ckpt, role="teacher")
    expert.eval().requires_grad_(False)
    twin = build_twin(expert)
    probe = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    hidden_states = _probe(expert, probe, name)
    if twin is not None:
        difference = mismatch(twin, expert, [probe])
        if difference is not None:
            log.warning("The twin of teacher %s gives %s: going on with the hub's own forward.", name, difference)
            twin = None
    rate = expert.get_downsample_rates("hidden_states")
    info = TeacherInfo(
        name=config.model if config.ckpt is None else f"{config.model} ({config.ckpt})",
        n_layers=len(hidden_states) - 1,
        width=hidden_states[-1].shape[-1],
        downsample_rate=rate if isinstance(rate, int) else rate[-1],
        normalize=twin.config.normalize if twin is not None else hub_normalizes(expert),
        architecture=twin.config if twin is not None else None,
        parameters=0 if twin is None else sum(parameter.numel() for parameter in twin.parameters()),
    )
    if config.n_layers is not None and config.n_layers != info.n_layers:
        raise ValueError(f"teacher.n_layers={config.n_layers}, but {info.name} has {info.n_layers} layers")
    return Teacher(expert, twin, info, config)


def _probe(expert: nn.Module, wav: Tensor, name: str) -> Sequence[Tensor]:
    with torch.no_grad():
        output = expert([wav])
    states = output.get("hidden_states") if isinstance(output, dict) else None
    if not isinstance(states, (list, tuple)) or not states or not all(isinstance(s, Tensor) for s in states):
        raise ValueError(f"teacher {name} gives no list of hidden states, so it has no layers to predict")
    if len({state.shape for state in states}) != 1:
        raise ValueError(f"teacher {name} has layers of several widths or frame rates, which are not supported")
    return states
