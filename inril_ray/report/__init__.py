"""Reports: one self-contained HTML file of a run or of a verdict.

``page.py`` makes escaped HTML, ``charts.py`` makes SVG, ``records.py`` reads what runs leave behind;
``run_report.py`` and ``verdict_report.py`` say what goes where. Nothing is fetched when a report is opened.
"""

from inril_ray.report.run_report import write_run_report
from inril_ray.report.verdict_report import write_verdict_report

__all__ = ["write_run_report", "write_verdict_report"]
