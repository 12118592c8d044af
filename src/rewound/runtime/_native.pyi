"""The Python face of the native module (csrc/bind.cc): instruction sets, and programs that the planner builds call by call.

A ``Program`` is a list of operators over one arena of float32. It is built by its methods, each of which checks what it is
given and raises ``ValueError`` (the program is then as it was before the call); ``run`` freezes it. Nothing that these
methods accept can read or write outside the arena, the constants and the arrays of a run, whatever the numbers: the
descriptors may come from a file that nobody trusts.

Values are numbered from 0 in the order of the calls. A value of the arena is planar (csrc/planes.h): element
(channel, image, y, x) stands ``channel * stride + image * plane + lead + y * pitch + x`` floats after the value's first, and
everything else in it is zero, as are ``lead`` floats after the last channel. Every operator but ``copy`` and ``fill`` writes
the whole value that it is given as ``y``, guards included; in front of a ``copy`` into a value with guards call ``clear``.
The input of an elementwise operator (unary, affine, scalar, binary) may be its output or stand in the very same place;
every other overlap of what an operator reads and what it writes is the planner's mistake (wrong numbers, never a crash).

"Array" below is a C-contiguous numpy array of the dtype named; arrays are copied (or packed) during the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]
# A weight: dense, [out, in / groups, kh, kw] or [out, in]; or its survivors (starts int64 [out + 1], places int32, values),
# the fields of weights.Sparse.
NativeWeight: TypeAlias = Floats | tuple[NDArray[np.int64], NDArray[np.int32], Floats]
# As in a Graph: ["relu"], ["clamp", lo, hi], ["leaky_relu", slope], ["elu", alpha], ["gelu"], ... see activations().
NativeActivation: TypeAlias = Sequence[Any] | None
# (channels, images, height, width, pitch, lead, plane, stride)
Geometry: TypeAlias = tuple[int, int, int, int, int, int, int, int]
BinaryKind: TypeAlias = Literal["add", "sub", "mul", "div", "maximum", "minimum", "pow"]

def instruction_set() -> str:
    """Name of the kernels in use by programs made from now on."""

def instruction_sets() -> list[str]:
    """Names of the kernels that this machine can run, the best last."""

def use_instruction_set(name: str) -> None:
    """Use other kernels for programs made from now on (for tests)."""

def use_task_size(floats: int) -> None:
    """Split operators added from now on into tasks of about so many floats; 16384 at first (for tests)."""

def lanes() -> int:
    """Floats in a vector register of the kernels in use."""

def activations() -> list[str]:
    """Names of the activations that the native operators know."""

def decode_bitmap(
    bytes: Bytes, rows: int, row: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """starts and places of ``count`` survivors, a bit for each weight. ValueError says what is wrong with the bytes."""

def decode_deltas(
    bytes: Bytes, bits: int, rows: int, row: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """starts and places from the gaps between survivors (see csrc/decode.h)."""

def decode_codes(bytes: Bytes, bits: int, codebook: Floats, count: int) -> Floats:
    """``count`` values from their indices into a codebook."""

SLACK: int
"""Zeroed floats before and after the arena, for vector reads whose results are masked."""

class Program:
    def __init__(
        self, arena: int, inputs: Sequence[tuple[str, int]] = (), outputs: Sequence[tuple[str, int]] = ()
    ) -> None:
        """arena: floats. inputs, outputs: (dtype, elements of one group of images); dtype "float32", or "int64" for
        inputs of ``embedding``."""

    # -- values ---------------------------------------------------------------------------------------------------------
    def value(
        self,
        offset: int,
        channels: int,
        images: int,
        height: int,
        width: int,
        pitch: int,
        lead: int,
        plane: int,
        stride: int,
    ) -> int:
        """A value of the arena: channels * stride + lead floats from ``offset`` (a multiple of 16) on. Asked of it:
        pitch >= width, plane >= lead + height * pitch (height * width where images are the pixels: height = width =
        pitch = plane = 1, lead = 0), stride >= images * plane."""

    def constant(self, array: Floats, geometry: Geometry) -> int:
        """A value that operators read only, its own memory; ``array``: all of its channels * stride + lead floats."""

    def input(
        self,
        index: int,
        offset: int,
        channels: int,
        images: int,
        height: int,
        width: int,
        pitch: int,
        plane: int,
        stride: int,
    ) -> int:
        """A user's array as a value to read, lead 0, strides as they come ([N, C, H, W]: plane = C*H*W, stride = H*W).
        conv, matvec and attention do not take it, the other operators do."""

    def output(
        self,
        index: int,
        offset: int,
        channels: int,
        images: int,
        height: int,
        width: int,
        pitch: int,
        plane: int,
        stride: int,
    ) -> int:
        """A user's array as a value to write: has no guards. conv, matvec and attention do not take it."""

    # -- products with weights ------------------------------------------------------------------------------------------
    def conv(
        self,
        x: int,
        y: int,
        weight: NativeWeight,
        shape: tuple[int, int, int, int],
        bias: Floats | None = None,
        residual: int | None = None,
        groups: int = 1,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        activation: NativeActivation = None,
        schedule: Sequence[int] | None = None,
        name: str = "",
    ) -> None:
        """y = activation(conv(x, weight) + bias + residual). shape: [out, in / groups, kh, kw]. padding: top, left (what
        lies at the bottom and right follows from y's size). With a stride, x is the value of phase planes that ``phases``
        wrote. A linear layer over tokens or a batch is a 1x1 convolution. The guards of x must be as wide as the taps reach
        and 1-D convolutions are 1 x k. residual: a value of y's geometry, may be y's memory. schedule: None chooses by a
        cost model; or the numbers that ``operators`` gives."""

    def matvec(
        self,
        x: int,
        y: int,
        weight: NativeWeight,
        shape: tuple[int, int],
        bias: Floats | None = None,
        residual: int | None = None,
        activation: NativeActivation = None,
        name: str = "",
    ) -> None:
        """A linear layer of one vector: x and y are values of one pixel in one image with stride 1."""

    # -- moving ---------------------------------------------------------------------------------------------------------
    def phases(
        self, x: int, y: int, stride: tuple[int, int], padding: tuple[int, int] = (0, 0), name: str = ""
    ) -> None:
        """y[c*sh*sw + py*sw + px][v][u] = x[c][v*sh + py - top][u*sw + px - left], zero outside x."""

    def copy(
        self,
        source: int,
        target: int,
        sizes: Sequence[int],
        source_strides: Sequence[int],
        target_strides: Sequence[int],
        source_start: int = 0,
        target_start: int = 0,
        name: str = "",
    ) -> None:
        """Move elements: up to 8 axes; starts and strides in floats from the value's first (a value's own: without its
        lead). Strides of the source may be 0 or negative, those of the target not 0. Guards are not touched."""

    def clear(self, value: int, everything: bool = False, name: str = "") -> None:
        """Zero a value's guards, or all of it."""

    def fill(self, value: int, number: float, name: str = "") -> None:
        """Set every pixel; guards are zeroed."""

    # -- elementwise ----------------------------------------------------------------------------------------------------
    def unary(self, x: int, y: int, activation: NativeActivation, name: str = "") -> None:
        """y = activation(x); with None a copy between two layouts (such as a user's array and the arena)."""

    def affine(
        self,
        x: int,
        y: int,
        scale: Floats | None,
        shift: Floats | None,
        activation: NativeActivation = None,
        name: str = "",
    ) -> None:
        """y = activation(x * scale[channel] + shift[channel])."""

    def scalar(
        self,
        x: int,
        y: int,
        kind: BinaryKind,
        number: float,
        reverse: bool = False,
        activation: NativeActivation = None,
        name: str = "",
    ) -> None:
        """y = activation(x kind number), or number kind x."""

    def binary(
        self, a: int, b: int, y: int, kind: BinaryKind, activation: NativeActivation = None, name: str = ""
    ) -> None:
        """y = activation(a kind b). Channels, images, height and width of a and b are y's or 1 (broadcast)."""

    # -- over pixels or channels ----------------------------------------------------------------------------------------
    def pool(
        self,
        x: int,
        y: int,
        kind: Literal["max", "mean"],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        count_padding: bool = True,
        dilation: tuple[int, int] = (1, 1),
        name: str = "",
    ) -> None:
        """padding: top, left, bottom, right; y's size says whether windows that stick out (ceil) are counted; for a mean
        with count_padding the divisor is the window cut at the padded size, as in torch."""

    def adaptive_pool(self, x: int, y: int, kind: Literal["max", "mean"], name: str = "") -> None:
        """Cell i of n covers floor(i * size / n) up to ceil((i + 1) * size / n). y of 1 x 1: the whole plane."""

    def reduce(self, x: int, y: int, kind: Literal["mean", "sum", "max", "min"], name: str = "") -> None:
        """Over the axes that are 1 in y: height, width; and over x.channels / y.channels neighbouring channels."""

    def norm(
        self,
        x: int,
        y: int,
        groups: int,
        pixels: bool,
        rms: bool,
        eps: float,
        scale: Floats | None = None,
        shift: Floats | None = None,
        name: str = "",
    ) -> None:
        """(x - mean) / sqrt(variance + eps) * scale[channel] + shift[channel] over each of ``groups`` groups of neighbouring
        channels; pixels: over the pixels of an image too (group and instance norm), else for each pixel by itself (layer
        norm of a feature axis that is the channels). rms: x / sqrt(mean(x^2) + eps)."""

    def softmax(
        self,
        x: int,
        y: int,
        over: Literal["channels", "rows", "planes"],
        groups: int = 1,
        log: bool = False,
        name: str = "",
    ) -> None:
        """over channels: each pixel, within each of ``groups`` groups of neighbouring channels; rows: over the width;
        planes: over height and width."""

    def attention(
        self,
        q: int,
        k: int,
        v: int,
        y: int,
        heads: int,
        kv_heads: int,
        scale: float,
        causal: bool = False,
        mask: int | None = None,
        name: str = "",
    ) -> None:
        """softmax(q^T k * scale + mask) v for each head. q: [heads * d][images][1 x T], k: [kv_heads * d][images][1 x S],
        v: [kv_heads * e][images][1 x S], y: [heads * e][images][1 x T]. mask: added; channels heads or 1, images N or 1,
        height T or 1, width S. causal: query t sees keys up to t (as torch: counted from the upper left corner)."""

    def matmul(
        self,
        a: int,
        b: int,
        y: int,
        sizes: tuple[int, int, int],
        a_strides: tuple[int, int],
        b_strides: tuple[int, int],
        y_strides: tuple[int, int],
        batch: Sequence[int] = (),
        a_batch: Sequence[int] = (),
        b_batch: Sequence[int] = (),
        y_batch: Sequence[int] = (),
        starts: tuple[int, int, int] = (0, 0, 0),
        factor: float = 1.0,
        name: str = "",
    ) -> None:
        """y[m, n] = factor * sum_k a[m, k] b[k, n] for every index of up to 4 batch axes; sizes: m, n, k; strides in floats:
        of a (m, k), of b (k, n), of y (m, n); starts from each value's first float. Guards of y are not touched."""

    def embedding(
        self,
        index: int,
        y: int,
        table: Floats,
        offset: int = 0,
        image_stride: int = 0,
        row_stride: int = 0,
        pixel_stride: int = 1,
        name: str = "",
    ) -> None:
        """y[f][i][v][u] = table[ids[offset + i * image_stride + v * row_stride + u * pixel_stride]][f]; ids: the int64
        input ``index``. An id outside the table is an IndexError of ``run``."""

    def upsample(
        self,
        x: int,
        y: int,
        mode: Literal["nearest", "bilinear"],
        align_corners: bool = False,
        scale: tuple[float, float] | None = None,
        name: str = "",
    ) -> None:
        """To y's size as torch does it; scale: the scale_factor (height, width) where the user gave one."""

    # -- running --------------------------------------------------------------------------------------------------------
    def run(
        self,
        inputs: Sequence[NDArray[Any]],
        outputs: Sequence[NDArray[Any]],
        groups: int = 1,
        threads: int = 1,
    ) -> None:
        """Run all operators once for each group of images. Arrays are C-contiguous, of the dtype given to the program and
        of groups x its elements, in any shape. Whole groups are given to threads, each with an arena of its own; what is
        left over is split within operators. The bits do not depend on threads. Releases the GIL; calls of one program from
        several threads wait for each other. ValueError: arrays that do not fit; IndexError: an id outside its table."""

    def profile(
        self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]], threads: int = 1
    ) -> list[int]:
        """Run one group and return the nanoseconds of each operator, in the order of the calls."""

    def operators(self) -> list[dict[str, Any]]:
        """For each operator: kind, name, tasks (parts that threads can take), bytes (weights and tables), and for products
        ``schedule`` (what was chosen) and ``macs`` (multiply-adds per group)."""

    def trim(self) -> None:
        """Give back the arenas and the threads; the next run makes them anew."""

    @property
    def instruction_set(self) -> str: ...
    @property
    def weight_bytes(self) -> int:
        """Memory of packed weights, tables and constants."""

    @property
    def arena_bytes(self) -> int:
        """Memory of one arena, slack included."""
