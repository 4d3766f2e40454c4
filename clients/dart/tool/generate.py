"""Writes lib/src/tables.dart from the tables that the project has already: the API's events and error codes (docs/) and the
bounds of the TypeScript library. usage: generate.py [--check]"""

from __future__ import annotations

import pathlib
import re
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
DOCS = PACKAGE.parent.parent / "docs"
TABLES = PACKAGE / "lib" / "src" / "tables.dart"
RETRIES = {"no": "no", "safe": "safe", "same_request_id": "sameRequestId"}


def camel(name: str) -> str:
    first, *more = name.lower().split("_")
    return first + "".join(word.capitalize() for word in more)


def events() -> list[tuple[str, str, list[str]]]:
    """Each event's name, its ways, and its fields without those of lists' elements."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    name = ""
    for line in (DOCS / "api-events.md").read_text().splitlines():
        if heading := re.match(r"### `(\w+)` \((client → server|server → client)\)", line):
            name = heading[1]
            found.setdefault(name, ([], []))[0].append(heading[2])
        elif line.startswith("## "):
            name = ""
        elif name and (field := re.match(r"\| `(\w+)` \|", line)) and field[1] not in found[name][1]:
            found[name][1].append(field[1])
    return [(name, " and ".join(ways), fields) for name, (ways, fields) in found.items()]


def codes() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| (\d{4}) \| ([^|]+) \| \d+ \| (\w+) \|", (DOCS / "errors.md").read_text(), re.M)
    return [(code, title, RETRIES[retry]) for code, title, retry in rows]


def limits() -> list[tuple[str | None, str, str]]:
    """Comment, name and value of each bound."""
    text = (PACKAGE.parent / "typescript" / "src" / "limits.ts").read_text()
    rows = re.findall(r"(?:/\*\* (.*?) \*/\n)?export const (\w+) = ([\d_* <]+);", text)
    # Underscores between digits are newer than the Dart that this package asks for.
    return [(comment or None, camel(name), value.replace("_", "")) for comment, name, value in rows]


def text() -> str:
    out = [
        "// Written by tool/generate.py from the project's docs and the bounds of its TypeScript library. Do not edit.",
        "",
        "/// The API's events.",
        "abstract final class Events {",
    ]
    for name, ways, fields in events():
        line = f"/// {ways[0].upper()}{ways[1:]}: {', '.join(fields)}."
        out += [f"  {part}" for part in wrapped(line, 118)]
        out.append(f"  static const {camel(name)} = '{name}';")
    out += [
        "}",
        "",
        "/// What may be done with a request that was refused.",
        "enum Retry { no, safe, sameRequestId }",
        "",
        "/// Each error code's title, and what `retry` says with it.",
        "const errorCodes = <String, (String, Retry)>{",
        *(f"  '{code}': ('{title}', Retry.{retry})," for code, title, retry in codes()),
        "};",
        "",
        "/// Every bound of the library, and of what Tillsync takes. Times are milliseconds.",
        "abstract final class Limits {",
    ]
    for comment, name, value in limits():
        if comment:
            out += [f"  {part}" for part in wrapped(f"/// {comment}", 118)]
        out.append(f"  static const {name} = {value};")
    return "\n".join([*out, "}", ""])


def wrapped(line: str, width: int) -> list[str]:
    parts = [""]
    for word in line.split():
        if parts[-1] and len(parts[-1]) + 1 + len(word) > width:
            parts.append("///")
        parts[-1] = f"{parts[-1]} {word}".strip()
    return parts


if __name__ == "__main__":
    if "--check" in sys.argv:
        if TABLES.read_text() != text():
            sys.exit(f"{TABLES} is not what generate.py writes")
    else:
        TABLES.write_text(text())
