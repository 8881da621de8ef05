"""One self-contained page that shows what an evaluation found."""

from manytune.evaluation.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
