"""The report of an ablation or of one run: tables, figures and warnings as data, written as HTML and Markdown."""

from sera_core.report.write import write_report

__all__ = ["write_report"]
