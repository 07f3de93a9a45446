"""The command ``forethink report``: what it is asked for, and the files it writes."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "one HTML file to look at runs: documents, thoughts, curves, tables"
TEXT = (
    "Reads finished or running run folders (each RUN is the folder given as --run to the stages) and nothing else.\n"
    "Writes one page that opens from disk in any browser, without a server or the network."
)
EXAMPLE = "forethink report runs/math --out math.html --markdown math.md --figures figures"


def add_report(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; several are laid side by side")
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html in the first RUN)")
    parser.add_argument("--markdown", metavar="FILE", help="also write the tables as Markdown")
    parser.add_argument("--figures", metavar="DIR", help="also write the figures as SVG and PNG files, for papers")


def run_report(args: argparse.Namespace) -> None:
    """Gather, write, say where."""
    from forethink.report.collect import collect
    from forethink.report.markdown import markdown
    from forethink.report.page import render
    from forethink.rundir import write_atomic

    data = collect([Path(run) for run in args.runs])
    out = Path(args.out) if args.out else Path(args.runs[0]) / "report.html"
    page = render(data)
    write_atomic(out, page)
    for note in data["notes"]:
        print(f"  {note}")
    if args.markdown:
        write_atomic(Path(args.markdown), markdown(data))
        print(f"done: {args.markdown}")
    if args.figures:
        from forethink.report.figures import write_figures

        written = write_figures(data, Path(args.figures))
        print(f"done: {args.figures} ({len(written)} files)")
    print(f"done: {out} ({len(page.encode()) / 1e6:.1f} MB)")
