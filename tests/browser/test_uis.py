"""What a person does in the two UIs and on the service's page, done in a real browser.

Pictures of it are left in the folder that SCALE_PICTURES names, where it is set.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import httpx
import pytest
from PIL import Image

from tests.ports import free_port
from tests.stages import OF_A_MODEL, OF_USERS, USER_PROFILES

pytest.importorskip("playwright", reason="install the dev extra for a browser to be driven")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="install chromium to see the UIs in a browser"),
]

SECONDS = 120
RUN_SECONDS = 600
CURVES = "^(loss|valid.*20)"
ASIDE = ".bp5-overlay-backdrop {display: none} .bp5-dialog {position: fixed; right: 3rem; bottom: 1.5rem}"
FROM_PROFILES = (
    '+key:"semantic_graph/recommendations" and not (group:"settings" or group:"raw" or group:"interactions")'
)
SIZE = {"width": 1500, "height": 950}
SCALE = [sys.executable, "-c", "from assets.cli import main; main()"]


@contextmanager
def served(command: Sequence[str], ready: str) -> Iterator[str]:
    """Run a command that serves; give what it has said once `ready`, a regular expression, is in it."""
    process = subprocess.Popen(
        [*SCALE, *command],
        # MLflow leaves there what this process was connected to last.
        env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        while not re.search(ready, said):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield said
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)


def told(*command: str) -> str:
    """What a command prints on a wide terminal."""
    environment = os.environ | {"COLUMNS": "250"}
    return subprocess.run([*SCALE, *command], env=environment, capture_output=True, text=True, check=True).stdout


@contextmanager
def both_uis() -> Iterator[dict[str, str]]:
    """Addresses of both UIs, as `scale ui` serves them."""
    ports = {"dagster": free_port(), "mlflow": free_port()}
    options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    with served(["ui", *options], "mlflow   http"):
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * SECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_context(viewport=SIZE).new_page()
        opened.set_default_timeout(1000 * SECONDS)
        yield opened
        browser.close()


def picture(page: Any, name: str, width: int = SIZE["width"], height: int = SIZE["height"]) -> None:
    """Leave a picture of a page at that size of the window; some are those in docs/."""
    if folder := os.environ.get("SCALE_PICTURES"):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(1000)  # what moves comes to rest
        Path(folder).mkdir(parents=True, exist_ok=True)
        with Image.open(BytesIO(page.screenshot())) as shown:  # a palette takes half the room
            shown.quantize().save(Path(folder) / f"{name}.png", optimize=True)
        page.set_viewport_size(SIZE)


def launch(page: Any) -> None:
    """Press the launchpad's button until it asks for a run: while the page checks what was chosen, a press is lost."""
    from playwright.sync_api import TimeoutError as NothingAsked

    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            with page.expect_request(asks_for_a_run, timeout=5000):
                page.get_by_role("button", name="Launch Run").click()
            return
        except NothingAsked:
            continue
    raise TimeoutError("Launch Run")


def asks_for_a_run(request: Any) -> bool:
    return "LaunchPipelineExecution" in (request.post_data or "")


def wait_for_run(instance: dg.DagsterInstance, job: str, partition: str) -> dg.DagsterRun:
    """The newest run of a job for a partition, once it is over."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        runs = instance.get_runs(dg.RunsFilter(job_name=job, tags={"dagster/partition": partition}), limit=1)
        if runs and runs[0].is_finished:
            return runs[0]
        time.sleep(0.5)
    raise TimeoutError(job)


def made_by(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[str]:
    """Last names of the assets that a run materialised."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    keys = [entry.dagster_event.asset_key for entry in events if entry.dagster_event]
    return {key.path[-1] for key in keys if key is not None}


def materialise(page: Any, dagster: str, job: str, asset: str, *partition: str) -> None:
    """Launch a job for a partition from the job's page; see the run's page and the asset's turn green as they stand."""
    from playwright.sync_api import expect

    beside = page.context.new_page()
    beside.goto(f"{dagster}/assets/{asset}?view=partitions&partition={'|'.join(partition)}")
    expect(beside.get_by_text("Materialized (0)")).to_be_visible()
    page.bring_to_front()
    page.goto(f"{dagster}/locations/scale/jobs/{job}")
    page.get_by_role("button", name="Materialize all").first.click()
    for word in partition:
        page.get_by_text("Select a partition or create one").first.click()
        page.keyboard.type(word)
        page.get_by_role("menuitem").filter(has_text=word).last.click()
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_text("View", exact=True).click()
    expect(page.get_by_text(re.compile("^(Queued|Starting|Started)$"))).to_be_visible()
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=RUN_SECONDS * 1000)
    expect(page.get_by_text("RUN_SUCCESS", exact=True)).to_be_visible()
    expect(beside.get_by_text("Materialized (1)")).to_be_visible()
    beside.close()


def drawn(page: Any) -> list[dict[str, list[float]]]:
    """The curves in each plot of a page as they are drawn: name -> values."""
    found: list[dict[str, list[float]]] = page.locator(".js-plotly-plot:has(path.js-line)").evaluate_all(
        """plots => plots.map(plot => {
            const lines = [...plot.querySelectorAll("path.js-line")].filter(line => line.getTotalLength() > 50);
            const curves = lines.length < plot.data.length ? [] : plot.data;
            return Object.fromEntries(curves.map(({name, y}) => [name, [...y]]));
        })"""
    )
    return found


def test_the_demo_from_an_empty_home_to_reasons(new_home, page, tmp_path: Path, monkeypatch, open_pipeline):
    """Every stage and two models by Dagster's pages, the two runs in MLflow, a user on the service's page."""
    from assets.partitions import DATASETS  # the tests' own datasets are among them, since they are known at import

    assert {"demo", "tiny"} <= set(DATASETS.get_partition_keys())
    home = new_home(tmp_path / "home")
    monkeypatch.setenv("SCALE_HOME", str(home))
    monkeypatch.delenv("SCALE_DATASETS")  # the pages list those that come with the project
    with both_uis() as addresses:
        dagster = addresses["dagster"]
        materialise(page, dagster, "data", "semantic_graph", "demo")
        picture(page, "run")
        materialise(page, dagster, "train_on_semantic_graph", "semantic_graph/trained_model", "demo", "scale")
        materialise(page, dagster, "train_on_interactions", "interactions/trained_model", "demo", "lightgcn")
        see_the_graphs(page, dagster)
        with open_pipeline(home) as pipeline:
            assert not pipeline.refresh("demo", ["scale", "lightgcn"]).run().ran
            compare_runs(page, addresses["mlflow"])
    with serving("demo") as service:
        read_reasons(page, service)


def see_the_graphs(page: Any, dagster: str) -> None:
    """The stages from profiles on as a graph, and what is on record of one: a histogram among it."""
    page.goto(f"{dagster}/asset-groups")
    page.get_by_text("Hide navigation").click()
    page.goto(f"{dagster}/asset-groups~{quote(FROM_PROFILES, safe='')}/")
    page.get_by_placeholder("Jump to").locator("xpath=following::button[1]").click()  # a group's name is there once
    for group in ("profiles", "embeddings", "graphs", "models", "recommendations"):
        page.get_by_text(group, exact=True).click()
        page.wait_for_timeout(1500)
    page.set_viewport_size({"width": SIZE["width"], "height": 860})
    page.reload()  # then all of it fits
    page.get_by_text("semantic_graph", exact=True).wait_for()
    picture(page, "asset-graph", height=860)
    page.goto(f"{dagster}/assets/semantic_graph?view=partitions&partition=demo")
    page.get_by_text("Materialized", exact=True).wait_for()
    page.get_by_role("row").filter(has_text="degree_histogram").get_by_text("Show Markdown").click()
    page.get_by_role("dialog").get_by_alt_text("degrees").wait_for()
    page.add_style_tag(content=ASIDE)
    picture(page, "asset-page", height=760)


def compare_runs(page: Any, address: str) -> None:
    """Both runs of the demo side by side with the numbers that are stored, and their curves."""
    import mlflow
    from playwright.sync_api import expect

    from assets.tracking import connect

    experiment = connect("demo")
    client = mlflow.MlflowClient()
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}

    def history(run: str, metric: str) -> list[float]:
        return [point.value for point in client.get_metric_history(run, metric)]

    page.goto(f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    rows = page.get_by_role("checkbox", name="Press Space to toggle row selection")
    expect(rows).to_have_count(2)
    for row in rows.all():
        row.click()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 2 Runs").wait_for()
    columns = page.locator("table").first.get_by_role("link").all_inner_texts()
    assert set(columns) == set(runs)
    for part in ("Visualizations", "Parameters"):
        page.get_by_role("button", name=part, expanded=True).click()
    if (assistant := page.get_by_role("button", name="Close", exact=True)).is_visible():
        assistant.click()
    names, values = page.get_by_role("grid").nth(0), page.get_by_role("grid").nth(1)
    picture(page, "compared-table")
    values.evaluate("grid => grid.scrollTop = grid.scrollHeight / 2")  # what is far from sight is not in the page
    for metric in ("test_recall_at_10", "test_recall_at_20", "test_ndcg_at_10", "test_ndcg_at_20"):
        name = names.locator("[role=rowgroup] > div").filter(has_text=re.compile(f"^{metric}$"))
        row = values.locator(f"[role=rowgroup] > div[style*='top: {name.evaluate('cell => cell.style.top')};']")
        stored = [runs[run].data.metrics[metric] for run in columns]
        assert len(set(stored)) == 2
        expect(row).to_have_text([f"{round(value, 3):g}" for value in stored])  # as MLflow rounds
    values.evaluate("grid => grid.scrollTop = grid.scrollHeight")
    names.get_by_text(re.compile("^valid_recall_at_20$")).dispatch_event("click")
    page.locator(".js-plotly-plot path.js-line").nth(1).wait_for()
    both = {found.info.run_name: history(run, "valid_recall_at_20") for run, found in runs.items()}
    assert drawn(page) == [both]
    picture(page, "compared-runs", height=680)
    (scale,) = [run for run, found in runs.items() if found.data.tags["model"] == "scale"]
    page.goto(f"{address}/#/experiments/{experiment}/runs/{scale}/model-metrics")
    page.get_by_placeholder("Search metric").fill(CURVES)
    metrics = [name for name in runs[scale].data.metrics if re.match(CURVES, name)]
    expect(page.locator(".js-plotly-plot:has(path.js-line)")).to_have_count(len(metrics))
    shown = [values for plot in drawn(page) for values in plot.values()]
    assert sorted(shown) == sorted(history(scale, name) for name in metrics)
    picture(page, "mlflow-run")


def read_reasons(page: Any, service: str) -> None:
    """Search a user, and read what both models recommend and why."""
    from playwright.sync_api import expect

    def first(user: str, model: str) -> dict[str, Any]:
        found: dict[str, Any] = answered(service, "recommendations", user=user, model=model)["recommendations"][0]
        return found

    titles = {"SCALE": "scale", "LightGCN": "lightgcn"}
    users = [each["user"] for each in answered(service, "users", limit=50)["users"]]
    user = next(each for each in users if all(first(each, model)["reasons"] for model in titles.values()))
    page.goto(service)
    page.get_by_role("searchbox").press_sequentially(user)
    found = page.get_by_role("list", name="Users found").get_by_role("button")
    expect(found).to_have_count(1)
    found.click()
    expect(page.get_by_role("heading", name=f"User {user}")).to_be_visible()
    for title, model in titles.items():
        top = page.get_by_role("list", name=f"Recommendations of {title}").get_by_role("listitem").first
        expect(top.locator(".title")).to_have_text(first(user, model)["title"])
        expect(top.locator(".because")).to_contain_text(first(user, model)["reasons"][0]["title"])
        expect(top.locator("details > .prose")).to_be_visible()  # why, in full, of the first one
    picture(page, "serving", 1280, 1320)


def reload_until(page: Any, wanted: Any) -> None:
    """Look at a page anew until something is on it."""
    from playwright.sync_api import TimeoutError as NotThere

    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            wanted.wait_for(timeout=10_000)
            return
        except NotThere:
            page.reload()
    raise TimeoutError(str(wanted))


def test_an_edited_prompt_shows_what_is_stale_and_a_refresh_runs_that_alone(shop, page, open_pipeline):
    from playwright.sync_api import expect

    with open_pipeline(shop.home) as pipeline, both_uis() as addresses:
        shop.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
        profiles = f"{addresses['dagster']}/assets/user_profiles?view=partitions&partition=shop"
        page.goto(profiles)
        expect(page.get_by_text("Materialized", exact=True)).to_be_visible()
        unsynced = page.get_by_text("Unsynced (1)")
        reload_until(page, unsynced)
        page.get_by_placeholder("Filter by name").fill("shop")
        page.get_by_text("Hide navigation").click()
        page.set_viewport_size({"width": 1280, "height": 520})
        unsynced.hover()
        expect(page.get_by_text("has a new data version")).to_be_visible()
        cause = page.get_by_role("link", name="settings / user_profiles")
        expect(cause).to_be_visible()
        picture(page, "stale", 1280, 520)
        cause.click()
        edit = "user prompt edited: 'Rely on the history, .* -> 'Please rely on the history, "
        expect(page.get_by_text(re.compile(edit))).to_be_visible()
        page.goto(f"{addresses['dagster']}/assets/item_profiles?view=partitions&partition=shop")
        expect(page.get_by_text("Materialized", exact=True)).to_be_visible()
        expect(page.get_by_text("Unsynced")).to_have_count(0)
        rows = [line.split("│")[1:-1] for line in told("status", "-d", "shop").splitlines() if "│" in line]
        stale = {name.strip(): why.strip() for name, state, _, _, why in rows if state.strip() == "stale"}
        assert set(stale) == USER_PROFILES
        assert all(re.match(edit, why) for why in stale.values())

        page.goto(f"{addresses['dagster']}/locations/scale/jobs/refresh/playground")
        page.get_by_placeholder("Partition").click()
        page.get_by_placeholder("Partition").fill("shop")
        page.get_by_role("menuitem", name="shop").click()
        launch(page)
        run = wait_for_run(pipeline.instance, "refresh", "shop")
        assert run.status == dg.DagsterRunStatus.SUCCESS
        expected = {*USER_PROFILES, *OF_USERS, *OF_A_MODEL}
        waves = pipeline.instance.get_runs(dg.RunsFilter(tags={"scale/refresh": run.run_id}))
        assert set().union(*(made_by(pipeline.instance, wave) for wave in waves)) == expected
        page.set_viewport_size({"width": SIZE["width"], "height": 2000})  # every line of the log
        page.goto(f"{addresses['dagster']}/runs/{run.run_id}")
        page.get_by_text(re.compile("running user_profiles: user prompt edited: 'Rely on the history")).first.wait_for()
        page.get_by_text(re.compile(rf"ran {len(expected)} of \d+ stages")).wait_for()
        lines = page.get_by_text(re.compile(r"^running \w+")).all_inner_texts()
        assert {re.match(r"running (\w+)", line)[1] for line in lines} == expected
        picture(page, "refresh", height=1500)
        page.goto(profiles)
        expect(page.get_by_text("Materialized", exact=True)).to_be_visible()
        expect(page.get_by_text("Unsynced")).to_have_count(0)


@contextmanager
def serving(dataset: str, *options: str) -> Iterator[str]:
    """Address of `scale serve` for a dataset."""
    address = r"http://127\.0\.0\.1:\d+"
    with served(["serve", "-d", dataset, "--port", "0", *options], address) as said:
        yield re.findall(address, said)[0]


@pytest.fixture
def service(finished) -> Iterator[str]:
    """Address of the service of a finished dataset."""
    with serving("tiny") as address:
        yield address


def barriers(page: Any) -> str:
    """What axe finds that keeps people out, in light and in dark colours; empty where there is nothing."""
    from axe_playwright_python.sync_playwright import Axe

    reports = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert len(found.response["passes"]) > 10  # it has looked
        reports += [found.generate_report()] if found.violations_count else []
    return "\n".join(reports)


def test_the_service_page_keeps_nobody_out(service: str, page):
    page.goto(service)
    page.get_by_text("Because of").first.wait_for()
    assert barriers(page) == ""
    picture(page, "service")
    for summary in page.locator("summary").all():
        if summary.evaluate("each => !each.parentElement.open"):
            summary.click()
    assert barriers(page) == ""
    page.get_by_label("Someone new, in words").fill(page.locator("#who .prose").inner_text())
    page.get_by_role("button", name="Recommend").click()
    page.get_by_text("Items whose texts are nearest").wait_for()
    assert barriers(page) == ""
    page.set_viewport_size({"width": 360, "height": 700})
    assert barriers(page) == ""
    page.goto(f"{service}/#user=nobody")
    page.get_by_role("alert").wait_for()
    assert barriers(page) == ""
    page.evaluate("document.querySelector('label[for=search]').remove()")
    assert "Ensure every form element has a label" in barriers(page)  # what is wrong would be found


def answered(service: str, path: str, **query: str | int) -> dict[str, Any]:
    """What the service tells a program."""
    answer: dict[str, Any] = httpx.get(f"{service}/v1/{path}", params=query).raise_for_status().json()
    return answer


def test_a_user_is_searched_for_and_two_models_are_read_side_by_side(service: str, page):
    from playwright.sync_api import expect

    page.goto(service)
    found = page.get_by_role("list", name="Users found").get_by_role("button")
    expect(page.get_by_text("and more; type further")).to_be_visible()
    first, *_, user = (each["user"] for each in answered(service, "users", limit=100)["users"])
    expect(page.get_by_role("heading", name=f"User {first}")).to_be_visible()
    page.get_by_role("searchbox").press_sequentially(user[:-1])
    alike = answered(service, "users", prefix=user[:-1], limit=50)["users"]
    expect(found).to_have_text([f"{each['user']}{each['items']}" for each in alike])
    assert first not in {each["user"] for each in alike}
    found.filter(has_text=user).click()
    expect(page.get_by_role("heading", name=f"User {user}")).to_be_visible()
    expect(found.and_(page.locator("[aria-current]"))).to_contain_text(user)

    shown = answered(service, "user", user=user)
    expect(page.locator("#who .prose")).to_have_text(shown["profile"])
    history = page.locator(".part").filter(has=page.get_by_role("heading", name=re.compile("^History")))
    expect(history.get_by_role("listitem")).to_have_text([item["title"] for item in shown["history"]])

    page.get_by_label("Model", exact=True).select_option("LightGCN")
    page.get_by_label("Beside it").select_option("SCALE")
    asked = {"LightGCN": "lightgcn", "SCALE": "scale"}
    ranked = {
        title: answered(service, "recommendations", user=user, model=name)["recommendations"]
        for title, name in asked.items()
    }
    assert ranked["LightGCN"] != ranked["SCALE"]
    places = []
    for title, other in (("LightGCN", "SCALE"), ("SCALE", "LightGCN")):
        shown_list = page.get_by_role("list", name=f"Recommendations of {title}")
        expect(shown_list.locator(".title")).to_have_text([item["title"] for item in ranked[title]])
        because = [
            "Because of " + ", ".join(f"{each['title']} ({each['similarity']:.2f})" for each in item["reasons"])
            for item in ranked[title]
            if item["reasons"]
        ]
        assert because
        expect(shown_list.locator(".because")).to_have_text(because)
        ranks = {item["item"]: item["rank"] for item in ranked[other]}
        both = [f"{other} has it at {ranks[item['item']]}" for item in ranked[title] if item["item"] in ranks]
        expect(shown_list.get_by_text("has it at")).to_have_text(both)
        places.append(shown_list.bounding_box())
    assert places[0]["x"] + places[0]["width"] <= places[1]["x"]
    assert places[0]["y"] == places[1]["y"]

    picture(page, "models")

    page.get_by_label("Beside it").select_option("none")
    expect(page.get_by_role("list", name="Recommendations of")).to_have_count(1)
    page.go_back()
    expect(page.get_by_role("list", name="Recommendations of")).to_have_count(2)
    page.get_by_role("searchbox").fill("nobody")
    expect(page.get_by_text("no user's id starts so")).to_be_visible()
    expect(found).to_have_count(0)


def test_the_page_asks_for_the_token_until_it_is_the_right_one(finished, page, tmp_path: Path):
    from playwright.sync_api import expect

    (tmp_path / "token").write_text("right-token\n")
    with serving("tiny", "--token-file", str(tmp_path / "token")) as address:
        page.goto(address)
        problem, token = page.get_by_role("alert"), page.get_by_label("Token of this service")
        use, lists = page.get_by_role("button", name="Use it"), page.get_by_role("list", name="Recommendations of")
        expect(problem).to_have_text("This service asks for its token first.")
        expect(lists).to_have_count(0)
        token.fill("wrong-token")
        use.click()
        expect(problem).to_have_text("That is not the token of this service.")
        expect(lists).to_have_count(0)
        token.fill("right–token")  # a dash that cannot stand in a header
        use.click()
        expect(token).to_be_visible()
        assert token.evaluate("field => field.validity.patternMismatch")
        token.fill("right-token")
        token.press("Enter")
        expect(lists).to_have_count(2)
        expect(problem).to_be_hidden()
        expect(token).to_be_hidden()
        page.reload()  # it is kept nowhere
        expect(token).to_be_visible()
