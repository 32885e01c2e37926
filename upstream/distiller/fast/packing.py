"""Frames of several utterances end to end, with nothing between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def for_product(x: Tensor) -> Tensor:
    """In autocast's precision for products, where it is on: whatever is moved about first is then moved faster."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


@dataclass(frozen=True)
class Layout:
    """Which rows of one arrangement make up another.

    Attributes:
        there: (rows of the new,) integer, row of the old, or -1 for none.
        back: (rows of the old,) integer, row of the new, or -1 for none.
    """

    there: Tensor
    back: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(rows of the old, width) to (rows of the new, width), zeros where there is none."""
        return cast(Tensor, _Rows.apply(x, self.there, self.back))

    def give(self, x: Tensor) -> Tensor:
        """(rows of the new, width) to (rows of the old, width), zeros where there is none."""
        return cast(Tensor, _Rows.apply(x, self.back, self.there))


class _Rows(torch.autograd.Function):
    """Rows by number. Autograd's own gradient adds atomically; here each row is wanted at most once, so the gradient is
    a gather too, by the inverse's numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return _rows(x, index)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _rows(grad_outputs[0], ctx.inverse), None, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return torch.where(index[:, None] < 0, 0, x.index_select(0, index.clamp_min(0)))


@dataclass(frozen=True)
class Packing:
    """Where the frames of B utterances, V in all and T of the longest, lie.

    Where it was given room, N and V are that room. What no utterance fills counts as slots of the last one, and as some
    more utterances of frames that are zero at first and that no loss may count (see ``counted``).

    Attributes:
        whole: int32, all numbers of the tensors below in one piece, of which they are views.
        lengths: (B,) samples of each utterance.
        bounds: (B + 1,) int32, first frame of each utterance and the end of the last; then the ends of fillers.
        longest: T, or more.
        slots: (N,) int32, those of the slots of the padded waveforms that utterances fill. A slot is as many samples as
            there are from one frame to the next.
        padded_slots: of all padded waveforms.
        slot_ends: (B,) int32, end of each utterance's filled slots.
        slot_owners: (N,) int32, utterance of each.
        frames: from filled slots to the V frames of content: the last slots of an utterance are too short for one.
        padded: from B * T padded frames to the V frames.
    """

    whole: Tensor
    lengths: Tensor
    bounds: Tensor
    longest: int
    slots: Tensor
    padded_slots: int
    slot_ends: Tensor
    slot_owners: Tensor
    frames: Layout
    padded: Layout
    _found: list[tuple[str, Tensor, Any]] = field(default_factory=list)

    def once(self, what: str, of: Tensor, compute: Callable[[], Any]) -> Any:
        """What is computed of a tensor, the second time from memory: teacher and student see the same waveforms."""
        for name, known, value in self._found:
            if name == what and known is of:
                return value
        value = compute()
        self._found.append((what, of, value))
        return value

    def forget(self) -> None:
        """What :meth:`once` has kept."""
        self._found.clear()

    @property
    def samples(self) -> Tensor:
        """(B,) int64, of each utterance."""
        return self.once("samples", self.lengths, self.lengths.long)

    @property
    def counted(self) -> Tensor | None:
        """(1, V) bool, True for frames of utterances and not of fillers; None where there are none."""
        utterances = len(self.lengths)
        if len(self.bounds) == utterances + 1:
            return None
        return torch.arange(len(self.padded.there), device=self.bounds.device)[None] < self.bounds[utterances]

    @property
    def content(self) -> Tensor:
        """(B, T) bool, True for content of padded frames."""
        return (self.padded.back >= 0).view(-1, self.longest)

    def unpack(self, x: Tensor) -> Tensor:
        """(1, V, D) to (B, T, D), zeros where padded."""
        return self.padded.give(x[0]).unflatten(0, (-1, self.longest))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, D) to (1, V, D)."""
        return self.padded.take(x.flatten(0, 1))[None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention within each utterance: (V, heads, width of a head) each, and so is the result."""
        if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
            # The public torch.nn.attention.varlen has no dropout, and costs the CPU 2 ms more in a step.
            flash = torch.ops.aten._flash_attention_forward
            bounds = self.bounds, self.bounds, self.longest, self.longest
            return flash(query, key, value, *bounds, dropout, False, False)[0]
        padded = [self.padded.give(x.flatten(1)).unflatten(0, (-1, self.longest)) for x in (query, key, value)]
        heads = [x.unflatten(-1, query.shape[1:]).transpose(1, 2) for x in padded]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=self.content[:, None, None], dropout_p=dropout)
        return self.padded.take(mixed.transpose(1, 2).flatten(0, 1).flatten(1)).view_as(query)


def pack(
    samples: Sequence[int],
    frames: Sequence[int],
    padded: int,
    hop: int,
    device: torch.device,
    room: int | None = None,
) -> Packing:
    """Lay out a batch.

    Args:
        samples: of each utterance.
        frames: that the front end makes of each.
        padded: samples of a padded waveform, a multiple of ``hop``.
        hop: samples from one frame to the next.
        device: of the model. Nothing waits for it.
        room: make N and V this many, no fewer than the slots that the utterances fill, and T that of ``padded``, so
            that shapes follow from B, ``padded`` and it alone.
    """
    heard, kept = np.array(samples), np.array(frames)
    slots = -(-heard // hop)
    padded_slots = np.full_like(slots, padded // hop)
    longest = int(kept.max()) if room is None else padded // hop
    filled, _ = _layout(slots, padded_slots)
    content, rectangle = _layout(kept, slots), _layout(kept, np.full_like(kept, longest))
    owners, bounds, ends = np.repeat(np.arange(len(slots)), slots), np.cumsum([0, *kept]), np.cumsum(slots)
    if room is not None:
        more_slots, more_frames = room - len(filled), room - bounds[-1]
        filled, owners = _extended(filled, more_slots), _extended(owners, more_slots)
        ends[-1] = room
        content = _extended(content[0], more_frames, -1), _extended(content[1], more_slots, -1)
        rectangle = _extended(rectangle[0], more_frames, -1), rectangle[1]
        # So many fillers that none is longer than T: they have the room's excess, and what slots are more than frames.
        fillers = 2 + len(slots) // 4
        bounds = np.append(bounds, bounds[-1] + more_frames * np.arange(1, fillers + 1) // fillers)
    whole, parts = _sent((heard, bounds, filled, ends, owners, *content, *rectangle), device)
    lengths, bounds, filled, ends, owners, *layouts = parts
    return Packing(
        whole,
        lengths,
        bounds,
        longest,
        filled,
        int(padded_slots.sum()),
        ends,
        owners,
        Layout(*layouts[:2]),
        Layout(*layouts[2:]),
    )


def room_for(samples: Sequence[int], padded: int, hop: int) -> tuple[int, int]:
    """Sizes that many batches have in common: slots of a padded waveform, and room (see :func:`pack`).

    Args:
        samples: of each utterance.
        padded: samples of a padded waveform.
        hop: samples from one frame to the next.
    """
    slots = sum(-(-count // hop) for count in samples)
    unit = max(64, 1 << (slots // 64).bit_length())  # a 32nd of them at most
    return _round_up(-(-padded // hop), 64), _round_up(slots, unit)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _extended(part: np.ndarray, more: int, value: int | None = None) -> np.ndarray:
    """With so many more of its last number, or of a value."""
    return np.append(part, np.full(more, part[-1] if value is None else value))


def _layout(kept: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A layout's two parts: the first ``kept`` rows (B,) of each utterance, which has ``of`` (B,) of them."""
    starts, firsts = np.cumsum(of) - of, np.cumsum(kept) - kept
    there = np.arange(kept.sum()) + np.repeat(starts - firsts, kept)
    back = np.full(of.sum(), -1)
    back[there] = np.arange(len(there))
    return there, back


def _sent(parts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Sequence[Tensor]]:
    """As int32 on the device, in one piece and its parts: to a GPU the smallest copy, or kernel, is as long as one a
    thousand times its size."""
    sizes = [len(part) for part in parts]
    whole = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    np.concatenate(parts, out=whole.numpy(), casting="unsafe")
    whole = whole.to(device, non_blocking=True)
    return whole, whole.split(sizes)
