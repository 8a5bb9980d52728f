"""The report as one self-contained HTML file."""

from stages.report.html.page import build_html

__all__ = ["build_html"]
