"""`python -m cognate`: the command line without the service."""

from cognate.cli import main

if __name__ == "__main__":
    main()
