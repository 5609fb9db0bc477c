#!/usr/bin/env python3
"""Times PyTorch's scaled_dot_product_attention on the CPU at the sizes of heed_bench.

Writes rows peer/torch_sdpa/... in Google Benchmark's JSON format. Knows --benchmark_filter and
--benchmark_min_time, and ignores Google Benchmark's other flags. Without PyTorch it writes nothing.
"""

import argparse
import json
import os
import re
import sys
import time

try:
    import torch
    from torch.nn.functional import scaled_dot_product_attention
except ImportError:
    sys.exit("heed: no PyTorch for %s: its comparison is left out" % sys.executable)

ELEMENTS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
ALL_THREADS = [1] + [n for n in (2, 4, 8, 16) if n <= len(os.sched_getaffinity(0))]
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


def operands(element, heads, positions, dim, count=3):
    return [torch.randn(1, heads, positions, dim).to(ELEMENTS[element]) for _ in range(count)]


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


def timed(call, threads, least):
    """Iterations, and seconds of each by the clock on the wall and by the processor's."""
    call()
    iterations, start, processor_start = 0, time.perf_counter(), time.thread_time()
    while True:
        call()
        iterations += 1
        wall = time.perf_counter() - start
        processor = time.thread_time() - processor_start
        if (processor if threads == 1 else wall) >= least or wall > 10 * least + 1:
            return iterations, wall / iterations, processor / iterations


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmark_filter", default="")
    parser.add_argument("--benchmark_min_time", default="0.2")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    options, _ = parser.parse_known_args()
    chosen = re.compile("" if options.benchmark_filter == "all" else options.benchmark_filter)
    seconds = re.fullmatch(r"([0-9.]+)s?", options.benchmark_min_time)
    least = float(seconds.group(1)) if seconds else 0.2

    torch.set_grad_enabled(False)
    results = []
    for name, threads, make, operations in rows():
        name = "peer/torch_sdpa/" + name
        if not chosen.search(name):
            continue
        torch.set_num_threads(threads)
        try:
            call = make()
            iterations, wall, processor = timed(call, threads, least)
        except RuntimeError as refusal:
            print(f"{name}: {refusal}", file=sys.stderr)
            continue
        rate = operations / (processor if threads == 1 else wall)
        print(f"{name:<76} {wall * 1e3:9.2f} ms {processor * 1e3:9.2f} ms {rate * 1e-9:9.1f} GFLOP/s", flush=True)
        results.append({"name": name, "run_name": name, "run_type": "iteration", "iterations": iterations,
                        "real_time": wall * 1e3, "cpu_time": processor * 1e3, "time_unit": "ms",
                        "flops": rate})
    with open(options.out, "w") as file:
        json.dump({"context": {"torch": torch.__version__}, "benchmarks": results}, file, indent=1)


main()
