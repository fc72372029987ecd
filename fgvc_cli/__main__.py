"""``python -m fgvc_cli``: what the ``fgvc`` script runs."""

from fgvc_cli.cli import main

main()
