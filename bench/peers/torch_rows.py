"""Times rows of PyTorch on the CPU and writes them in Google Benchmark's JSON format.

Knows --benchmark_filter and --benchmark_min_time, and ignores Google Benchmark's other flags. Without PyTorch it
writes nothing.
"""

import argparse
import json
import os
import re
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("heed: no PyTorch for %s: its comparison is left out" % sys.executable)

ELEMENTS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
ALL_THREADS = [1] + [n for n in (2, 4, 8, 16) if n <= len(os.sched_getaffinity(0))]


def operands(element, heads, positions, dim, count=3):
    return [torch.randn(1, heads, positions, dim).to(ELEMENTS[element]) for _ in range(count)]


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


def main(description, rows):
    """Runs the rows, of which each is (name, threads, maker of a call, operations of a call or what
    counts them)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--benchmark_filter", default="")
    parser.add_argument("--benchmark_min_time", default="0.2")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    options, _ = parser.parse_known_args()
    chosen = re.compile("" if options.benchmark_filter == "all" else options.benchmark_filter)
    seconds = re.fullmatch(r"([0-9.]+)s?", options.benchmark_min_time)
    least = float(seconds.group(1)) if seconds else 0.2

    torch.set_grad_enabled(False)
    results = []
    for name, threads, make, operations in rows:
        if not chosen.search(name):
            continue
        torch.set_num_threads(threads)
        try:
            call = make()
            iterations, wall, processor = timed(call, threads, least)
        except (RuntimeError, MemoryError) as refusal:
            print(f"{name}: {(str(refusal) or repr(refusal)).splitlines()[0]}", file=sys.stderr)
            continue
        operations = operations() if callable(operations) else operations
        rate = operations / (processor if threads == 1 else wall)
        print(f"{name:<76} {wall * 1e3:9.2f} ms {processor * 1e3:9.2f} ms {rate * 1e-9:9.1f} GFLOP/s", flush=True)
        results.append({"name": name, "run_name": name, "run_type": "iteration", "iterations": iterations,
                        "real_time": wall * 1e3, "cpu_time": processor * 1e3, "time_unit": "ms",
                        "flops": rate})
    with open(options.out, "w") as file:
        json.dump({"context": {"torch": torch.__version__}, "benchmarks": results}, file, indent=1)
