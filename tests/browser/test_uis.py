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
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from tests.ports import free_port
from tests.stages import OF_A_MODEL, OF_USERS, USER_PROFILES

pytest.importorskip("playwright", reason="install the dev extra for a browser to be driven")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="install chromium to see the UIs in a browser"),
]

SECONDS = 120
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


@pytest.fixture
def addresses(shop) -> Iterator[dict[str, str]]:
    """Both UIs of a finished shop, as `scale ui` serves them."""
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
        opened = browser.new_page(viewport={"width": 1500, "height": 950})
        opened.set_default_timeout(1000 * SECONDS)
        yield opened
        browser.close()


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("SCALE_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png")


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


def test_a_partition_is_materialised_and_an_edited_prompt_refreshed(shop, addresses, page, open_pipeline):
    with open_pipeline(shop.home) as pipeline:
        page.goto(f"{addresses['dagster']}/asset-groups~%2Bkey%3A%22user_subspace_graph%22/")
        page.get_by_role("button", name="Materialize all").first.click()
        page.get_by_role("button", name="Confirm").click()
        page.get_by_text("Select a partition or create one").click()
        page.keyboard.type("tiny")
        page.get_by_role("menuitem").filter(has_text="tiny").last.click()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Launch 1 run").click()
        run = wait_for_run(pipeline.instance, "__ASSET_JOB", "tiny")
        assert run.status == dg.DagsterRunStatus.SUCCESS
        assert "user_subspace_graph" in made_by(pipeline.instance, run)
        page.goto(f"{addresses['dagster']}/assets/user_subspace_graph?view=partitions&partition=tiny")
        page.get_by_text("Materialized").first.wait_for()
        picture(page, "partition")

        shop.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
        # Dagster compares code and inputs, not prompts: the command tells what is stale before anything runs, and why.
        rows = [line.split("│")[1:-1] for line in told("status", "-d", "shop").splitlines() if "│" in line]
        stale = {name.strip(): why.strip() for name, state, _, _, why in rows if state.strip() == "stale"}
        assert set(stale) == USER_PROFILES
        edit = "user prompt edited: 'Rely on the history, .* -> 'Please rely on the history, "
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
        page.goto(f"{addresses['dagster']}/runs/{run.run_id}")
        page.get_by_text(re.compile("running user_profiles: user prompt edited: 'Rely on the history")).first.wait_for()
        picture(page, "refresh")


def test_two_runs_are_compared(addresses, page, shop, open_pipeline):
    import mlflow

    from assets.tracking import connect

    with open_pipeline(shop.home):
        experiment = connect("shop")
        runs = mlflow.MlflowClient().search_runs([experiment])
    page.goto(f"{addresses['mlflow']}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    rows = page.get_by_role("checkbox", name="Press Space to toggle row selection")
    rows.nth(1).wait_for()
    assert rows.count() == len(runs) == 3
    for row in (0, 1):
        rows.nth(row).click()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(re.compile("Comparing 2 Runs")).wait_for()
    page.get_by_text("test_recall_at_20").first.wait_for()
    picture(page, "compared")
    page.goto(f"{addresses['mlflow']}/#/experiments/{experiment}/runs/{runs[0].info.run_id}/model-metrics")
    page.get_by_text("valid_recall_at_20").first.wait_for()
    picture(page, "curves")


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Address of `scale serve` for `tiny`."""
    address = r"http://127\.0\.0\.1:\d+"
    with served(["serve", "-d", "tiny", "--port", "0", *options], address) as said:
        yield re.findall(address, said)[0]


@pytest.fixture
def service(finished) -> Iterator[str]:
    """Address of the service of a finished dataset."""
    with serving() as address:
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
    with serving("--token-file", str(tmp_path / "token")) as address:
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
