"""Measuring a model: metrics, intervals, calibration, comparison, localisation.

Called, it is the command: ``fgvc_cli.evaluate(weights="aviary", data="birds")``.
"""

import sys

from fgvc_cli import CallableRoom

sys.modules[__name__].__class__ = CallableRoom
