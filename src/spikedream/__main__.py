"""`python -m spikedream`."""

from spikedream.cli import main

main()
