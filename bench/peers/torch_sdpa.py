#!/usr/bin/env python3
"""Times PyTorch's scaled_dot_product_attention on the CPU at the sizes of heed_bench.

Writes rows peer/torch_sdpa/... in Google Benchmark's JSON format; torch_rows.py says more.
"""

import torch_rows
from torch_rows import ALL_THREADS, ELEMENTS, operands

import torch
from torch.nn.functional import scaled_dot_product_attention

BEYOND_CACHE = 1 << 28


def rows():
    """Yields (name, threads, maker of a call, operations of a call)."""
    sizes = [("f32", dim, n, 8, 1) for dim in (64, 128) for n in (512, 2048, 8192)]
    sizes += [("bf16", dim, 2048, 8, 1) for dim in (64, 128)]
    sizes += [("f32", 64, n, 8, threads) for threads in ALL_THREADS[1:] for n in (2048, 8192)]
    sizes += [("f32", 64, 2048, 1, threads) for threads in ALL_THREADS[1:]]
    for element, dim, n, heads, threads in sizes:
        for causal in (0, 1):
            pairs = n * (n + 1) / 2 if causal else n * n
            shape = f"{element}/D:{dim}/N:{n}/H:{heads}/causal:{causal}/threads:{threads}"
            yield (f"forward/{shape}", threads,
                   lambda e=element, d=dim, n=n, h=heads, c=causal: forward(e, d, n, h, c),
                   4 * pairs * heads * dim)
            if n == 2048 and element == "f32":
                yield (f"backward/{shape}", threads,
                       lambda d=dim, n=n, h=heads, c=causal: backward(d, n, h, c),
                       10 * pairs * heads * dim)

    caches = [(element, dim, keys, 8, 8, 1)
              for dim in (64, 128) for keys in (8192, 65536) for element in ELEMENTS]
    caches += [("f16", 128, 65536, 8 * group, 8, 1) for group in (4, 8)]
    caches += [("f32", 128, 65536, 8, 8, threads) for threads in ALL_THREADS[1:]]
    for element, dim, keys, heads, key_heads, threads in caches:
        shared = f"/KV:{key_heads}" if key_heads != heads else ""
        yield (f"decode/{element}/D:{dim}/M:{keys}/H:{heads}{shared}/threads:{threads}", threads,
               lambda e=element, d=dim, m=keys, h=heads, k=key_heads: decode(e, d, m, h, k),
               4 * keys * heads * dim)


def forward(element, dim, n, heads, causal):
    q, k, v = operands(element, heads, n, dim)
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=bool(causal))


def backward(dim, n, heads, causal):
    q, k, v = (x.requires_grad_() for x in operands("f32", heads, n, dim))
    upstream = torch.randn(1, heads, n, dim)
    with torch.enable_grad():
        out = scaled_dot_product_attention(q, k, v, is_causal=bool(causal))
    return lambda: torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)


def decode(element, dim, keys, heads, key_heads):
    bytes_each = 2 * key_heads * keys * dim * (4 if element == "f32" else 2)
    caches = [operands(element, key_heads, keys, dim, 2) for _ in range(BEYOND_CACHE // bytes_each + 1)]
    query, = operands(element, heads, 1, dim, 1)
    turn = 0

    def step():
        nonlocal turn
        turn += 1
        k, v = caches[turn % len(caches)]
        scaled_dot_product_attention(query, k, v, enable_gqa=heads != key_heads)

    return step


torch_rows.main(__doc__, (("peer/torch_sdpa/" + name, *rest) for name, *rest in rows()))
