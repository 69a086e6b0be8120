"""The command line, for ``python cli.py …``."""

from wsi_saliency.cli import main

if __name__ == "__main__":
    main()
