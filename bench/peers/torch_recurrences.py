#!/usr/bin/env python3
"""Times recurrences written with PyTorch on the CPU at the sizes of heed_bench: token by token, and in chunks of 64.

Writes rows peer/torch_tokens/... and peer/torch_chunks/... in Google Benchmark's JSON format; torch_rows.py says more.
"""

import torch_rows

import torch

HEADS, TOKENS, CHUNK = 8, 4096, 64


def operands(dim, rule):
    q, k, v = (torch.randn(HEADS, TOKENS, dim) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    gate = -0.05 * torch.randn(HEADS, TOKENS, dim if rule == "key_decay" else 1).abs()
    if rule in ("plain", "delta"):
        gate = torch.zeros(HEADS, TOKENS, 1)
    return q, k, v, gate, torch.rand(HEADS, TOKENS, 1)


def by_tokens(dim, rule):
    q, k, v, gate, rate = operands(dim, rule)
    erases = rule.endswith("delta")

    def call():
        state, out, fade = torch.zeros(HEADS, dim, dim), torch.empty_like(v), gate.exp()
        for t in range(TOKENS):
            state = state * fade[:, t, :, None]
            written = v[:, t]
            if erases:
                written = rate[:, t] * (written - torch.einsum("hd,hde->he", k[:, t], state))
            state = state + k[:, t, :, None] * written[:, None]
            out[:, t] = torch.einsum("hd,hde->he", q[:, t], state)
        return out

    return call


def by_chunks(dim, rule):
    parts = [x.view(HEADS, TOKENS // CHUNK, CHUNK, -1) for x in operands(dim, rule)]
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()

    def call():
        q, k, v, gate, rate = parts
        sums = gate.cumsum(2)
        from_start, to_end = sums.exp(), (sums[:, :, -1:] - sums).exp()
        if rule == "key_decay":  # what is nearest to one product: gates this weak do not overflow within a chunk
            scores = (q * from_start) @ (k * (-sums).exp()).transpose(2, 3) * lower
        else:
            fade = (sums - sums.transpose(2, 3)).masked_fill(~lower, -torch.inf).exp()
            scores = (q @ k.transpose(2, 3)) * fade
        erases = rule.endswith("delta")
        if erases:
            system = ((k * rate) @ k.transpose(2, 3) * fade).tril(-1) + torch.eye(CHUNK)
            seen = torch.linalg.solve_triangular(
                system, torch.cat((rate * v, rate * from_start * k), -1), upper=False, unitriangular=True)
            v, seen = seen[..., :dim], seen[..., dim:]
        state, outs = torch.zeros(HEADS, dim, dim), []
        for c in range(TOKENS // CHUNK):
            written = v[:, c] - seen[:, c] @ state if erases else v[:, c]
            outs.append(scores[:, c] @ written + (q[:, c] * from_start[:, c]) @ state)
            state = state * from_start[:, c, -1, :, None] + (k[:, c] * to_end[:, c]).transpose(1, 2) @ written
        return torch.stack(outs, 1)

    return call


def rows():
    """Yields (name, threads, maker of a call, operations of a call)."""
    for rule in ("plain", "decay", "key_decay", "delta", "gated_delta"):
        for dim in (64, 128):
            count = 6 * dim * dim + 4 * CHUNK * dim if "delta" in rule else 4 * dim * dim + 2 * (CHUNK + 1) * dim
            for way, make in (("tokens", by_tokens), ("chunks", by_chunks)):
                yield (f"peer/torch_{way}/forward/rule:{rule}/D:{dim}/N:{TOKENS}/H:{HEADS}/threads:1", 1,
                       lambda m=make, d=dim, r=rule: m(d, r), HEADS * TOKENS * count)


torch_rows.main(__doc__, rows())
