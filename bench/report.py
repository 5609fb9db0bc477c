#!/usr/bin/env python3
"""Writes report.md and report.svg into a folder, from Google Benchmark's JSON files: report.py FOLDER FILE..."""

import collections
import json
import pathlib
import sys
from xml.sax.saxutils import escape

Row = collections.namedtuple("Row", "time flops of_peak of_bandwidth relative")


def read(paths):
    """The context and the rows by name, of all files that hold any; the median where rows were repeated."""
    context, rows = {}, {}
    for path in paths:
        try:
            results = json.loads(pathlib.Path(path).read_text())
        except (OSError, ValueError):
            continue
        context.update(results["context"])
        for row in results["benchmarks"]:
            if row.get("error_occurred") or row.get("aggregate_name", "median") != "median":
                continue
            name = row["run_name"]
            to_seconds = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}[row["time_unit"]]
            time = row["cpu_time" if threads_of(name) == "1" else "real_time"] * to_seconds
            rows[name] = Row(time, *(row.get(key) for key in Row._fields[1:]))
    for name, row in rows.items():
        peak = context.get(f"fma_peak/{'f64' if '/f64/' in name else 'f32'}/threads:{threads_of(name)}")
        if row.of_peak is None and row.flops and peak:  # of a peer that does not know the peak
            rows[name] = row._replace(of_peak=row.flops / (float(peak) * 1e9))
    return context, rows


def threads_of(name):
    return name.rpartition("threads:")[2]


def peers_of(name, rows):
    """What others did at the same sizes: {peer: how many times as fast as it the row is}."""
    family, _, sizes = name.partition("/")
    mine, ratios = rows[name], {}
    for other, row in rows.items():
        parts = other.split("/", 2)
        if parts[0] != "peer" or parts[2] != sizes:
            continue
        for share in ("of_bandwidth", "of_peak"):  # shares of what was measured in the same moment, if they are there
            a, b = getattr(mine, share), getattr(row, share)
            if a and b:
                ratios[parts[1]] = a / b
                break
        else:
            ratios[parts[1]] = row.time / mine.time
    return ratios


# --- The tables ---------------------------------------------------------------------------------------------------


def percent(share):
    return "" if share is None else f"{100 * share:.0f} %"


def milliseconds(time):
    return f"{time * 1e3:.3g} ms" if time < 0.9995 else f"{time:.2f} s"


def cells(name, rows):
    row = rows[name]
    ratios = peers_of(name, rows)
    best = min(ratios, key=ratios.get) if ratios else None
    return {
        "time": milliseconds(row.time),
        "GFLOP/s": "" if row.flops is None else f"{row.flops * 1e-9:.1f}",
        "of peak": percent(row.of_peak),
        "of bandwidth": percent(row.of_bandwidth),
        "relative": "" if row.relative is None else f"{row.relative:.2f} ×",
        "best peer": "" if best is None else f"{ratios[best]:.2f} × {best}",
    }


def tables(rows):
    sections = collections.defaultdict(list)
    for name in rows:
        family, verb = name.split("/")[:2] if not name.startswith("peer/") else ("peer", name.split("/")[1])
        sections[f"{family}/{verb}"].append(name)
    for section in sorted(sections, key=lambda s: (s.startswith("peer/"), s.partition("/")[2] != "forward")):
        names = sections[section]
        lines = {name.removeprefix(section + "/"): cells(name, rows) for name in names}
        columns = [c for c in next(iter(lines.values())) if any(line[c] for line in lines.values())]
        yield f"\n## {section}\n"
        yield "| " + " | ".join(["row", *columns]) + " |"
        yield "| --- |" + " ---: |" * len(columns)
        for name, line in lines.items():
            yield "| " + " | ".join([f"`{name}`", *(line[c] for c in columns)]) + " |"


def machine(context):
    yield f"- processor: {context.get('processor', 'unknown')}, {context.get('num_cpus', '?')} logical"
    caches = [f"L{c['level']} {c['type'].lower()} {c['size'] >> 10} KiB" for c in context.get("caches", [])]
    if caches:
        yield "- caches: " + ", ".join(caches)
    yield f"- compiler: {context.get('compiler', 'unknown')}, instructions: {context.get('instructions', 'unknown')}"
    for library in ("openblas", "torch"):
        if library in context:
            yield f"- {library}: {context[library]}"
    yield f"- date: {context.get('date', 'unknown')}, load at the start: {context.get('load_avg', '?')}"
    counts = sorted((int(threads_of(key)) for key in context if key.startswith("fma_peak/f32/")))
    if counts:
        yield "\n| threads | FMA peak, float | FMA peak, double | read bandwidth |"
        yield "| ---: | ---: | ---: | ---: |"
    for count in counts:
        values = [float(context[f"{key}/threads:{count}"]) for key in ("fma_peak/f32", "fma_peak/f64", "read_bandwidth")]
        yield "| {} | {:.1f} GFLOP/s | {:.1f} GFLOP/s | {:.1f} GB/s |".format(count, *values)


READING = """
Times are of the processor on one thread and of the clock on the wall on several. *of peak* and *of bandwidth* are
shares of the ceilings measured beside each row, not of those above. *relative* is how many times as fast a row is as
what it is held against in turns: several threads against one, other elements against float, scores with something
on top against none, the layout `bnhd` against [batch, head, position, dim]. *best peer* is how many times as fast it
is as the fastest of the others at the same sizes."""


# --- The plot -----------------------------------------------------------------------------------------------------

PEERS = {"torch_sdpa": "#2f9e8f", "openblas_gemm": "#4a7fd4", "eigen_gemm": "#9a6dd7", "ggml_style": "#8a8f98"}
COLOURS = {"heed": "#e8590c", **PEERS}
PANEL_WIDTH, PANEL_HEIGHT, PLOT_HEIGHT, MARGIN = 440, 220, 140, 44

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px } .small { font-size: 10px }
.axis { stroke: #24292f; stroke-opacity: .25 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .axis { stroke: #e6edf3 } }
"""


def panels():
    """(title, share, [(label, sizes)]) of each panel."""
    for dim in (64, 128):
        for causal, pattern in enumerate(("no mask", "causal")):
            yield (f"forward, D = {dim}, {pattern}: share of FMA peak", "of_peak",
                   [(f"N = {n}", f"forward/f32/D:{dim}/N:{n}/H:8/causal:{causal}/threads:1")
                    for n in (512, 2048, 8192)])
    yield ("backward, N = 2048: share of FMA peak", "of_peak",
           [(f"D = {dim}{pattern}", f"backward/f32/D:{dim}/N:2048/H:8/causal:{causal}/threads:1")
            for dim in (64, 128) for causal, pattern in enumerate(("", " causal"))])
    yield ("decode, D = 128, M = 65536: share of bandwidth", "of_bandwidth",
           [(element, f"decode/{element}/D:128/M:65536/H:8/threads:1") for element in ("f32", "f16", "bf16")])


def panel(title, share, groups, rows):
    """The panel's elements, or none if heed has no row in it."""
    def value(name, sizes):
        row = rows.get(("softmax/" if name == "heed" else f"peer/{name}/") + sizes)
        if row is None:
            return None
        if share == "of_bandwidth" and row.of_bandwidth is None:  # as many bytes as heed's row
            mine = rows["softmax/" + sizes]
            return mine.of_bandwidth * mine.time / row.time
        return getattr(row, share)

    groups = [(label, sizes) for label, sizes in groups if "softmax/" + sizes in rows]
    if not groups:
        return []
    drawn = [f'<text class="title" x="{MARGIN}" y="18">{escape(title)}</text>']
    base, height = 34 + PLOT_HEIGHT, PLOT_HEIGHT
    for tick in (0, 25, 50, 75, 100):
        y = base - height * tick / 100
        drawn.append(f'<line class="axis" x1="{MARGIN}" x2="{PANEL_WIDTH - 16}" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text class="small" x="{MARGIN - 6}" y="{y + 3}" text-anchor="end">{tick} %</text>')
    step = (PANEL_WIDTH - MARGIN - 16) / len(groups)
    for i, (label, sizes) in enumerate(groups):
        bars = [(name, v) for name in COLOURS if (v := value(name, sizes)) is not None]
        width = min(28, (step - 16) / len(bars))
        left = MARGIN + step * (i + 0.5) - width * len(bars) / 2
        for j, (name, v) in enumerate(bars):
            x, h = left + j * width, height * min(v, 1.1)
            drawn.append(f'<rect x="{x:.1f}" y="{base - h:.1f}" width="{width - 2:.1f}" height="{h:.1f}" '
                         f'fill="{COLOURS[name]}"><title>{name} {escape(label)}: {percent(v)}</title></rect>')
            drawn.append(f'<text class="small" x="{x + width / 2 - 1:.1f}" y="{base - h - 3:.1f}" '
                         f'text-anchor="middle">{100 * v:.0f}</text>')
        drawn.append(f'<text x="{MARGIN + step * (i + 0.5):.1f}" y="{base + 18}" '
                     f'text-anchor="middle">{escape(label)}</text>')
    return drawn


def plot(rows):
    """The drawing, or None if the run had none of its rows."""
    drawn = [p for p in (panel(*description, rows) for description in panels()) if p]
    if not drawn:
        return None
    width = PANEL_WIDTH * min(2, len(drawn))
    height = 36 + PANEL_HEIGHT * ((len(drawn) + 1) // 2)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}">', f"<style>{STYLE}</style>"]
    x = MARGIN
    for name, colour in COLOURS.items():
        if name == "heed" or any(row.startswith(f"peer/{name}/") for row in rows):
            lines.append(f'<rect x="{x}" y="10" width="12" height="12" fill="{colour}"/>'
                         f'<text x="{x + 17}" y="20">{name}</text>')
            x += 45 + 7 * len(name)
    for i, elements in enumerate(drawn):
        lines.append(f'<g transform="translate({PANEL_WIDTH * (i % 2)} {36 + PANEL_HEIGHT * (i // 2)})">')
        lines += elements + ["</g>"]
    return "\n".join(lines + ["</svg>", ""])


def main():
    folder, files = pathlib.Path(sys.argv[1]), sys.argv[2:]
    context, rows = read(files)
    if not rows:
        return
    drawing = plot(rows)
    lines = ["# Benchmarks", "", *machine(context), READING]
    if drawing:
        (folder / "report.svg").write_text(drawing)
        lines += ["", "![Shares of the ceilings, on one thread](report.svg)"]
    lines += tables(rows)
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    print(f"heed: the report is {folder / 'report.md'}", file=sys.stderr)


main()
