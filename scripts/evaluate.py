"""Measures a checkpoint on a folder with images/ and masks/; the same as `samtune evaluate`.

python scripts/evaluate.py --checkpoint FILE --data DIR [--out DIR]
"""

import sys

from samtune.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
