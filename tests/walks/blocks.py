"""Each fenced shell block of the operator's pages is in a walk-through, or blocks.allow says why not."""

import page
import walks
from session import PAGES

ALLOWED = page.ROOT / "tests/walks/blocks.allow"


def check():
    allowed, wrong = {}, []
    for line in ALLOWED.read_text().splitlines():
        if line and not line.startswith("#"):
            where, _, why = line.partition(": ")
            allowed[where] = why
            if not why.strip():
                wrong.append(f"blocks.allow: {where} has no reason")
    count = 0
    for name in PAGES:
        for section, found in page.read(name).items():
            here = [one for walk in walks.WALKS.values() for one in walk.sections]
            here = [one for one in here if (one.page, one.section) == (name, section)]
            taken = {at for one in here for at in one.blocks(len(found))}
            for at, block in enumerate(found):
                count += 1
                where = f"{name}, {section}, {at + 1}"
                if at not in taken and where not in allowed:
                    wrong.append(f"docs/{block.name}: no walk-through executes this block ({where})")
                if at in taken and where in allowed:
                    wrong.append(f"blocks.allow: {where} is executed now")
                allowed.pop(where, None)
    wrong += [f"blocks.allow: there is no block {where}" for where in allowed]
    print("\n".join(wrong) if wrong else f"{count} shell blocks, each in a walk-through or with a reason why not")
    return 1 if wrong else 0
