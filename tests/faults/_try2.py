import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.faults import partition, records, stores, trainings
from tests.faults.children import in_child
from tests.faults.scenario import faults, run_case, undisturbed

if __name__ == "__main__":
    f = Path(tempfile.mkdtemp())
    which = sys.argv[1]
    n = int(sys.argv[2])
    makes = {
        "store": stores.writing,
        "answers": records.keeping_answers,
        "cache": records.caching,
        "compare": records.comparing,
        "replace": trainings.replacing,
        **{m: partial(trainings.training, method=m) for m in trainings.METHODS},
    }
    for w in which.split(","):
        if w == "partition":
            root, act = partition.partitioned(f, "gone", 0)
            e = in_child(act, root)
            print(e.how, e.said[-1500:], e.acknowledged)
            if e.how == "done":
                for kind in partition.KINDS:
                    for at in range(1, e.acknowledged[0], max(1, e.acknowledged[0] // n)):
                        root, act = partition.partitioned(f, kind, at)
                        e2 = in_child(act, root)
                        print(kind, at, e2.how, e2.said[-700:], flush=True)
            continue
        s = makes[w](f)
        t = time.time()
        _, p = undisturbed(s)
        print(s.name, round(time.time() - t, 2), len(p), flush=True)
        for kind in sys.argv[3].split(",") if len(sys.argv) > 3 else s.kinds:
            for fault in faults(s, kind, n, 0):
                t = time.time()
                try:
                    print(w, fault, run_case(s, fault), round(time.time() - t, 2), flush=True)
                except AssertionError as e:
                    print(w, fault, "FAILED", str(e)[-900:], flush=True)
