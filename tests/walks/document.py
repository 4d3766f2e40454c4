"""The transcripts as one page: what differs from run to run is left out."""

import re

import walks

HEAD = """# Walk-throughs

What was typed and printed when the walk-throughs of [`operating.md`](operating.md) and
[`operating-membership.md`](operating-membership.md) were executed, from the pages themselves, on machines made of
namespaces. Written by `tests/walks/run.py --document docs/walk-throughs.md TILLSYNC`: not edited by hand. `$` begins
what the page has, in the office's shell unless a machine is named before it; lines that begin with `#` say what the
machines and tills did meanwhile. `…` stands for what differs each time: tokens, times, digests, ids.
"""

DIFFERS = [
    (r"\x1b\[[0-9;]*m", ""),
    (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "…"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "…"),
    (r"\d{8}T\d{6}Z-\d+", "…"),
    (r"-[0-9a-f]{8}-…", "-…"),
    (r"\b[0-9a-f]{16,64}\b", "…"),
    (r"\bid [0-9a-f]{32}\b", "id …"),
]


def normalised(text):
    for pattern, instead in DIFFERS:
        text = re.sub(pattern, instead, text)
    return text


def without_asides(text):
    """Without what was typed in the asides; the first one that is open says what was done in it."""
    lines, depth = [], 0
    for line in text.splitlines():
        if line.startswith("# [ "):
            if depth == 0:
                lines.append("# " + line[4:])
            depth += 1
        elif line == "# ]":
            depth -= 1
        elif depth == 0:
            lines.append(line)
    return "\n".join(lines)


def written(out, names):
    parts = [HEAD]
    for name in names:
        text = normalised((out / f"{name}.txt").read_text())
        text = text if name == "install" else without_asides(text)
        text = text.replace("# [ ", "# ").replace("# ]\n", "")
        lines = [line if len(line) <= 160 else line[:159] + "…" for line in text.splitlines()]
        parts.append(f"\n## {walks.WALKS[name].title}\n\n```console\n" + "\n".join(lines) + "\n```\n")
    return "".join(parts)
