"""report.html of a sweep: its charts, and the page."""

from rayqd.sweep.report.page import write_page

__all__ = ["write_page"]
