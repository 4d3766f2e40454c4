"""What must hold after a soak, of the nodes' change feeds and of what each client noted. Pure: no network, no files.

A feed is a list of changes (`seq`, `after`, `table_name`, `record_id`, `operation`, `data`). A client's notes are a list of

    ["intent", i], ["push", i]     before and after it pushed its sale i (data: {"till": name, "i": i}); killed in between,
                                   the sale may be there or not
    ["online", seq | None]         it came online, resuming after seq, or new
    ["told", seq, key]             a live change of a record
    ["page", [[key, seq], …]]      a page of a sync
    ["final", why]                 the library was told not to come back, or gave up

and its end is {"queue": entries left, "dead": dead letters, "store": {key: [version, data]}}.
"""


def key_of(change):
    return f"{change['table_name']}/{change['record_id']}"


def replay(feed):
    store = {}
    for change in feed:
        if change["operation"] == "delete":
            store.pop(key_of(change), None)
        else:
            store[key_of(change)] = [change["seq"], change["data"]]
    return store


def check(feeds, clients):
    """What does not hold, in words. `feeds`: node -> feed; `clients`: name -> (notes, end)."""
    names = list(feeds)
    feed = feeds[names[0]]
    found = []
    for name in names[1:]:
        if feeds[name] != feed:
            at = next((i for i, (a, b) in enumerate(zip(feed, feeds[name])) if a != b), min(len(feed), len(feeds[name])))
            found.append(f"{name}'s feed differs from {names[0]}'s from change {at} on ({len(feeds[name])} and {len(feed)} changes)")
    seqs = [change["seq"] for change in feed]
    if seqs != list(range(1, len(seqs) + 1)):
        found.append("the feed's seqs do not follow")
    newest = {}
    for change in feed:
        before = newest.get(change["table_name"], 0)
        if change.get("after") != before:
            found.append(f"change {change['seq']} says that it comes after {change.get('after')} in its table, not after {before}")
            break
        newest[change["table_name"]] = change["seq"]

    sold = {}  # name -> i in the order of the feed
    for change in feed:
        if change["table_name"] == "sales":
            sold.setdefault(change["data"]["till"], []).append(change["data"]["i"])
    store = replay(feed)
    for name, (notes, end) in clients.items():
        found += (f"{name}: {finding}" for finding in sales(notes, sold.get(name, [])))
        found += (f"{name}: {finding}" for finding in stream(notes))
        found += (f"{name}: {finding}" for finding in ending(end, store))
    return found


def sales(notes, sold):
    pushed = [note[1] for note in notes if note[0] == "push"]
    lost = set(pushed) - set(sold)
    if lost:
        yield f"{len(lost)} of {len(pushed)} sales are lost, the first is {min(lost)}"
    if len(sold) != len(set(sold)):
        twice = sorted(i for i in set(sold) if sold.count(i) > 1)
        yield f"{len(twice)} sales are there twice, the first is {twice[0]}"
    if extra := set(sold) - {note[1] for note in notes if note[0] == "intent"}:
        yield f"{len(extra)} sales were never pushed, the first is {min(extra)}"
    broken = next(((a, b) for a, b in zip(sold, sold[1:]) if b < a), None)
    if broken:
        yield f"the order of its queue is broken: sale {broken[1]} comes after {broken[0]}"


def stream(notes):
    last, newest = None, {}
    for note in notes:
        if note[0] == "online":
            last, newest = note[1], {}
        elif note[0] == "told":
            _, seq, key = note
            if last is not None and seq != last + 1:
                yield f"told change {seq} after {last}"
            if seq < newest.get(key, 0):
                yield f"told change {seq} of {key} after its {newest[key]}"
            last, newest[key] = seq, seq
        elif note[0] == "page":
            for key, seq in note[1]:
                if seq < newest.get(key, 0):
                    yield f"a page brought change {seq} of {key} after its {newest[key]}"
                newest[key] = seq
        elif note[0] == "final":
            yield f"an end that its library takes for final: {note[1]}"


def ending(end, store):
    if end is None:
        yield "it never came to an end: not connected, or not in step"
        return
    if end["queue"]:
        yield f"{end['queue']} updates are left unsent"
    if end["dead"]:
        yield f"{end['dead']} updates were refused for good"
    if end["store"] != store:
        keys = [k for k in store.keys() | end["store"].keys() if store.get(k) != end["store"].get(k)]
        yield f"{len(keys)} records differ from the cluster's, one is {keys[0]}: {end['store'].get(keys[0])}, there {store.get(keys[0])}"
