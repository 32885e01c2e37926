"""The GPU kernel of the first layer, run on the CPU by Triton's interpreter: a process of its own, for it is asked for
before Triton is imported. Compared with the same in plain torch."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from s3prl_distiller.upstream.distiller.fast.first_layer import windows_gelu

ROWS, TAPS, CHANNELS = 16, 16, 200  # channels that fill one program and part of another
SLOTS = [3, 9, 1, 4]  # of each utterance: programs of the backward pass that see one, two and three


def main(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    owners = torch.repeat_interleave(torch.arange(len(SLOTS), dtype=torch.int32), torch.tensor(SLOTS))
    windows = torch.randn(len(owners) * ROWS, TAPS).to(dtype)
    weight = torch.randn(len(SLOTS), TAPS, CHANNELS).to(dtype).requires_grad_()
    found = windows_gelu(windows, weight, owners, ROWS, dtype)
    each = weight.float()[owners.repeat_interleave(ROWS).long()]
    expected = F.gelu(torch.einsum("rk,rkc->rc", windows.float(), each))
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    direction = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((found * direction.to(dtype)).sum(), weight)
    (other,) = torch.autograd.grad((expected * direction).sum(), weight)
    torch.testing.assert_close(gradient.float(), other.float(), atol=10 * tolerance, rtol=tolerance)


if __name__ == "__main__":
    main(torch.float32, 1e-5)
    main(torch.float16, 4e-3)  # bfloat16 the interpreter does not multiply
    print("equal")
