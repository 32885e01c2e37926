"""Any upstream, for a downstream task: waveforms in, hidden states and their lengths out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_distiller.audio import SAMPLE_RATE

from ...upstream.distiller.frontend import frame_lengths
from ...upstream.distiller.hub_expert import load_hub_expert
from ...upstream.distiller.model import Encoder
from ...upstream.distiller.twin import build_twin, mismatch
from .config import UpstreamConfig

log = logging.getLogger(__name__)


class Upstream(nn.Module):
    """An upstream and which of its outputs a task is given.

    A frozen model of the wav2vec 2.0 family runs in our own encoder, checked against the hub's: it is faster, and what
    an utterance gives does not depend on what it is batched with.

    Args:
        expert: of the s3prl hub.
        config: which output.
        name: for messages.

    Attributes:
        n_layers: how many hidden states are handed out.
        width: of each.
        downsample_rate: samples at 16 kHz for each frame.
        fingerprint: of its weights.

    Raises:
        ValueError: the output that is asked for is not there, or its layers differ in shape.
    """

    def __init__(self, expert: Any, config: UpstreamConfig, name: str):
        super().__init__()
        self.expert: Any = expert
        self._class = f"{type(expert).__module__}.{type(expert).__qualname__}"
        self.config = config
        self.name = name
        self.fingerprint = _fingerprint(expert, name)
        if not config.trainable:
            self.requires_grad_(False)
        self.eval()
        rate = expert.get_downsample_rates(config.feature)
        self.downsample_rate = rate if isinstance(rate, int) else int(rate[-1])
        wave = probe()
        self.layers: list[int] = []
        self.twin: Encoder | None = None
        if config.feature in ("hidden_states", "last_hidden_state") and not config.trainable:
            twin = build_twin(expert)
            if twin is not None and (difference := mismatch(twin, expert, [wave])) is not None:
                log.info("Upstream %s runs as the hub gives it: in our encoder it has %s", name, difference)
                twin = None
            self.twin = twin
        self.window: int | None = None
        self._has_mask = False
        with torch.no_grad():
            states = self._states([wave])[0]
        if self.twin is None and not self._has_mask:
            self.window = self._measure_window(wave)
        self.layers = list(range(len(states)))
        if config.layer is not None:
            if not -len(states) <= config.layer < len(states):
                raise ValueError(
                    f"upstream.layer (-l) is {config.layer}, but {config.feature} of {name} has {len(states)} layers, "
                    f"0 to {len(states) - 1}"
                )
            self.layers = [config.layer % len(states)]
        shapes = {tuple(states[layer].shape) for layer in self.layers}
        if len(shapes) != 1:
            raise ValueError(
                f"the layers of {config.feature} of {name} have several shapes, {sorted(shapes)}: choose one (-l)"
            )
        self.n_layers = len(self.layers)
        self.width = next(iter(shapes))[-1]
        if self.twin is not None:
            self.expert = None  # its weights are the twin's

    def train(self, mode: bool = True) -> Upstream:
        """A frozen upstream stays in eval mode."""
        return super().train(mode and self.config.trainable)

    @property
    def neural(self) -> bool:
        """Whether it has weights; a baseline such as fbank has none, and needs float32 throughout."""
        return next(self.parameters(), None) is not None

    def identity(self) -> dict[str, Any]:
        """All that decides what is handed out beside the waveforms and the precision, of JSON's types."""
        return {
            "weights": self.fingerprint,
            "class": self._class if self.twin is None else asdict(self.twin.config),
            "feature": self.config.feature,
            "layers": self.layers,
            "width": self.width,
            "downsample_rate": self.downsample_rate,
        }

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden states of some utterances.

        Args:
            wave: (B, samples) zero-padded waveforms at 16 kHz.
            lengths: (B,) samples of each, on the CPU.

        Returns:
            (B, T, D) for each layer and (B,) frames of each utterance on the CPU; what stands after them means nothing.
        """
        if self.twin is not None:
            states, frames = self._twin_states(self.twin, wave, lengths)
        else:
            wavs = [row[:length] for row, length in zip(wave, lengths.tolist(), strict=True)]
            # Half precision is not known to be safe in an architecture that we did not write.
            with torch.autocast(wave.device.type, enabled=False):
                states, frames = self._states(wavs)
        return [states[layer].float() for layer in self.layers], frames

    def _twin_states(self, twin: Encoder, wave: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        frames = frame_lengths(lengths, twin.conv_layers)
        if self.config.feature == "last_hidden_state":
            return twin(wave, lengths).hidden_states[-1:], frames
        return twin(wave, lengths, last_layer=max(self.layers) if self.layers else None).hidden_states, frames

    def _states(self, wavs: list[Tensor]) -> tuple[Sequence[Tensor], Tensor]:
        """The output that is asked for as a list of layers, and the frames of each utterance."""
        lengths = torch.tensor([len(wav) for wav in wavs])
        if self.twin is not None:
            return self._twin_states(self.twin, nn.utils.rnn.pad_sequence(wavs, batch_first=True), lengths)
        output = self.expert(wavs)
        feature = output.get(self.config.feature)
        if feature is None and self.config.feature == "last_hidden_state":
            feature = output.get("hidden_states", [None])[-1]
        if isinstance(feature, dict):
            feature = list(feature.values())
        if isinstance(feature, Tensor):
            feature = [feature]
        if not feature or not all(isinstance(state, Tensor) and state.dim() == 3 for state in feature):
            there = ", ".join(key for key, value in output.items() if value is not None)
            raise ValueError(f"upstream {self.name} gives no {self.config.feature!r} (-s): it has {there}")
        longest = feature[0].shape[1]
        mask = output.get("pad_mask")
        self._has_mask = isinstance(mask, Tensor) and mask.shape == feature[0].shape[:2]
        if self._has_mask:
            frames = mask.sum(1).round().long().cpu()
        elif self.window is None:
            # As s3prl counts them.
            frames = (lengths / self.downsample_rate).round().long().clamp(1, longest)
        else:
            frames = ((lengths - self.window) // self.downsample_rate + 1).clamp(1, longest)
        return feature, frames

    @torch.no_grad()
    def _measure_window(self, probe: Tensor) -> int | None:
        """Samples that the first frame takes, so that later ones begin every ``downsample_rate`` samples.

        Alone an utterance tells how many frames it has; in a batch, where shorter ones are padded, it does not. None
        where frames do not come at even distances.
        """

        def count(samples: int) -> int:
            return self._states([probe[:samples]])[0][0].shape[1]

        rate, samples = self.downsample_rate, SAMPLE_RATE // 2
        most = count(samples)
        # The window is the shortest length with that many frames, less those before the last.
        low, high = samples - rate, samples
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if count(middle) == most else (middle, high)
        window = high - (most - 1) * rate
        regular = all(count(n) == (n - window) // rate + 1 for n in (len(probe), len(probe) - rate // 3))
        return window if regular else None


def probe() -> Tensor:
    """A second of noise, always the same: what an upstream is tried on."""
    return torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 0.1


def load_upstream(config: UpstreamConfig) -> Upstream:
    """The upstream that a config names.

    Raises:
        ValueError: it cannot be found, loaded or downloaded, or lacks the output that is asked for.
    """
    if not config.name:
        raise ValueError("name the upstream: -u NAME (in the s3prl hub), -u FILE or -u FOLDER")
    _, expert = load_hub_expert(config.name, config.ckpt, role="upstream")
    return Upstream(expert, config, config.name if config.ckpt is None else f"{config.name} ({config.ckpt})")


def _fingerprint(expert: nn.Module, name: str) -> str:
    digest = hashlib.sha256()
    state = expert.state_dict()
    if not state:
        digest.update(name.encode())
    for key, tensor in state.items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
