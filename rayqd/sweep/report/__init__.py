"""report.html of a sweep: its charts, and the page."""

from rayqd.sweep.report.page import sweep_page

__all__ = ["sweep_page"]
