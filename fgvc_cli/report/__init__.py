"""A page of predictions for people: one HTML file with pictures, filters and, with labels, the mistakes.

Called, it is the command: ``fgvc_cli.report("predictions.h5")``.
"""

import sys

from fgvc_cli import CallableRoom

sys.modules[__name__].__class__ = CallableRoom
