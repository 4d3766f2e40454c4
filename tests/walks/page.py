"""The pages as a person follows them: the fenced shell blocks of each section, and what must be printed after them."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Block:
    """A fenced `sh` block. `expected` are the lines of the `text` block after it, if there is one."""

    def __init__(self, page, section, line, text):
        self.text, self.expected = text, []
        self.name = f"{page}:{line}, {section}"

    def commands(self):
        """The complete commands of the block, in order: a loop or a text over several lines is one."""
        found, lines = [], []
        for line in self.text.splitlines():
            lines.append(line)
            if not line.strip() and len(lines) == 1:
                lines = []
                continue
            if complete("\n".join(lines)):
                found.append("\n".join(lines))
                lines = []
        if lines:
            raise SystemExit(f"{self.name}: the block ends within a command")
        return found


def complete(text):
    if text.endswith("\\"):
        return False
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    return checked.returncode == 0 and not checked.stderr


def read(page):
    """The sections of a page: heading to blocks, in the page's order."""
    sections, heading, block, fence = {}, "", None, None
    for number, line in enumerate((ROOT / "docs" / page).read_text().splitlines(), 1):
        opening = re.match(r"( *)```(\w*)", line)
        if fence is None and opening:
            fence = (opening[1], opening[2], number, [])
        elif fence is not None and line.strip() == "```":
            indent, kind, begun, lines = fence
            text = "\n".join(one.removeprefix(indent) for one in lines)
            fence = None
            if kind == "sh":
                block = Block(page, heading, begun, text)
                sections.setdefault(heading, []).append(block)
            elif kind == "text" and block is not None:
                block.expected = [one for one in text.splitlines() if one.strip()]
                block = None
        elif fence is not None:
            fence[3].append(line)
        elif re.match(r"#{2,} ", line):
            heading, block = line.lstrip("# ").strip(), None
    return sections


def unmet(expected, printed):
    """The first of the lines which the page says are printed that was not, in this order; `…` stands for anything."""
    lines = iter(printed.splitlines())
    for line in expected:
        pattern = ".*".join(re.escape(part.strip()) for part in re.split("…", line.strip()))
        pattern = re.sub(r"(\\ )+", r"\\s+", pattern)
        if not any(re.search(pattern, other) for other in lines):
            return line
    return None
