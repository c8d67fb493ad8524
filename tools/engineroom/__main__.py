"""``python -m engineroom``."""

from engineroom.cli.main import main

main()
