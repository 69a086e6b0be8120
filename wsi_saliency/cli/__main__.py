"""The command line, for ``python -m wsi_saliency.cli …``."""

from wsi_saliency.cli import main

if __name__ == "__main__":
    main()
