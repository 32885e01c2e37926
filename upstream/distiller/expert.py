"""The student behind s3prl's upstream interface."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_distiller import audio as door

from .fast.chunks import in_chunks
from .fast.inference import Inference, check_precision
from .frontend import valid_mask
from .model import DistillerModel, DistillerOutput
from .student import load_student


class UpstreamExpert(UpstreamBase):
    """A drop-in for s3prl's distiller expert, whose features do not depend on what an utterance is batched with.

    Args:
        ckpt: whatever :func:`~s3prl_distiller.upstream.distiller.student.load_student` reads.
        model_config: a YAML file of s3prl's expert options; ``load_pretrain`` and ``no_grad`` are heeded.
        precision: of inference, that is in eval mode without gradients: "float32", "bfloat16" or "int8"
            (:class:`~s3prl_distiller.upstream.distiller.fast.inference.Inference`). Features are float32 in any case.

    Raises:
        ValueError: the checkpoint cannot be read, or there is no such precision.
    """

    def __init__(
        self,
        ckpt: str | os.PathLike,
        model_config: str | os.PathLike | None = None,
        precision: str = "float32",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_precision(precision)
        options = {} if model_config is None else yaml.safe_load(Path(model_config).read_text(encoding="utf-8"))
        model = load_student(ckpt)
        self.model = model if _flag(options, "load_pretrain", True) else DistillerModel(model.config)
        self.no_grad = _flag(options, "no_grad", False)
        self.inference = Inference(self.model, precision)
        self.wav_normalize = model.config.normalize  # where s3prl's experts say it

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples at 16 kHz for one frame of any of the features: 320 for HuBERT's front end."""
        return self.model.config.downsample_rate

    def forward(self, wavs: Sequence[Tensor], no_pred: bool = False) -> dict[str, Any]:
        """Features of some utterances.

        Args:
            wavs: waveforms (samples,) at 16 kHz, of any lengths from one frame (400 samples) up.
            no_pred: leave out the prediction heads, which downstream tasks of SUPERB do without.

        Returns:
            ``hidden_states``: the front end's projection, each layer, each prediction, all (B, T, D);
            ``last_hidden_state``: the last of them, None without predictions (of a student that has no heads: the
            encoder's output); ``paper``: the last layer, which DistilHuBERT's SUPERB figures use; ``pad_mask``: (B, T)
            float, 1 for content.

        Raises:
            ValueError: an utterance is shorter than one frame, or not one-dimensional; a precision below float32 where
                gradients are needed, or in train mode.
        """
        for index, wav in enumerate(wavs):
            if wav.dim() != 1:
                raise ValueError(f"utterance {index} has shape {tuple(wav.shape)}: pass waveforms of shape (samples,)")
        wavs = [wav.float() for wav in wavs]
        gradients = torch.is_grad_enabled() and not self.no_grad
        if not gradients and not self.model.training:
            out = self.inference(wavs, predict=not no_pred)
        else:
            self.inference.refuse_gradients()
            lengths = torch.tensor([len(wav) for wav in wavs])
            with torch.set_grad_enabled(gradients):
                out = self.model(pad_sequence(wavs, batch_first=True), lengths, predict=not no_pred)
        return self._named(out)

    def extract(
        self,
        audio: str | os.PathLike | Tensor,
        chunk: float | None = None,
        context: float = 10.0,
        no_pred: bool = False,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Features of one recording, hours long if need be: in eval mode and without gradients.

        In chunks, memory does not grow with the recording. What the front end makes (``hidden_states[0]``) is what it
        makes of the whole: its normalisation takes two passes over the recording. The layers above it attend to all
        frames of the whole, and in chunks to those of the chunk and of its context: they are those of the whole where
        chunk and context reach over all of it, and come close elsewhere, the closer the longer the context.

        Args:
            audio: a file of any format, rate and channels, or a waveform (samples,) at 16 kHz.
            chunk: seconds handed out at a time; None: all at once, the attention's time grows with its square.
            context: seconds that the layers hear on either side of a chunk; more than the 1.3 s of the positions.
            no_pred: as in :meth:`forward`.

        Yields:
            The first frame of a chunk, and its features as of :meth:`forward` for one utterance.

        Raises:
            ValueError: the audio cannot be read or is shorter than one frame, or ``chunk`` is none.
        """
        rate, frame = door.SAMPLE_RATE, self.get_downsample_rates()
        if chunk is not None and not (chunk * rate >= frame and context >= 0):
            raise ValueError(f"chunk={chunk} and context={context} are seconds: one frame is {frame / rate} s")
        source = (audio, rate) if isinstance(audio, Tensor) else audio
        frames = sys.maxsize if chunk is None else round(chunk * rate / frame)
        outs = in_chunks(
            self.inference, lambda: door.stream(source), frames, round(context * rate / frame), not no_pred
        )
        return ((start, self._named(out)) for start, out in outs)

    def _named(self, out: DistillerOutput) -> dict[str, Any]:
        """What :meth:`forward` returns."""
        mask = valid_mask(out.frames, out.features.shape[1], out.features.device)
        if mask is None:
            mask = torch.ones(out.features.shape[:2], dtype=torch.bool, device=out.features.device)
        mask = mask.repeat_interleave(len(out.projected) // len(mask), 0)
        return {**features_by_name(out, self.model.config.n_tasks), "pad_mask": mask.float()}


def features_by_name(out: DistillerOutput, n_tasks: int) -> dict[str, Any]:
    """What s3prl's experts call ``hidden_states``, ``last_hidden_state`` and ``paper``; see
    :meth:`UpstreamExpert.forward`.

    Args:
        n_tasks: of the student, whether or not its prediction heads were run.
    """
    hidden_states = out.listed
    if n_tasks == 0:
        last = out.output
    else:
        last = None if out.predictions is None else hidden_states[-1]
    return {
        "hidden_states": hidden_states,
        "last_hidden_state": last,
        "paper": out.hidden_states[-1] if out.hidden_states else out.output,
    }


def _flag(options: dict[str, Any], key: str, default: bool) -> bool:
    """s3prl writes these as the strings "True" and "False"."""
    return str(options.get(key, default)).lower() in ("true", "yes", "1", "on")
