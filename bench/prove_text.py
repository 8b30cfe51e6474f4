"""Topics of ./dev prove about text: text, constrained."""
import json
import os
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

from proof import BUILD, ROOT, check, fulgur, lines, pip_python, tests, text_run

GOLDEN = ROOT / "tests/golden"


# A golden file piped in as it stands: each case beside what the command answered.
def piped(path, *command):
    said = fulgur(*command, stdin=open(path)).split("\n")
    return list(zip(lines(path), (json.loads(line) for line in said if line)))


def text():
    cases = piped(GOLDEN / "encoding/encode_cases.jsonl", "encode")
    right = sum(("prompt" in c["accept"] and a.get("prompt") == c["expected_prompt"]) or ("error" in c["accept"] and "error" in a) for c, a in cases)
    check("text: prompts of DeepSeek-V3.2's encoder, byte for byte", f"{len(cases)} of {len(cases)}", f"{right} of {len(cases)}", right == len(cases) > 100)
    for flags, what in (((), "strict parser"), (("--stream",), "streaming parser, of what the strict one takes")):
        cases = piped(GOLDEN / "encoding/parse_cases.jsonl", "parse", *flags)
        fields = ("reasoning_content", "content", "tool_calls")
        right = sum("error" in a if c["expected"] is None else all(a.get(f) == c["expected"][f] for f in fields)
                    for c, a in cases if not flags or c["expected"] is not None)
        of = sum(1 for c, _ in cases if not flags or c["expected"] is not None)
        check(f"text: completions, {what}", f"{of} of {of}", f"{right} of {of}", right == of > 50)
    tests("text: the streaming parser at every split of every case, and of any text of markers", "StreamParser")
    for special in (False, True):
        cases = piped(GOLDEN / "tokenizer/encode_cases.jsonl", "tokenizer", "encode", "--tokenizer", GOLDEN / "tokenizer/tokenizer.json",
                      *(("--parse-special",) if special else ()))
        cases = [(c, a) for c, a in cases if c["parse_special"] == special and not c["id"].startswith("newuni")]
        right = sum(a.get("ids") == c["ids"] for c, a in cases)
        check(f"text: ids of Hugging Face's tokenizers, special tokens {'read' if special else 'as text'}", f"{len(cases)} of {len(cases)}",
              f"{right} of {len(cases)} (characters younger than PCRE2's tables left out)", right == len(cases) > 20)
    tests("text: tokenizers trained, encoded, decoded; families; GGUF vocabularies", "text: (Tokenizer|TrainBpe)")
    speed()


ENCODE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
data, parts, at = open(sys.argv[2], "rb").read(), [], 0
while at < len(data):  # as fulgur bench tokenizer cuts it
    end = min(len(data), at + 50000)
    while end < len(data) and data[end] & 0xc0 == 0x80:
        end += 1
    parts.append(data[at:end].decode("utf-8"))
    at = end
tokenizer.encode_batch_fast(parts[:20], add_special_tokens=False)
start = time.perf_counter()
ids = sum(len(e.ids) for i in range(0, len(parts), 200) for e in tokenizer.encode_batch_fast(parts[i:i + 200], add_special_tokens=False))
print(json.dumps({"seconds": time.perf_counter() - start, "ids": ids}))
"""


# 100 MB of recipes/text.toml's documents, in turn by both programs.
def speed():
    run = text_run()
    documents = [p.read_bytes() for p in sorted((run / "text").rglob("*")) if p.is_file()]
    whole = "\n".join(d.decode("utf-8", "replace") for d in documents if b"\0" not in d[:4000])
    python = pip_python("tokenizers==0.23.3")
    with tempfile.TemporaryDirectory() as folder:
        path, script = pathlib.Path(folder) / "text.txt", pathlib.Path(folder) / "encode.py"
        data = (whole * (1 + 100_000_000 // len(whole.encode())))[:100_000_000]
        path.write_text(data), script.write_text(ENCODE)
        size = path.stat().st_size / 1e6
        for threads in (1, 2):
            ours, theirs, ids = [], [], set()
            for _ in range(3):
                said = json.loads(fulgur("--json", "--threads", threads, "bench", "tokenizer", "--tokenizer", run / "data/tokenizer.json", "--text", path).splitlines()[-1])
                ours.append(size / said["results"][0]["seconds"])
                env = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
                done = subprocess.run([python, script, run / "data/tokenizer.json", path], capture_output=True, text=True, env=env, check=True)
                theirs.append(size / json.loads(done.stdout)["seconds"])
                ids |= {said["results"][0]["ids"], json.loads(done.stdout)["ids"]}
            ratio = statistics.median(a / b for a, b in zip(ours, theirs))
            check(f"text: encoding {size:.0f} MB, {threads} threads, beside Hugging Face's tokenizers", ">= 2 times, >= 20 MB/s a core",
                  f"{ratio:.2f} times; {statistics.median(ours):.1f} and {statistics.median(theirs):.1f} MB/s; ids: {ids}",
                  ratio >= 2 and statistics.median(ours) >= 20 * threads and len(ids) == 1)


# Schemas of every kind that is understood, drawn at random, of texts that end: among 130,000 tokens a model that knows nothing
# would hardly ever close a string that may be of any length.
def schema(rng, depth=0):
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"] + (["object", "array", "union", "ref"] if depth < 3 else [])
    kind = rng.choice(kinds)
    if kind == "string":
        return rng.choice([{"type": "string", "maxLength": rng.randint(1, 12)}, {"type": "string", "minLength": 2, "maxLength": 5},
                           {"type": "string", "pattern": "^[A-Z][a-z]{1,5}( [a-z]{1,9})?$"}, {"type": "string", "format": rng.choice(["date", "uuid", "date-time"])}])
    if kind == "integer":
        low = rng.randint(-500, 500)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 3000)}
    if kind == "number":
        return {"type": "number", "minimum": rng.randint(-20, 0), "exclusiveMaximum": rng.randint(2, 20)}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "enum":
        return {"enum": rng.sample(["red", "grün", 3, 2.5, None, True, [1, 2], {"a": "b"}], 3)}
    if kind == "const":
        return {"const": rng.choice(["x\ny", 7, False])}
    if kind == "object":
        names = rng.sample(["id", "name", "größe", "a b", "tags", "q\"", "z"], rng.randint(0, 4))
        out = {"type": "object", "properties": {n: schema(rng, depth + 1) for n in names}, "required": [n for n in names if rng.random() < .6]}
        out["additionalProperties"] = False
        return out
    if kind == "array":
        out = {"type": "array", "items": schema(rng, depth + 1), "maxItems": rng.randint(1, 4)}
        if rng.random() < .5:
            out["prefixItems"] = [schema(rng, depth + 1)]
            out["minItems"] = 1
        return out
    if kind == "union":
        return {"anyOf": [schema(rng, depth + 1), schema(rng, depth + 1)]}
    return {"$ref": "#/$defs/point"}


VALIDATE = """
import json, sys
import jsonschema
bad = []
for line in open(sys.argv[1]):
    case = json.loads(line)
    try:
        jsonschema.validate(json.loads(case["text"]), case["schema"], cls=jsonschema.Draft202012Validator, format_checker=jsonschema.FormatChecker())
    except Exception as error:
        bad.append(f"{case['text'][:200]!r}: {type(error).__name__} {str(error)[:100]}")
print(json.dumps({"bad": bad}))
"""


# A vocabulary as large as DeepSeek's, trained on the same documents.
def large_tokenizer():
    path = BUILD / "tokenizer-128k.json"
    if not path.exists():
        fulgur("tokenizer", "train", text_run() / "text", "--vocab-size", 128 * 1024, "--out", path)
    return path


def constrained():
    python = pip_python("jsonschema==4.25.1")
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        schemas = []
        for _ in range(200):
            top = {"type": "object", "properties": {"value": schema(rng), "more": schema(rng)}, "required": ["value"], "additionalProperties": False,
                   "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "next": {"$ref": "#/$defs/point"}},
                                       "required": ["x"], "additionalProperties": False}}}
            schemas.append(top)
        (folder / "schemas.jsonl").write_text("".join(json.dumps(s) + "\n" for s in schemas))
        said = json.loads(fulgur("--json", "bench", "constraint", "--tokenizer", large_tokenizer(), "--schemas", folder / "schemas.jsonl", "--texts", 10, "--out", folder / "texts.jsonl").splitlines()[-1])
        made = lines(folder / "texts.jsonl")
        (folder / "validate.py").write_text(VALIDATE)
        done = subprocess.run([python, folder / "validate.py", folder / "texts.jsonl"], capture_output=True, text=True, check=True)
        bad = json.loads(done.stdout)["bad"]
    check("constrained: texts of 200 random schemas by a random-weight model, under jsonschema", "2000 valid", f"{len(made) - len(bad)} of {len(made)} valid; {bad[:2]}",
          len(made) == 2000 and not bad)
    result = said["results"][0]
    check("constrained: dead ends", "0", f"{result['dead_ends']} in {result['tokens']} tokens", result["dead_ends"] == 0)
    check(f"constrained: mask of {result['vocabulary']} tokens", "< 50 us a token", f"mean {result['mask_us']:.1f} us (median {result['median_us']:.1f}, 99 % below "
          f"{result['p99_us']:.0f}, longest {result['longest_us']:.0f}), of {result['tokens']} tokens", result["mask_us"] < 50)


TOPICS = [text, constrained]
