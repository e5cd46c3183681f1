"""Serves a checkpoint over HTTP; the same as `samtune serve`.

python scripts/serve.py --checkpoint FILE [--port 8000]
"""

import sys

from samtune.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
