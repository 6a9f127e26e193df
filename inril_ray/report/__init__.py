"""Reports: one self-contained HTML file of a run, of a verdict or of a sweep.

``page.py`` makes escaped HTML, ``charts.py`` makes SVG (``gradients.py`` those of the gradients), ``pictures.py`` shows
videos, ``records.py`` reads what runs leave behind;
``run_report.py``, ``verdict_report.py`` and ``sweep_report.py`` say what goes where. Nothing is fetched when a report
is opened.
"""

from inril_ray.report.run_report import write_run_report
from inril_ray.report.sweep_report import write_sweep_report
from inril_ray.report.verdict_report import write_verdict_report

__all__ = ["write_run_report", "write_sweep_report", "write_verdict_report"]
