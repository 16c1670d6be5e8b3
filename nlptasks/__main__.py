"""Run the command line with ``python -m nlptasks``."""

from nlptasks.cli.main import main

if __name__ == "__main__":
    main()
