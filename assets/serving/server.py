"""`scale serve`: take a port, load what the pipeline has stored, answer until Ctrl-C."""

import contextlib
import gc
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import uvicorn
from fastapi import FastAPI

from assets import home, terminal
from assets.serving.app import make_app
from assets.serving.catalogue import load_catalogue, load_models
from assets.serving.endpoints import Service
from assets.serving.protocol import BoundedProtocol
from assets.serving.texts import TextEncoder
from assets.settings import dataset as load_dataset
from model.registry import entry

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
CONNECTIONS = 500  # at a time, below the usual limit of 1,024 open files


def serve(dataset: str, models: Sequence[str] | None, host: str, port: int, token_file: Path | None) -> None:
    """Serve trained models of a dataset.

    Parameters
    ----------
    models
        Names, the first the default; None for every one that is trained.

    Raises
    ------
    ValueError
        Nothing is trained, there is no such dataset or model, or the token cannot be used.
    RuntimeError
        The address cannot be taken.
    """
    settings = load_dataset(dataset)
    for name in models or ():
        entry(name)
    token = read_token(token_file)
    with contextlib.closing(_bound(host, port)) as bound:
        catalogue = load_catalogue(dataset)
        home.dagster_home()
        with dg.DagsterInstance.get() as instance:
            trained = load_models(instance, catalogue, models)
        encode = TextEncoder(settings.embeddings, catalogue.item_profiles, catalogue.text)
        is_local = _is_loopback(bound)
        app = make_app(Service(catalogue, trained, encode), token, LOOPBACK_NAMES if is_local else None)
        address = f"[{host}]" if ":" in host else host
        terminal.console.print(
            f"{', '.join(model.title for model in trained.values())} on {dataset}: {len(catalogue.users):,} users, "
            f"{len(catalogue.items):,} items\nhttp://{address}:{bound.getsockname()[1]}   Ctrl-C stops"
        )
        if not is_local and token is None:
            terminal.note("Anyone who reaches this address reads all users' histories. Give a token with --token-file.")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its last answer
            answer(app, bound)


def answer(app: FastAPI, bound: socket.socket) -> None:
    """Answer at a socket until a signal comes."""
    gc.collect()
    gc.freeze()  # what is loaded stays: a search for garbage in all of it would hold up every request
    uvicorn.Server(bounded(app)).run(sockets=[bound])


def bounded(app: FastAPI) -> uvicorn.Config:
    """uvicorn's settings for the service, with bounds on what anyone may send, with or without a token."""
    return uvicorn.Config(
        app, http=BoundedProtocol, ws="none", limit_concurrency=CONNECTIONS, log_level="warning", access_log=False,
        server_header=False,
    )  # fmt: skip


def read_token(file: Path | None) -> str | None:
    """The token from a file, or from `SCALE_SERVE_TOKEN`; None where there is neither.

    Raises
    ------
    ValueError
        It cannot be read, is empty, or cannot stand in a header.
    """
    if file is not None:
        place = str(file)
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: the token cannot be read: {error}") from error
    else:
        place, given = home.TOKEN_VARIABLE, os.environ.get(home.TOKEN_VARIABLE)
        if given is None:
            return None
        text = given.strip()
    if not text:
        raise ValueError(f"{place} holds no token; write one into it, for example: openssl rand -hex 32")
    if not all("!" <= character <= "~" for character in text):
        raise ValueError(f"{place}: a token is one line of printable ASCII characters without spaces")
    return text


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is told before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise RuntimeError(f"--host {host}: there is no such address here ({error})") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise RuntimeError(
            f"{host}:{port} cannot be taken: {error.strerror}; give another one, for example --port {port + 1}"
        ) from error
    return bound


def _is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback
