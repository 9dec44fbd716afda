"""The report: every artifact of a ladder on one HTML page that opens offline, and the ladder table for a terminal. Imports no torch."""

from safework_cli.report.console import print_ladder
from safework_cli.report.ladder import LadderTable, ladder_table
from safework_cli.report.page import build_report, write_report

__all__ = ["LadderTable", "build_report", "ladder_table", "print_ladder", "write_report"]
