"""Drawing in a terminal: headlines, a live line, a bar, a plot. Plain text where there is no terminal."""

import math
import shutil
import sys

IS_TERMINAL = sys.stdout.isatty()
# Braille characters hold a raster of 2 × 4 dots; the bits of the dots, by column and row.
BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def headline(text):
    print(f"\n\x1b[1m{text}\x1b[0m" if IS_TERMINAL else f"\n== {text}", flush=True)


def shorten(text, width):
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def bar(share, width=24):
    full = round(share * width)
    return "█" * full + "░" * (width - full)


class Line:
    """A line that changes in place. Without a terminal it is printed now and then, and at its end."""

    def __init__(self, every=20):
        self.text, self.every, self.count = None, every, 0

    def show(self, text):
        self.text = text
        self.count += 1
        if IS_TERMINAL:
            width = shutil.get_terminal_size().columns
            print(f"\r\x1b[2K{text[: width - 1]}", end="", flush=True)
        elif self.count % self.every == 1:
            print(text, flush=True)

    def finish(self):
        if self.text is not None:
            # The last state is always shown, on a line of its own.
            is_shown = not IS_TERMINAL and self.count % self.every == 1
            print("" if IS_TERMINAL or is_shown else self.text, flush=True, end="" if is_shown else "\n")
        self.text, self.count = None, 0


def plot(values, title, below, width=64, height=10):
    """A curve of the values from left to right, their mean where several share a column."""
    if not values:
        return f"{title}: nothing was reported"
    low, high = min(values), max(values)
    span = (high - low) or 1
    columns, rows = 2 * width, 4 * height
    raster = [[0] * width for _ in range(height)]
    previous = None
    for column in range(columns):
        start = column * len(values) // columns
        end = max(start + 1, (column + 1) * len(values) // columns)
        mean = math.fsum(values[start:end]) / (end - start)
        row = round((high - mean) / span * (rows - 1))
        # Joined to the column before, so that steep parts have no holes.
        first, last = sorted((row, row if previous is None else previous))
        for dot in range(first, last + 1):
            raster[dot // 4][column // 2] |= DOTS[column % 2][dot % 4]
        previous = row
    lines = [f"{title} by {below}"]
    for number, cells in enumerate(raster):
        value = high - span * number / max(height - 1, 1)
        lines.append(f"{value:8.3f} ┤{''.join(chr(BRAILLE + cell) for cell in cells)}")
    lines.append(" " * 9 + "└" + "─" * width)
    lines.append(f"{'':10}1{below + ' ' + str(len(values)):>{width - 1}}")
    return "\n".join(lines)
