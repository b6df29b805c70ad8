"""`python -m camelpress` is `camelpress`."""

from camelpress.cli import main

main()
