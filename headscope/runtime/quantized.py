"""Keys and values in 8 or 4 bits: how numbers are written, packed and read back.

Numbers x of one token and head are written in groups (8 bits: the whole head; 4 bits: 32 numbers, the last group may be
shorter) as KIVI's asymmetric integers (2402.02750, equation 1), with zero and scale in float16:

    zero = float16(min x), scale = float16((max x - min x) / (2^bits - 1))
    q = clamp(round_half_even((x - zero) / scale), 0, 2^bits - 1), 0 where scale is 0
    read back: q * scale + zero

Example, 4 bits: of -1, 0, 2 the zero is -1 and the scale 3 / 15 = .2; q is 0, 5, 15. Two 4-bit numbers take a byte, the first
in its lower half: bytes 0x50, 0x0f.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from headscope.errors import NumberError
from headscope.policy import CODE_GROUP as GROUP, code_bytes, code_groups

BLOCK = 64  # slots that are read back at once


def quantize(numbers: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write numbers.

    Args:
        numbers: [..., D], any float dtype.
        bits: 8 or 4.

    Returns:
        codes uint8 [..., bytes], scale and zero float16 [..., groups]; what is not finite is so in scale or zero too.
    """
    size, groups, most = numbers.shape[-1], code_groups(numbers.shape[-1], bits), 2**bits - 1
    width = size if groups == 1 else GROUP
    numbers = numbers.float()
    if groups * width > size:  # the last number again changes no group's least and largest
        last = numbers[..., -1:].expand(*numbers.shape[:-1], groups * width - size)
        numbers = torch.cat([numbers, last], -1)
    grouped = numbers.view(*numbers.shape[:-1], groups, width)
    low, high = grouped.aminmax(dim=-1)
    zero, scale = low.half(), ((high - low) / most).half()
    step = scale.float()[..., None]
    codes = ((grouped - zero.float()[..., None]) / step).round_().clamp_(0, most).masked_fill_(step == 0, 0)
    codes = codes.to(torch.uint8).flatten(-2)[..., :size]
    return (codes if bits == 8 else _packed(codes)), scale, zero


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Read numbers back.

    Args:
        codes: uint8 [..., bytes] of `quantize`.
        scale: float16 [..., groups].
        zero: float16 [..., groups].
        size: numbers D of a head.
        dtype: to read them in.

    Returns:
        [..., D].
    """
    numbers = codes if codes.shape[-1] == size else _unpacked(codes)[..., :size]
    scale, zero = scale.float(), zero.float()
    if scale.shape[-1] > 1:
        scale, zero = (part.repeat_interleave(GROUP, -1)[..., :size] for part in (scale, zero))
    return torch.addcmul(zero, numbers.float(), scale).to(dtype)


def read_back(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Numbers as they are after writing and reading.

    Args:
        numbers: [..., D], any float dtype.
        bits: 8 or 4.

    Returns:
        [..., D] of that dtype.
    """
    return dequantize(*quantize(numbers, bits), numbers.shape[-1], numbers.dtype)


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit numbers a byte."""
    codes = pad(codes, (0, codes.shape[-1] % 2))
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _unpacked(codes: torch.Tensor) -> torch.Tensor:
    return torch.stack([codes & 15, codes >> 4], -1).flatten(-2)


class QuantizedSlots:
    """Slots of keys, or of values, of the image tokens of some heads.

    Args:
        like: [B, H, P, D] that give batch, head size, dtype and device.
        heads: of them.
        slots: to allocate.
        bits: 8 or 4.
    """

    def __init__(self, like: torch.Tensor, heads: int, slots: int, bits: int) -> None:
        self.bits, self.size, self.dtype = bits, like.shape[3], like.dtype
        self.work = torch.promote_types(like.dtype, torch.float32)  # of what is computed with codes
        shape = (like.shape[0], heads, slots)
        self.codes = torch.zeros(*shape, code_bytes(self.size, bits), dtype=torch.uint8, device=like.device)
        self.scale = torch.zeros(*shape, code_groups(self.size, bits), dtype=torch.float16, device=like.device)
        self.zero = torch.zeros_like(self.scale)

    def tensors(self) -> list[torch.Tensor]:
        """Everything allocated."""
        return [self.codes, self.scale, self.zero]

    def write(self, slot: int, numbers: torch.Tensor) -> None:
        """Numbers [B, h, n, D] into slots `slot` and on.

        Raises:
            NumberError: NaN, infinite, or too large for scales in float16.
        """
        written = quantize(numbers, self.bits)
        if not bool(torch.isfinite(written[1]).all() & torch.isfinite(written[2]).all()):
            raise NumberError("NaN, infinite, or beyond what a scale in float16 holds")
        for tensor, part in zip(self.tensors(), written, strict=True):
            tensor[:, :, slot : slot + part.shape[2]] = part

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Slots start .. stop - 1 as numbers [B, h, n, D]."""
        codes, scale, zero = (part[:, :, start:stop] for part in self.tensors())
        return dequantize(codes, scale, zero, self.size, self.dtype)

    def scores(self, query: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Products of queries [B, h, Q, D] with the numbers of slots start .. stop - 1: [B, h, Q, n].

        Scale and zero come after the product with the codes, q . (c * scale + zero) = (q . c) * scale + sum(q) * zero, so that
        codes are all that is turned into floats.
        """
        found: torch.Tensor | None = None
        for part, codes, scale, zero in self._groups(start, stop):
            asked = query[..., part]
            scored = (asked @ codes.transpose(2, 3)).mul_(scale).addcmul_(asked.sum(-1, keepdim=True), zero)
            found = scored if found is None else found.add_(scored)
        assert found is not None
        return found

    def weighed(self, weights: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Sums of the numbers of slots start .. stop - 1, weighed by [B, h, Q, n]: [B, h, Q, D]."""
        groups = self._groups(start, stop)
        parts = [(weights * scale) @ codes + (weights * zero).sum(-1, keepdim=True) for _, codes, scale, zero in groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def _groups(self, start: int, stop: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """By group of numbers: which they are, codes [B, h, n, width], scale and zero [B, h, 1, n], as floats."""
        codes, scale, zero = (part[:, :, start:stop] for part in self.tensors())
        numbers = (codes if self.bits == 8 else _unpacked(codes)[..., : self.size]).to(self.work)
        scale, zero = (part.to(self.work).transpose(2, 3) for part in (scale, zero))
        width = self.size if scale.shape[2] == 1 else GROUP
        for group in range(scale.shape[2]):
            part = slice(group * width, min((group + 1) * width, self.size))
            yield part, numbers[..., part], scale[:, :, group : group + 1], zero[:, :, group : group + 1]

    def as_read(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers [..., D] as they will be read back."""
        return dequantize(*quantize(numbers, self.bits), self.size, self.dtype)

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        self.codes, self.scale, self.zero = (part.index_select(0, rows) for part in self.tensors())

    def keep(self, staying: torch.Tensor) -> None:
        """Move slots int64 [B, h, n] to the front, in this order."""
        batch, heads, slots = self.codes.shape[:3]
        begin = torch.arange(0, batch * heads * slots, slots, device=staying.device)
        rows = (staying + begin.view(batch, heads, 1)).flatten()  # of each tensor seen as one table; whole rows copy fast
        for tensor in self.tensors():
            chosen = tensor.view(-1, tensor.shape[3]).index_select(0, rows)
            tensor[:, :, : staying.shape[2]] = chosen.view(*staying.shape, tensor.shape[3])

    def put(self, slots: torch.Tensor, source: int) -> None:
        """The slot `source` into slots int64 [B, h, 1]."""
        for tensor in self.tensors():
            index = slots[..., None].expand(-1, -1, -1, tensor.shape[3])
            tensor.scatter_(2, index, tensor[:, :, source : source + 1].clone())
