"""The table, line by line as rows are done."""

COLUMNS = "{:<68} {:>14}  {:<44} {:<22} {}"


def head(facts):
    for name, value in facts.items():
        text = ", ".join(f"{n} {v}" for n, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:<10} {text}")
    print()
    print(
        "Shares are medians with the upper quartile in brackets. A goal in fma is judged by the upper quartile\n"
        "(shared machines), others by the median. A peer's factor is its time over ours; '-' says below the table why\n"
        "there is none. GF/s count visible scores."
    )
    print()
    print(COLUMNS.format("row", "median", "share of", "goal", "peers"), flush=True)


def line(result):
    shares = ", ".join(
        f"{kind} {100 * s['median']:.1f} ({100 * s['q3']:.1f}) %" for kind, s in result["shares"].items()
    )
    ratios = [f"{name} {peer['ratio']['median']:.3g}x" for name, peer in result["peers"].items()]
    ratios += [f"{name} -" for name in result["refused"]]
    value = f"{result['value']['median']:.4g} {result['unit']}"
    name = f"{short(result['function'])} {result['case']}"
    print(COLUMNS.format(name, value, shares, goal(result["goal"]), ", ".join(ratios)).rstrip(), flush=True)


def short(function):
    return "attention" if function == "scaled_dot_product_attention" else function


def goal(judged):
    if judged is None:
        return ""
    verdict = "reached" if judged["reached"] else "MISSED"
    if "at_least" in judged:
        wanted = judged["at_least"]
        return (
            f"{judged['of']} {wanted:g}x {verdict}" if wanted > 1 else f"{judged['of']} {100 * wanted:.0f} % {verdict}"
        )
    return f"{judged['at_most']:g} {judged['of']} {verdict}"


def foot(results):
    goals = [r["goal"] for r in results if r["goal"]]
    print(f"\n{sum(g['reached'] for g in goals)} of {len(goals)} goals reached.")
    reasons = {}
    for result in results:
        for name, why in result["refused"].items():
            reasons.setdefault(f"{name}: {why}", []).append(f"{short(result['function'])} {result['case']}")
    for why, names in reasons.items():
        print(f"- {why}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
