"""What stands between int8 products on a CPU, one pass over each row: loops that numba compiles.

A product's integers become numbers, take bias and GELU, and become the next product's int8 while they are in the
nearest cache. They are compiled when first used, in some seconds, and kept on disk beside this file, or in numba's own
folder where that cannot be written. Arrays are of numpy, each of one row after the other. Import this where needed: it
brings numba.

The GELU's error function is Abramowitz and Stegun's formula 7.1.28, off by 3e-7 at most: it needs no exponential.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np

LARGEST = 127.0  # of an int8, the same on both sides of zero

# Sums may be reordered; NaN and infinity stay what they are.
_compiled = cast(Any, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}))


@_compiled
def windows_of_wave(wave, hop, weight, shift, kernel, stride, out, scales):
    """GELU of a convolution of a wave, in windows for the next convolution.

    Args:
        wave: (samples,) float32.
        hop: samples from one row to the next.
        weight: (taps, C) float32.
        shift: (C,) float32.
        kernel: rows of a window.
        stride: rows from one window to the next.
        out: (N, K) int8 for the windows, K >= kernel * C; what lies beyond is left as it is.
        scales: (N,) float32 for what a 1 stands for in each.
    """
    rows, sizes, done = np.empty((kernel, weight.shape[1]), np.float32), np.empty(kernel, np.int32), 0
    for n in range(len(out)):
        for r in range(max(done, n * stride), n * stride + kernel):
            row = rows[r % kernel]
            row[:] = shift
            for tap in range(len(weight)):
                _add(wave[r * hop + tap], weight[tap], row)
            _gelu(row)
            sizes[r % kernel] = _size(row)
        done = n * stride + kernel
        scales[n] = _window(rows, sizes, n * stride, out[n])


@_compiled
def windows_of_product(product, factors, columns, bias, gelu, kernel, stride, out, scales):
    """``product * factors[:, None] * columns + bias`` and its GELU, in windows as of :func:`windows_of_wave`.

    Args:
        product: (R, M) int32, R >= (N - 1) * stride + kernel, M >= C.
        factors: (R,) float32.
        columns: (C,) float32.
        bias: (C,) float32.
        gelu: whether there is one.
    """
    rows, sizes, done = np.empty((kernel, len(columns)), np.float32), np.empty(kernel, np.int32), 0
    for n in range(len(out)):
        for r in range(max(done, n * stride), n * stride + kernel):
            row = rows[r % kernel]
            _unscale(product[r], factors[r], columns, bias, row)
            if gelu:
                _gelu(row)
            sizes[r % kernel] = _size(row)
        done = n * stride + kernel
        scales[n] = _window(rows, sizes, n * stride, out[n])


@_compiled
def windows_of_rows(x, kernel, stride, out, scales):
    """(R, C) float32, in windows as of :func:`windows_of_wave`."""
    sizes, done = np.empty(kernel, np.int32), 0
    for n in range(len(out)):
        for r in range(max(done, n * stride), n * stride + kernel):
            sizes[r % kernel] = _size(x[r])
        done = n * stride + kernel
        scales[n] = _window(x[n * stride : done], sizes, 0, out[n])


@_compiled
def rows_of_product(product, factors, columns, bias, gelu, out):
    """As :func:`windows_of_product`, in float32: ``out`` (R, C)."""
    for r in range(len(out)):
        _unscale(product[r], factors[r], columns, bias, out[r])
        if gelu:
            _gelu(out[r])


@_compiled
def _add(x, weight, row):
    for c in range(len(row)):
        row[c] += x * weight[c]


@_compiled
def _unscale(product, factor, columns, bias, row):
    for c in range(len(row)):
        row[c] = np.float32(product[c]) * (factor * columns[c]) + bias[c]


@_compiled
def _gelu(row):
    for c in range(len(row)):
        x = row[c]
        size = abs(x)
        z = size * np.float32(0.7071067811865476)
        s = np.float32(0.0000430638) * z + np.float32(0.0002765672)
        s = (s * z + np.float32(0.0001520143)) * z + np.float32(0.0092705272)
        s = ((s * z + np.float32(0.0422820123)) * z + np.float32(0.0705230784)) * z + np.float32(1.0)
        s *= s
        s *= s
        s *= s
        s *= s
        row[c] = np.float32(0.5) * (x + size - size / s)


@_compiled
def _size(row):
    """Bits of the largest size in a row, above zero. Without the sign they are ordered as sizes are, NaN above all."""
    bits, largest = row.view(np.int32), np.int32(0x2B8CBCCC)  # 1e-12
    for c in range(len(bits)):
        largest = max(largest, np.int32(bits[c] & np.int32(0x7FFFFFFF)))
    return largest


@_compiled
def _window(rows, sizes, first, out):
    """Quantise the rows from ``first`` on, of a ring of them, with one scale, which is returned."""
    kernel, width = rows.shape
    largest = np.max(sizes[:kernel])
    bits = np.empty(1, np.int32)
    bits[0] = largest
    bound = bits.view(np.float32)[0]
    factor = np.float32(LARGEST) / bound
    for k in range(kernel):
        _quantise(rows[(first + k) % kernel], factor, out[k * width : (k + 1) * width])
    return bound / np.float32(LARGEST)


@_compiled
def _quantise(row, factor, out):
    for c in range(len(row)):
        out[c] = np.int8(np.int32(row[c] * factor + np.float32(128.5)) - np.int32(128))  # what is cut off is positive
