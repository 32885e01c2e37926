"""Frames of several utterances end to end, with nothing between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


def for_product(x: Tensor) -> Tensor:
    """In autocast's precision for products, where it is on: whatever is moved about first is then moved faster."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class _TakeRows(torch.autograd.Function):
    """Autograd's own gradient of indexing adds atomically; here each row is wanted at most once, so it is a gather."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return _rows(x, index)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        _, back = ctx.saved_tensors
        return _rows(grad_outputs[0], back), None, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return torch.where(index[:, None] < 0, 0, x[index.clamp_min(0)])


@dataclass(frozen=True)
class Layout:
    """Which rows of one arrangement are which of another.

    Attributes:
        there: (rows of the new,) row of the old, or -1 for none: zeros.
        back: (rows of the old,) row of the new, or -1.
    """

    there: Tensor
    back: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(rows of the old, width) to (rows of the new, width)."""
        return cast(Tensor, _TakeRows.apply(x, self.there, self.back))

    def give(self, x: Tensor) -> Tensor:
        """(rows of the new, width) to (rows of the old, width)."""
        return cast(Tensor, _TakeRows.apply(x, self.back, self.there))


@dataclass(frozen=True)
class Packing:
    """Where the frames of B utterances, V in all and T of the longest, lie.

    Attributes:
        samples: (B,) of each utterance.
        bounds: (B + 1,) int32, first frame of each utterance and the end of the last.
        longest: T.
        slots: (N,) those of the slots of the padded waveforms that utterances fill. A slot is as many samples as there
            are from one frame to the next.
        padded_slots: of all padded waveforms.
        slot_ends: (B,) int32, end of each utterance's filled slots.
        slot_owners: (N,) int32, utterance of each.
        frames: from filled slots to the V frames of content: the last slots of an utterance are too short for one.
        padded: from B * T padded frames to the V frames.
    """

    samples: Tensor
    bounds: Tensor
    longest: int
    slots: Tensor
    padded_slots: int
    slot_ends: Tensor
    slot_owners: Tensor
    frames: Layout
    padded: Layout
    _found: list[tuple[Tensor, Any]] = field(default_factory=list)

    def once(self, of: Tensor, compute: Callable[[], Any]) -> Any:
        """What is computed of a tensor, the second time from memory: teacher and student see the same waveforms."""
        for known, value in self._found:
            if known is of:
                return value
        value = compute()
        self._found.append((of, value))
        return value

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
            if dropout == 0.0:
                return cast(
                    Tensor, varlen_attn(query, key, value, self.bounds, self.bounds, self.longest, self.longest)
                )
            # The public function has no dropout, the kernel below it has.
            flash = torch.ops.aten._flash_attention_forward
            bounds = self.bounds, self.bounds, self.longest, self.longest
            return flash(query, key, value, *bounds, dropout, False, False)[0]
        padded = [self.padded.give(x.flatten(1)).unflatten(0, (-1, self.longest)) for x in (query, key, value)]
        heads = [x.unflatten(-1, query.shape[1:]).transpose(1, 2) for x in padded]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=self.content[:, None, None], dropout_p=dropout)
        return self.padded.take(mixed.transpose(1, 2).flatten(0, 1).flatten(1)).view_as(query)


def pack(samples: Sequence[int], frames: Sequence[int], padded: int, hop: int, device: torch.device) -> Packing:
    """Lay out a batch.

    Args:
        samples: of each utterance.
        frames: that the front end makes of each.
        padded: samples of a padded waveform, a multiple of ``hop``.
        hop: samples from one frame to the next.
        device: of the model. Nothing waits for it.
    """
    slots = [-(-n // hop) for n in samples]
    padded_slots = [padded // hop] * len(slots)
    longest = max(frames)
    on_device = torch.tensor([list(samples), slots, list(frames)]).to(device, non_blocking=True)
    return Packing(
        on_device[0],
        F.pad(on_device[2].cumsum(0), (1, 0)).int(),
        longest,
        _layout(slots, padded_slots, on_device[1]).there,
        sum(padded_slots),
        on_device[1].cumsum(0).int(),
        torch.arange(len(slots), device=device, dtype=torch.int32).repeat_interleave(
            on_device[1], output_size=sum(slots)
        ),
        _layout(frames, slots, on_device[2]),
        _layout(frames, [longest] * len(frames), on_device[2]),
    )


def _layout(kept: Sequence[int], of: Sequence[int], counts: Tensor) -> Layout:
    """The first ``kept`` rows of each utterance, which has ``of`` of them; ``counts``: ``kept`` on the device."""
    device, total = counts.device, sum(of)
    starts = torch.tensor([0, *accumulate(of)][:-1], dtype=torch.int64).to(device, non_blocking=True)
    firsts = counts.cumsum(0) - counts
    sizes = torch.tensor(of, dtype=torch.int64).to(device, non_blocking=True)
    there = torch.arange(sum(kept), device=device) + (starts - firsts).repeat_interleave(counts, output_size=sum(kept))
    within = torch.arange(total, device=device) - starts.repeat_interleave(sizes, output_size=total)
    first = firsts.repeat_interleave(sizes, output_size=total)
    back = torch.where(within < counts.repeat_interleave(sizes, output_size=total), first + within, -1)
    return Layout(there, back)
