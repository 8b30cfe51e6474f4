"""Topics of ./dev prove about the engine: drafts, formats."""
import json
import math
import statistics

from proof import ROOT, check, fulgur, tests


def speedrun():
    run = ROOT / "runs/speedrun"
    if not (run / "summary.json").exists():
        fulgur("speedrun", "--out", run)
    return run


def drafts():
    run = speedrun()
    texts = [path.read_text(errors="replace") for path in sorted((run / "text").rglob("*")) if path.is_file()]
    texts = [text.split() for text in texts if "\0" not in text and len(text) > 50000]

    def generate(prompt, tokens, *flags):
        return json.loads(fulgur("--json", "generate", "--model", run, "--prompt", prompt, "--max-tokens", tokens, *flags))

    def prompt(i, length):
        first = 97 * (1 + i // len(texts))
        return " ".join(texts[37 * i % len(texts)][first:first + length])

    same = 0
    for i in range(200):
        with_drafts, without = (generate(prompt(i, 5 + i % 60), 60, "--temperature", 0, *flags) for flags in ((), ("--no-draft",)))
        same += with_drafts["ids"] == without["ids"]
    check("drafts: the same greedy texts of 60 tokens with drafts and without", "200 of 200", f"{same} of 200", same == 200)

    # One thread: the model is small, and a step of two threads waits for whoever else runs on the machine.
    more = ("--threads", 1, "--dtype", "bf16")
    forms = {"greedy": (0, 1), "T 0.8, top-p 0.95": (0.8, 0.95), "T 1": (1, 1)}
    for form, (temperature, top_p) in forms.items():
        ratios, speeds, drafted, accepted = [], [], 0, 0
        for i in range(24):
            flags = (*more, "--temperature", temperature, "--top-p", top_p, "--seed", i)
            order = ((), ("--no-draft",)) if i % 2 else (("--no-draft",), ())
            got = {len(own): generate(prompt(i, 40), 300, *flags, *own) for own in order}
            drafted, accepted = drafted + got[0]["drafted"], accepted + got[0]["accepted"]
            ratios.append(got[1]["seconds"] / got[0]["seconds"])
            speeds.append(len(got[1]["ids"]) / got[1]["seconds"])
        check(f"drafts: {form}, 24 pairs of texts of up to 300 tokens, bf16, one thread", "some accepted",
              f"{accepted} of {drafted} accepted ({accepted / drafted:.0%}), {statistics.median(ratios):.2f} times the speed "
              f"without ({min(ratios):.2f} to {max(ratios):.2f}), which is {statistics.median(speeds):.0f} tokens/s", accepted > 0)


def formats():
    tests("formats: the engine's bits are those of one forward pass in each format of weights and cache", "Formats")
    tests("formats: cached keys and quantised products on each instruction set", "CachedKeys|Quantised|Fp8")
    run = speedrun()

    def perplexity(*flags):
        said = fulgur("--json", "eval", "perplexity", "--model", run, "--forms", "sparse", *flags)
        return math.exp(json.loads(said)["perplexity"][0]["nll"])

    plain = perplexity()
    for flag, name, bar in (("--weights-format", "fp8", .005), ("--weights-format", "int8", .005), ("--weights-format", "int4", .03),
                            ("--cache", "fp8", .005), ("--cache", "int8", .005), ("--cache", "fp8+int8", .005)):
        worse = perplexity(flag, name) / plain - 1
        check(f"formats: {flag} {name}, perplexity of the speedrun's model beside f32's {plain:.3f}", f"within {bar:.1%}", f"{worse:+.3%}",
              worse < bar)

    def speeds(name):
        said = fulgur("bench", "model", "--depth", "0", "--no-dense", "--seconds", 3, "--weights-format", name)
        return {r["what"]: r["tokens_per_second"] for r in json.loads(said.splitlines()[-1])["results"]}

    bars = {"int8": {"prefill": 1.6, "decode": 1.8}, "int4": {"decode": 2.5}}
    pairs = [{name: speeds(name) for name in ("plain", "fp8", "int8", "int4")} for _ in range(3)]
    for name in ("fp8", "int8", "int4"):
        for what in ("prefill", "decode"):
            ratios = [pair[name][what] / pair["plain"][what] for pair in pairs]
            bar = bars.get(name, {}).get(what, 0)
            check(f"formats: {name} weights, {what} of ds32-353m at depth 0 beside bf16", f">= {bar}" if bar else "as measured",
                  f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})", statistics.median(ratios) >= bar)


TOPICS = [drafts, formats]
