"""The API's speed, in parts: each is a module with `measure(options)` that prints a table and returns its figures.

    cargo xtask bench api [--only PART]... [PART's options]

Prints the tables and, last, one JSON line with every figure.
"""

import argparse
import importlib
import json

# Name and module; a new part is a line here and a module beside.
PARTS = {"upload": "api_upload", "lists": "api_lists", "streams": "api_streams", "chat": "api_chat"}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--mib", type=int, default=1024, help="upload: size of the file")
    parser.add_argument("--repeats", type=int, default=3, help="upload: rounds, of which the median counts")
    return parser.parse_args()


def main():
    options = arguments()
    figures = {"bench": "api"}
    for name, module in PARTS.items():
        if not options.only or name in options.only:
            print(f"\n== {name}: {importlib.import_module(module).__doc__.splitlines()[0]}\n")
            figures[name] = importlib.import_module(module).measure(options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
