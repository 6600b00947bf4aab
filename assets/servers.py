"""The two UIs, side by side, on the loopback interface."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time

from assets import home, terminal
from assets.tracking import connect

HOST = "127.0.0.1"
READY_SECONDS = 120
STOP_SECONDS = 75  # Dagster itself waits a minute for its pages to close
# One worker serves one person; the job runners (seven processes) are for features that have no use here.
MLFLOW_VARIABLES = {
    "MLFLOW_WORKERS": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def serve(dagster_port: int, mlflow_port: int) -> None:
    """Start `dagster dev` and `mlflow server`, print their addresses once they answer, stop both on Ctrl-C."""
    if importlib.util.find_spec("dagster_webserver") is None:
        raise RuntimeError(
            "the Dagster UI is not installed; install it with: pip install -e '.[ui]' -c constraints.txt"
        )
    for name, port in (("Dagster", dagster_port), ("MLflow", mlflow_port)):
        if _answers(port):
            option = f"--{name.lower()}-port"
            raise RuntimeError(f"port {port} is taken; give the {name} UI another one with {option} {port + 1}")
    home.dagster_home()
    connect("demo")  # makes the store before the server opens it
    python = [sys.executable, "-m"]
    uri = home.tracking_uri()  # not as an argument: those are for all to see, and a password may stand in it
    logs = home.home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    commands = {
        "dagster": [*python, "dagster", "dev", "-h", HOST, "-p", str(dagster_port), "-w", "workspace.yaml"],
        "mlflow": [*python, "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)],
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    # A closed terminal or a `kill` leaves no server behind, nor where a shell started this in the background, which
    # ignores Ctrl-C and has Dagster ignore `kill` too.
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as log:
                stores = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_BACKEND_STORE_URI": uri}
                environment = os.environ | MLFLOW_VARIABLES | stores
                processes[name] = subprocess.Popen(
                    command, cwd=home.PROJECT, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
        terminal.console.print("starting both UIs ...")
        for name, port in (("dagster", dagster_port), ("mlflow", mlflow_port)):
            _wait(processes[name], port, name, str(logs / f"{name}.log"))
            terminal.console.print(f"{name:<8} http://{HOST}:{port}")
        # MLflow opens on its pages for language models, and nothing but that click changes it.
        terminal.console.print("In MLflow, choose 'Model training' at the top left. Ctrl-C stops both.")
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
        ended = next(name for name, process in processes.items() if process.poll() is not None)
        raise RuntimeError(f"the {ended} server ended; its log is {logs / f'{ended}.log'}")
    except KeyboardInterrupt:
        terminal.console.print("stopping ...")
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def _wait(process: subprocess.Popen[bytes], port: int, name: str, log: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _answers(port):
        if process.poll() is not None:
            raise RuntimeError(f"the {name} server did not start; its log is {log}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the {name} server does not answer after {READY_SECONDS} s; its log is {log}")
        time.sleep(0.3)
