"""Why a model answers as it does: maps of an image, and pictures of them."""

from typing import Literal

Page = Literal["full", "strip"]
"""How much one image takes: a whole page, or a strip."""
