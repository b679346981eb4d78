"""`python -m modelyard_services`: the same as `modelyard`."""

from modelyard_services.cli.main import main

main()
