#!/usr/bin/env python3
"""Times PyTorch on the CPU at patterns known before the content: windows, neighborhoods, blocks.

Three ways, as rows peer/torch_.../... in Google Benchmark's JSON format (torch_rows.py says more):
  torch_mask         scaled_dot_product_attention with a boolean mask of all pairs
  torch_flex         FlexAttention, compiled, with a block mask
  torch_flex_tiles   the same with the tokens of a grid in the order of tiles, which is not part of the time
Windows of 49 tokens are a batch to torch_sdpa, and need no mask.
"""

import os
import sys

import torch_rows
from torch_rows import ALL_THREADS

import torch
from torch.nn.functional import scaled_dot_product_attention

THREADS = sorted({1, ALL_THREADS[-1]})
GRID, TILE = 112, (8, 16)


class Pattern:
    """Which keys a query meets: keep(queries, keys) on tensors of token indices."""

    def __init__(self, name, tokens, dim, heads, keep, block=128):
        self.name, self.tokens, self.dim, self.heads = name, tokens, dim, heads
        self.keep, self.block = keep, block

    def row(self, threads):
        return f"{self.name}/f32/D:{self.dim}/N:{self.tokens}/H:{self.heads}/threads:{threads}"

    def strips(self):
        """The mask of all pairs, `block` queries at a time."""
        keys = torch.arange(self.tokens)[None, :]
        for first in range(0, self.tokens, self.block):
            queries = torch.arange(first, min(first + self.block, self.tokens))[:, None]
            yield self.keep(queries, keys).expand(len(queries), self.tokens)

    def operations(self):
        return 4 * sum(int(strip.sum()) for strip in self.strips()) * self.heads * self.dim


def window(width):
    return Pattern(f"window/{width}", 16384, 64, 8, lambda q, k: (k <= q) & (k > q - width))


def block_sparse(side, tokens=4096, density=0.1):
    """The diagonal, and other blocks drawn at random up to the density, for all heads."""
    count = tokens // side
    table = torch.eye(count, dtype=torch.bool)
    others = (~table).flatten().nonzero().flatten()
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(1))
    table.view(-1)[others[drawn[:round(density * count * count) - count]]] = True
    return Pattern(f"block_sparse/{side}", tokens, 64, 8, lambda q, k: table[q // side, k // side], side)


def neighborhood(width, tiles=False):
    token = torch.arange(GRID * GRID)
    y, x = token // GRID, token % GRID
    if tiles:
        height, across = TILE
        tile, inside = token // (height * across), token % (height * across)
        y = tile // (GRID // across) * height + inside // across
        x = tile % (GRID // across) * across + inside % across
    # Looked up, as to divide for each pair takes half as long again.
    top, left = ((of - width // 2).clamp(0, GRID - width) for of in (y, x))

    def keep(q, k):
        down, right = y[k] - top[q], x[k] - left[q]
        return (down >= 0) & (down < width) & (right >= 0) & (right < width)

    return Pattern(f"neighborhood/{width}x{width}", GRID * GRID, 32, 4, keep)


def windows(side):
    """Tokens in the order of windows."""
    window_of = torch.arange(GRID * GRID) // side**2
    return Pattern(f"windows/{side}x{side}", GRID * GRID, 32, 4, lambda q, k: window_of[q] == window_of[k])


def operands(pattern):
    return torch_rows.operands("f32", pattern.heads, pattern.tokens, pattern.dim)


def with_mask(pattern):
    # PyTorch makes a float of each boolean.
    needed, available = 5 * pattern.tokens**2, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.8 * available:
        raise MemoryError(f"a mask of all pairs takes {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free")
    mask = torch.cat(list(pattern.strips()))
    q, k, v = operands(pattern)
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def with_windows_as_batch(side):
    pattern = windows(side)
    shape = (pattern.tokens // side**2, pattern.heads, side**2, pattern.dim)
    q, k, v = (torch.randn(shape) for _ in range(3))
    return lambda: scaled_dot_product_attention(q, k, v)


def block_mask(pattern):
    """From strips, as create_block_mask would hold several integers for each pair of tokens."""
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-pattern.tokens // pattern.block)
    some, full = (torch.zeros(count, count, dtype=torch.bool) for _ in range(2))
    for row, strip in enumerate(pattern.strips()):
        columns = strip.view(len(strip), count, pattern.block).transpose(0, 1).flatten(1)
        full[row] = columns.all(1)
        some[row] = columns.any(1) & ~full[row]

    def lists(table):
        chosen = table.sort(dim=1, descending=True, stable=True).indices
        return table.sum(1).to(torch.int32)[None, None], chosen.to(torch.int32)[None, None]

    return BlockMask.from_kv_blocks(*lists(some), *lists(full), BLOCK_SIZE=pattern.block,
                                    mask_mod=lambda b, h, q, k: pattern.keep(q, k),
                                    seq_lengths=(pattern.tokens, pattern.tokens))


def with_flex(pattern):
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    mask = block_mask(pattern)
    q, k, v = operands(pattern)
    compiled(q, k, v, block_mask=mask)
    return lambda: compiled(q, k, v, block_mask=mask)


def flex_refusal():
    """Why FlexAttention cannot be compiled here, or None."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
        return f"PyTorch {torch.__version__} is older than 2.11"
    try:
        with_flex(Pattern("", 256, 32, 1, lambda q, k: k <= q))()
    except Exception as refusal:
        return str(refusal).strip().splitlines()[0]
    return None


def rows():
    """Yields (name, threads, maker of a call, operations of a call)."""
    plain = [window(512), window(128), block_sparse(64), *(neighborhood(width) for width in (7, 13, 31))]
    compiled = [("torch_flex", pattern) for pattern in (*plain, windows(7))]
    compiled += [("torch_flex_tiles", neighborhood(width, tiles=True)) for width in (7, 13, 31)]
    for threads in THREADS:
        for pattern in plain:
            yield (f"peer/torch_mask/{pattern.row(threads)}", threads,
                   lambda: with_mask(pattern), pattern.operations)
        yield (f"peer/torch_sdpa/{windows(7).row(threads)}", threads,
               lambda: with_windows_as_batch(7), windows(7).operations)
    torch.set_num_threads(1)
    if refusal := flex_refusal():
        print(f"heed: FlexAttention is left out: {refusal}", file=sys.stderr)
        return
    for threads in THREADS:
        for name, pattern in compiled:
            yield (f"peer/{name}/{pattern.row(threads)}", threads,
                   lambda: with_flex(pattern), pattern.operations)


torch_rows.main(__doc__, rows())
