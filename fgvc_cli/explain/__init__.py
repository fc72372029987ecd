"""Why a model answers as it does: maps of an image, and pictures of them.

Called, it is the command: ``fgvc_cli.explain("bird.jpg")``.
"""

import sys

from fgvc_cli import CallableRoom

sys.modules[__name__].__class__ = CallableRoom
