"""`python -m hbaf_edge` is the command `hbaf-edge`."""

from hbaf_edge.cli import main

main()
