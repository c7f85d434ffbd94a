"""The real service with fake_worker.py for its worker. Prints its port once it serves; a port may be asked for."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from app.executors.local import LocalExecutor
from app.main import create_app
from app.settings import Settings

JOB = [sys.executable, str(Path(__file__).parents[1] / "fake_job.py")]
WORKER = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
SLOTS = 8  # no test waits for the run of another


class Announcing(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)


def main(port: int) -> None:
    settings = Settings()
    app = create_app(settings, LocalExecutor(None, settings.cache, SLOTS, worker=WORKER, job=JOB))
    options = {"ws": "websockets-sansio", "access_log": False, "log_level": "warning", "timeout_graceful_shutdown": 1}
    Announcing(uvicorn.Config(app, host="127.0.0.1", port=port, **options)).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
