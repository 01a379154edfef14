"""The honest table: ``python benchmarks/alpha.py STEP …`` is ``kronos-qlib benchmark STEP …``; see its ``--help``."""

from __future__ import annotations

import sys

from kronos_qlib.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
