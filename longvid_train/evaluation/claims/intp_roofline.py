"""INTP (arXiv:2409.12963), Table 1: one decode step of Vicuna-7B by roofline, number by number as printed."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from longvid_train.cost.hardware import hardware
from longvid_train.cost.intp_table import A6000_BYTES_PER_S, ERRATA, PRINTED, TableRow, table_rows
from longvid_train.evaluation.charts import AFTER, MUTED, chart_style, figure_png
from longvid_train.evaluation.claims.claim import Check, ComputedClaim, Finding

TITLE = "INTP: Table 1, one decode step of Vicuna-7B at 8 to 128 frames"
CAPTION_DEVICE = "a100-80gb-sxm"
COLUMNS: dict[str, Callable[[TableRow], float]] = {
    "OPs (G)": lambda row: row.ops_g,
    "decode (ms)": lambda row: row.decode_ms,
    "total (GB)": lambda row: row.total_gb,
    "KV (GB)": lambda row: row.kv_gb,
}
"""The table's columns in its order."""


def _find(_source: Path | None) -> Finding:
    rows = table_rows()
    checks = (*(_as_printed(rows, column) for column in COLUMNS), _on_the_captions_device(rows))
    return Finding(
        checks=checks,
        tables=_table(rows),
        values={
            "claim": CLAIM.name,
            "title": TITLE,
            "checks": [asdict(one) for one in checks],
            "rows": [asdict(row) for row in rows],
            "errata": list(ERRATA),
        },
        plots={"roofline.png": _png(rows)},
    )


def _as_printed(rows: list[TableRow], column: str) -> Check:
    """Holds where every number of a column is the printed one to its digit."""
    differ = [
        f"{row.frames} frames at {row.kv_bits} bits {_digits(row, column)}, printed {_printed(row, column)}"
        for row in rows
        if _digits(row, column) != _printed(row, column)
    ]
    here = f"{len(rows) - len(differ)} of {len(rows)} numbers to the printed digit"
    return Check(paper=f"Table 1: {column}", here="; ".join([here, *differ]), holds=not differ)


def _on_the_captions_device(rows: list[TableRow]) -> Check:
    """The caption names an A100; a decode step waits for memory, so that its bandwidth decides."""
    device = hardware(CAPTION_DEVICE)
    first = rows[0]
    there = first.decode_ms * A6000_BYTES_PER_S / device.bytes_per_s
    printed = _printed(first, "decode (ms)")
    return Check(
        paper="Table 1: its times are an A100's, as the caption says",
        here=f"{first.frames} frames take {there:.1f} ms at {device.bytes_per_s / 1e9:g} GB/s; {printed} ms are "
        f"printed, and an RTX A6000's {A6000_BYTES_PER_S / 1e9:g} GB/s gives {first.decode_ms:.1f}",
        holds=f"{there:.1f}" == printed,
    )


def _digits(row: TableRow, column: str) -> str:
    return f"{COLUMNS[column](row):.1f}"


def _printed(row: TableRow, column: str) -> str:
    return PRINTED[row.frames, row.kv_bits][list(COLUMNS).index(column)]


def _table(rows: list[TableRow]) -> str:
    lines = [f"| frames | bits of the cache | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    lines += [
        f"| {row.frames} | {row.kv_bits} | {' | '.join(_digits(row, column) for column in COLUMNS)} |" for row in rows
    ]
    return "\n".join([*lines, "", *(f"- {erratum}" for erratum in ERRATA)])


def _png(rows: list[TableRow]) -> bytes:
    """Time and memory over frames at 16 and 2 bits: lines computed here, rings as printed."""
    with chart_style():
        figure = Figure(figsize=(8, 3.2), facecolor="white")
        for axes, column in zip(figure.subplots(1, 2), ("decode (ms)", "total (GB)"), strict=True):
            axes.grid(axis="y")
            for bits, colour in ((16, MUTED), (2, AFTER)):
                of_bits = [row for row in rows if row.kv_bits == bits]
                frames = [row.frames for row in of_bits]
                axes.plot(frames, [COLUMNS[column](row) for row in of_bits], color=colour, label=f"{bits}-bit cache")
                printed = [float(_printed(row, column)) for row in of_bits]
                axes.plot(frames, printed, "o", color=colour, fillstyle="none", label=f"printed, {bits} bits")
            axes.set_xscale("log", base=2)
            ticks = sorted({row.frames for row in rows})
            axes.set_xticks(ticks, [str(count) for count in ticks])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("frames")
            axes.set_title(column, loc="left")
        figure.suptitle(TITLE, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
        return figure_png(figure)


CLAIM = ComputedClaim(name="intp-roofline", title=TITLE, model=None, cpu_s=12, find=_find)
