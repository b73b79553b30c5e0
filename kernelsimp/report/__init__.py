"""A report as JSON, Markdown and HTML, and a scan as JSON and tables."""

from kernelsimp.records.serialise import json_text
from kernelsimp.report.baselines import baseline_text, read_baseline, write_baseline
from kernelsimp.report.html import report_html, scan_html
from kernelsimp.report.markdown import pair_markdown, report_markdown, runs_markdown
from kernelsimp.report.pictures.gallery import Gallery, Picture, choose, gallery_of, with_p
from kernelsimp.report.pictures.gallery_file import load_gallery, save_gallery
from kernelsimp.report.runs_html import pair_html, runs_html
from kernelsimp.report.store import read_report, report_json, scan_json, verdict_json

__all__ = [
    "Gallery",
    "Picture",
    "baseline_text",
    "choose",
    "gallery_of",
    "json_text",
    "load_gallery",
    "pair_html",
    "pair_markdown",
    "read_baseline",
    "read_report",
    "report_html",
    "report_json",
    "report_markdown",
    "runs_html",
    "runs_markdown",
    "save_gallery",
    "scan_html",
    "scan_json",
    "verdict_json",
    "with_p",
    "write_baseline",
]
