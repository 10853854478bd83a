"""Unpacks the members of a wheel that match a pattern, with their modes.

Usage: extract.py WHEEL FOLDER PATTERN [PATTERN ...]

`python -m zipfile` would drop the modes, and `unzip` is missing on small machines. Fails when a pattern
matches nothing, because then the wheel is not the one that was meant.
"""

import fnmatch
import os
import shutil
import sys
import zipfile

wheel, folder, *patterns = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    unused = set(patterns)
    for member in archive.infolist():
        matching = [p for p in patterns if fnmatch.fnmatchcase(member.filename, p)]
        if not matching or member.is_dir():
            continue
        unused.difference_update(matching)
        target = os.path.normpath(os.path.join(folder, member.filename))
        if os.path.relpath(target, folder).startswith(".."):
            sys.exit(f"{wheel}: {member.filename} would leave the folder")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with archive.open(member) as source, open(target, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        mode = member.external_attr >> 16 & 0o777
        os.chmod(target, mode or 0o644)
    if unused:
        sys.exit(f"{wheel}: nothing matches {sorted(unused)}")
