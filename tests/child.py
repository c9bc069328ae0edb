"""Runs laws in a process of its own: python child.py LAW FUNCTION... under the environment to be tested.

A line for each case goes to standard error before it runs, so that a crash tells where; at the end comes one line of
JSON: how many cases ran, which failed, the worst ratios seen.
"""

import json
import sys
import warnings

import laws
import numerics
from cases import CASES, cases, check, small_cases


def accuracy(name, start, every, ratchet):
    """The accuracy rule for a part of the cases."""
    for shape, dtype, option in cases(name, every=every, start=start):
        call = CASES[name].make(shape, dtype, option)
        yield call, lambda call=call: check(call, call(), ratchet=ratchet)


def guard_pages(name, start, every, ratchet):
    for shape in CASES[name].shapes[:11]:
        for _, dtype, option in small_cases(name):
            if laws_apply(name, shape, option):
                call = CASES[name].make(shape, dtype, option)
                yield call, lambda call=call: laws.guard_pages(call)


def laws_apply(name, shape, option):
    from cases import fits

    return fits(name, shape, option)


def main(law, functions, start, every, ratchet):
    warnings.simplefilter("error")
    ran, failures = 0, []
    for name in functions:
        for call, run in globals()[law](name, start, every, ratchet):
            print(name, call.label, file=sys.stderr, flush=True)
            ran += 1
            try:
                run()
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
    print(json.dumps({"ran": ran, "failures": failures, "worst": numerics.worst}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "ratchet")
