"""`python -m camelpress` is `camelpress`."""

from camelpress.cli.entry_point import main

main()
