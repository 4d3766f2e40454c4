"""The checker finds nothing in a good history, and what is wrong in each doctored one."""
import copy

from checker import check


def sale(seq, till, i, record):
    return {"seq": seq, "after": seq - 1, "table_name": "sales", "record_id": record, "operation": "insert", "data": {"till": till, "i": i}}


FEED = [sale(1, "a", 0, 10), sale(2, "b", 0, 20), sale(3, "a", 1, 11), sale(4, "a", 2, 12)]
STORE = {"sales/10": [1, {"till": "a", "i": 0}], "sales/20": [2, {"till": "b", "i": 0}],
         "sales/11": [3, {"till": "a", "i": 1}], "sales/12": [4, {"till": "a", "i": 2}]}
TOLD = [["told", 1, "sales/10"], ["told", 2, "sales/20"], ["told", 3, "sales/11"], ["told", 4, "sales/12"]]


def pushes(i):
    return [["intent", i], ["push", i]]


def good():
    end = {"queue": 0, "dead": 0, "store": STORE}
    a = [*pushes(0), ["online", None], ["page", []], *TOLD[:2], *pushes(1), *pushes(2), ["online", 2], *TOLD[2:], ["intent", 3]]
    b = [["online", None], *pushes(0), *TOLD[:3], ["page", [["sales/11", 3], ["sales/20", 2]]], TOLD[3]]
    feeds = {node: copy.deepcopy(FEED) for node in ("node 1", "node 2")}
    return feeds, {name: copy.deepcopy((notes, end)) for name, notes in (("a", a), ("b", b))}


def doctored(change):
    feeds, clients = good()
    change(feeds, clients)
    return check(feeds, clients)


def without(feeds, seq):
    """The feed as it would be if the change had never been, on all nodes and in all stores."""
    for feed in feeds.values():
        feed[:] = [c for c in feed if c["seq"] != seq]
        for place, c in enumerate(feed):
            c["seq"], c["after"] = place + 1, place


def lost(feeds, _):
    without(feeds, 4)


def doubled(feeds, _):
    for feed in feeds.values():
        feed.append(sale(5, "a", 2, 13))


def out_of_order(feeds, _):
    for feed in feeds.values():
        feed[2]["data"]["i"], feed[3]["data"]["i"] = 2, 1


def never_pushed(_, clients):
    clients["b"][0].remove(["intent", 0])


def nodes_differ(feeds, _):
    feeds["node 2"].pop()


def wrong_after(feeds, _):
    for feed in feeds.values():
        feed[2]["after"] = 1


def told_twice(_, clients):
    clients["b"][0].append(TOLD[3])


def not_told(_, clients):
    clients["b"][0].remove(TOLD[1])


def resumed_too_late(_, clients):
    clients["a"][0].remove(TOLD[2])


def older_page(_, clients):
    clients["a"][0].append(["page", [["sales/12", 3]]])


def older_live(_, clients):
    clients["b"][0].insert(-1, ["page", [["sales/12", 9]]])


def final(_, clients):
    clients["a"][0].append(["final", "io server disconnect"])


def store_differs(_, clients):
    clients["a"][1]["store"]["sales/10"] = [1, {"till": "a", "i": 7}]


def record_missing(_, clients):
    del clients["b"][1]["store"]["sales/20"]


def unsent(_, clients):
    clients["a"][1]["queue"] = 2


def refused(_, clients):
    clients["a"][1]["dead"] = 1


def gone(_, clients):
    clients["b"] = (clients["b"][0], None)


WORDS = {lost: "1 of 3 sales are lost", doubled: "there twice", out_of_order: "order of its queue", never_pushed: "never pushed",
         nodes_differ: "node 2's feed differs", wrong_after: "comes after 1 in its table, not after 2", told_twice: "told change 4 after 4", not_told: "told change 3 after 1",
         resumed_too_late: "told change 4 after 2", older_page: "a page brought change 3", older_live: "after its 9",
         final: "takes for final", store_differs: "differ from the cluster's", record_missing: "differ from the cluster's",
         unsent: "left unsent", refused: "refused for good", gone: "never came to an end"}

assert check(*good()) == [], check(*good())
for doctor, words in WORDS.items():
    findings = doctored(doctor)
    assert any(words in finding for finding in findings), f"{doctor.__name__}: {findings}"
print(f"the checker sees each of {len(WORDS)} doctored histories: ok")
