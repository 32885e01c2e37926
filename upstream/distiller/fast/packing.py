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
        there: (rows of the new,) integer, row of the old.
        back: (rows of the old,) integer, row of the new, or -1 for none.
    """

    there: Tensor
    back: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(rows of the old, width) to (rows of the new, width)."""
        return cast(Tensor, _Take.apply(x, self))

    def give(self, x: Tensor) -> Tensor:
        """(rows of the new, width) to (rows of the old, width), zeros where there is none."""
        return cast(Tensor, _Give.apply(x, self))


# Autograd's own gradient of indexing adds atomically; here each row is wanted at most once, so it is a gather.
class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.there)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _Give.forward(ctx, grad_outputs[0], ctx.layout), None


class _Give(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return torch.where(layout.back[:, None] < 0, 0, x.index_select(0, layout.back.clamp_min(0)))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _Take.forward(ctx, grad_outputs[0], ctx.layout), None


@dataclass(frozen=True)
class Packing:
    """Where the frames of B utterances, V in all and T of the longest, lie.

    Attributes:
        samples: (B,) of each utterance.
        bounds: (B + 1,) int32, first frame of each utterance and the end of the last.
        longest: T.
        slots: (N,) int32, those of the slots of the padded waveforms that utterances fill. A slot is as many samples as
            there are from one frame to the next.
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
    _found: list[tuple[str, Tensor, Any]] = field(default_factory=list)

    def once(self, what: str, of: Tensor, compute: Callable[[], Any]) -> Any:
        """What is computed of a tensor, the second time from memory: teacher and student see the same waveforms."""
        for name, known, value in self._found:
            if name == what and known is of:
                return value
        value = compute()
        self._found.append((what, of, value))
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
            # The public torch.nn.attention.varlen has no dropout, and costs the CPU 2 ms more in a step.
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
    heard, kept = np.array(samples), np.array(frames)
    slots = -(-heard // hop)
    padded_slots, longest = np.full_like(slots, padded // hop), np.full_like(kept, kept.max())
    filled, _ = _layout(slots, padded_slots)
    content, rectangle = _layout(kept, slots), _layout(kept, longest)
    owners, bounds = np.repeat(np.arange(len(slots)), slots), np.cumsum([0, *kept])
    parts = heard, bounds, filled, np.cumsum(slots), owners, *content, *rectangle
    lengths, bounds, filled, ends, owners, *layouts = _sent(parts, device)
    return Packing(
        lengths.long(),
        bounds,
        int(kept.max()),
        filled,
        int(padded_slots.sum()),
        ends,
        owners,
        Layout(*layouts[:2]),
        Layout(*layouts[2:]),
    )


def _layout(kept: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A layout's two parts: the first ``kept`` rows (B,) of each utterance, which has ``of`` (B,) of them."""
    starts, firsts = np.cumsum(of) - of, np.cumsum(kept) - kept
    there = np.arange(kept.sum()) + np.repeat(starts - firsts, kept)
    back = np.full(of.sum(), -1)
    back[there] = np.arange(len(there))
    return there, back


def _sent(parts: Sequence[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """As int32 on the device. In one piece: to a GPU the smallest copy, or kernel, is as long as one a thousand times
    its size."""
    sizes = [len(part) for part in parts]
    whole = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    np.concatenate(parts, out=whole.numpy(), casting="unsafe")
    return whole.to(device, non_blocking=True).split(sizes)
