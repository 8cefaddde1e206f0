"""From options to a server that listens, and from a signal to one that has ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import uvicorn

from packhorse.embeddings import SentenceEncoder
from packhorse.engine_protocol.registry import engine_entry
from packhorse.errors import ConfigError
from packhorse.inference.job_settings import check_sampling_support
from packhorse.inference.model import check_batching, check_decoding, prepare_for
from packhorse.jobs.host_names import host_name, is_loopback
from packhorse.models import PreparedModel, prepare_embedding_model
from packhorse.profiling.cores import usable_cores
from packhorse.serve.app import application
from packhorse.serve.background import BackgroundTasks
from packhorse.serve.batch_documents import BatchDocuments
from packhorse.serve.batches import Batches
from packhorse.serve.child import EngineSpec
from packhorse.serve.config import ServeConfig
from packhorse.serve.embedding import Embedder
from packhorse.serve.errors import APIError
from packhorse.serve.files import FileStore
from packhorse.serve.http_limits import limited_protocol
from packhorse.serve.listening import (
    accept_batch_size,
    address_of,
    allowed_connections,
    listen,
    report_exhaustion_once,
)
from packhorse.serve.middleware import AccessMiddleware, is_origin
from packhorse.serve.prometheus import ServerMetrics
from packhorse.serve.request_queue import RequestQueue
from packhorse.serve.service import Service
from packhorse.serve.state_folder import claimed_state_folder
from packhorse.serve.supervisor import Supervisor

Report = Callable[[str], None]
CLOSE_SECONDS = 5
"""For answers that are written while connections close."""


def serve(config: ServeConfig, report: Report = lambda text: None) -> bool:
    """Serves until SIGINT or SIGTERM; returns whether all requests under way could be answered.

    A second signal ends it without waiting. Raises PackhorseError for what cannot be served:
    options, the port, the model, the engine.
    """
    check(config)
    listener = listen(config.host, config.port)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(listener))
        stack.enter_context(claimed_state_folder(config.state))
        prepared = prepare_for(
            config.model,
            config.engine,
            policy=config.batching.policy,
            sampling=config.decoding.engine_fields,
            allow_pickle=config.allow_pickle,
            prompts=config.prompts,
            report=report,
        )
        check_sampling_support(config.decoding, engine_entry(prepared.engine))
        encoder = _encoder(config.embeddings, report)
        config = _within_open_files(config, report)
        return asyncio.run(_serve(config, prepared, encoder, listener, report))


def check(config: ServeConfig) -> None:
    """Raises ConfigError for options that make no sense or are not safe."""
    check_batching(config.batching)
    check_decoding(config.decoding)
    if config.embeddings is not None and config.embeddings_name in (
        config.served_name,
        *config.aliases,
    ):
        raise ConfigError(
            f"both models would be called {config.embeddings_name}",
            "give the first another --served-model-name or --alias",
        )
    if not config.api_keys and not is_loopback(config.host):
        raise ConfigError(
            f"others can reach {config.host}, and no API key is asked for",
            "give --api-key-file, or listen on 127.0.0.1",
        )
    for origin in config.allowed_origins:
        if not is_origin(origin):
            raise ConfigError(
                f"{origin!r} is no origin that a browser sends",
                "give --allow-origin the scheme and host of a page, such as https://app.example, "
                "or * for every page",
            )
    for name in config.allowed_hosts:
        if not host_name(name) or "/" in name:
            raise ConfigError(
                f"{name!r} is no name that a Host header can have",
                "give --allow-host a name alone, such as models.example",
            )
    at_least = {
        "max_queue": (config.queue.max_rows, 1),
        "max_queue_tokens": (config.queue.max_tokens, 1),
        "max_delay": (config.queue.max_delay_seconds, 0),
        "drain_seconds": (config.drain_seconds, 0),
        "stall_seconds": (config.stall_seconds, 0),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise ConfigError(f"{name} is {value}", f"give {least} or more")


def _within_open_files(config: ServeConfig, report: Report) -> ServeConfig:
    """With as many connections as the limit of open files allows."""
    wanted = config.limits.connections
    allowed = allowed_connections(wanted)
    if allowed == wanted:
        return config
    report(f"at most {allowed} connections at once, by the limit of open files (ulimit -n)")
    return replace(config, limits=replace(config.limits, connections=allowed))


class _Server(uvicorn.Server):
    """uvicorn without its signals: `_serve` decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _encoder(name: str | None, report: Report) -> SentenceEncoder | None:
    """Uses half of the cores at most: the engine has the others."""
    if name is None:
        return None
    import torch

    folder = prepare_embedding_model(name, report)
    torch.set_num_threads(max(1, usable_cores() // 2))
    return SentenceEncoder(folder)


async def _serve(
    config: ServeConfig,
    prepared: PreparedModel,
    encoder: SentenceEncoder | None,
    listener: socket.socket,
    report: Report,
) -> bool:
    report_exhaustion_once(report)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of clients' mistakes
    metrics = ServerMetrics()
    what = EngineSpec(prepared, config.engine, config.batching, config.decoding)
    waiting = RequestQueue(config.queue)
    supervisor = Supervisor(what, waiting, metrics, report, config.stall_seconds)
    service = Service(
        name=config.served_name,
        prepared=prepared,
        decoding=config.decoding,
        supervisor=supervisor,
        codec=prepared.codec(),
        max_log_probs=config.limits.log_probs,
        names=config.model_names,
        aliases=config.aliases,
        background=BackgroundTasks(report),
        prompts=config.prompts,
        report=report,
    )
    if fault := service.codec.template_fault():
        report(f"all chats will be refused: {fault}")
    batches = _batches(config, service, report)
    embedder = _embedder(config, encoder, metrics)
    app = application(config, service, metrics, batches, embedder)
    server = _Server(_uvicorn(config, app))
    signals = _Signals()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(supervisor.start())
    asked = asyncio.create_task(signals.stop_requested.wait())
    batching: asyncio.Task[None] | None = None
    background = service.background
    try:
        await _first_of(loading, asked, serving)
        if loading.done():
            loading.result()
            engine_task, stall_task = supervisor.engine_task, supervisor.stall_task
            assert engine_task is not None
            background.watch("the supervisor of the engine", engine_task)
            if stall_task is not None:
                background.watch("the watch for an engine that stalls", stall_task)
            if batches is not None:
                batching = asyncio.create_task(batches.run())
                background.watch("the task that runs batches", batching)
            report(f"serving {service.name} at {address_of(listener)}")
            await _first_of(asked, serving, engine_task)
        if batching is not None:
            batching.cancel()
            await asyncio.gather(batching, return_exceptions=True)
        report("finishing what is under way; signal again to end at once")
        draining = [each for each in (supervisor, embedder) if each is not None]
        ended = [each.drain(config.drain_seconds, signals.force_exit) for each in draining]
        is_clean = all(await asyncio.gather(*ended))
        return is_clean and not background.failed
    finally:
        loading.cancel()
        asked.cancel()
        server.should_exit, server.force_exit = True, signals.force_exit.is_set()
        if embedder is not None:
            embedder.close()
        await supervisor.stop()
        await serving
        service.close()


def _embedder(
    config: ServeConfig, encoder: SentenceEncoder | None, metrics: ServerMetrics
) -> Embedder | None:
    if encoder is None:
        return None
    return Embedder(config.embeddings_name, encoder, config.limits, metrics)


def _batches(config: ServeConfig, service: Service, report: Report) -> Batches | None:
    if config.state is None:
        return None
    limits = config.limits
    files = FileStore(
        config.state / "files", limits.stored_bytes, limits.reserved_disk_bytes, report
    )
    batches = Batches(BatchDocuments(config.state / "batches", report), files, service, report)
    try:
        batches.recover()
    except APIError as problem:
        raise ConfigError(
            f"{config.state} cannot be read: {problem.__cause__}", "check its permissions"
        ) from problem
    return batches


def _uvicorn(config: ServeConfig, guarded: AccessMiddleware) -> uvicorn.Config:
    return uvicorn.Config(
        guarded,
        http=limited_protocol(config.limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=config.limits.header_bytes,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        backlog=accept_batch_size(config.limits.connections),
    )


class _Signals:
    """asked: set by the first SIGINT or SIGTERM; force_exit: by the second."""

    def __init__(self) -> None:
        self.stop_requested, self.force_exit = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._handle)

    def _handle(self) -> None:
        (self.force_exit if self.stop_requested.is_set() else self.stop_requested).set()


async def _first_of(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
