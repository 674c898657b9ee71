"""The paper's study: methods side by side, prompt design, experiments, claims and their significance, the report.

Brings its own commands; the product never imports it.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.study.comparison import (
        METHODS,
        check_methods,
        compare,
        equal_seconds,
        rows_of,
        score_within,
        title_of,
    )
    from softprompt.study.paper import NAMES, TABLE_4_LENGTHS
    from softprompt.study.params import figure_4_cells
    from softprompt.study.report import write_report
    from softprompt.study.rows import grouped, table
    from softprompt.study.runs import missing, named, rerun, run_experiment

__getattr__, __all__ = face(__name__)
