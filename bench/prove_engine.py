"""Topics of ./dev prove about the engine: drafts."""
import json
import statistics

from proof import ROOT, check, fulgur


def drafts():
    run = ROOT / "runs/speedrun"
    if not (run / "summary.json").exists():
        fulgur("speedrun", "--out", run)
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

    for form, flags in (("greedy", ("--temperature", 0)), ("T 0.8, top-p 0.95", ("--temperature", 0.8)), ("T 1", ("--top-p", 1, "--temperature", 1))):
        ratios, drafted, accepted, tokens, seconds = [], 0, 0, 0, 0
        for i in range(12):
            pair = [generate(prompt(i, 40), 300, "--dtype", "bf16", "--seed", i, *flags, *more) for more in ((), ("--no-draft",))]
            drafted, accepted = drafted + pair[0]["drafted"], accepted + pair[0]["accepted"]
            ratios.append(pair[1]["seconds"] / pair[0]["seconds"])
            tokens, seconds = tokens + len(pair[1]["ids"]), seconds + pair[1]["seconds"]
        ratio = statistics.median(ratios)
        check(f"drafts: {form}, 12 pairs of texts of up to 300 tokens, bf16", "as measured",
              f"{accepted} of {drafted} accepted ({accepted / drafted:.0%}), {ratio:.2f} times the speed without "
              f"({min(ratios):.2f} to {max(ratios):.2f}; {tokens / seconds:.0f} tokens/s)", accepted > 0)


TOPICS = [drafts]
