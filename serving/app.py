"""The signal API: ``uvicorn serving.app:create_app --factory``."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from serving.routes import add_error_answers, router
from serving.sources import Clock, ServingConfig, open_sources, utc_now


def create_app(config: ServingConfig | None = None, *, clock: Clock = utc_now) -> FastAPI:
    """The application, configured from the environment unless told; it reads nothing before the first request."""
    app = FastAPI(
        title="Perennial signals",
        version=version("perennial"),
        description="The newest signals of the staged models: Staging as paper, Production as live.",
    )
    app.state.sources = open_sources(config or ServingConfig.from_env(), clock)
    app.include_router(router)
    add_error_answers(app)
    return app
