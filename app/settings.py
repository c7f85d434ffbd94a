"""What the service is told by its environment: COGNATE_HOME, COGNATE_PORT, and the rest of these fields."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cognate.rundir import Places


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="COGNATE_", env_ignore_empty=True, frozen=True)

    home: Path = Field(Path("var"), description="Folder of all state: database, runs, caches.")
    data_dir: Path | None = Field(None, description="Folder of Parquet datasets; without it runs use fetched ones, or generated problems.")
    host: str = Field("127.0.0.1", description="Address to bind; any but loopback requires a token.")
    port: int = Field(8000, ge=0, le=65535)
    token: SecretStr | None = Field(None, description="Bearer token; on loopback the service is open when there is none.")
    token_file: Path | None = Field(None, description="File with the token, in place of `token`.")
    allowed_hosts: tuple[str, ...] = Field((), description="Further Host names to answer to, besides loopback and the bound address.")
    cpu_slots: int = Field(1, ge=0, le=64, description="Runs at a time on the CPU.")
    spare_worker: bool = Field(True, description="Keep one worker loaded, so that a run begins in a second; takes 0.4 GB of memory.")
    auto_resume: int = Field(3, ge=0, le=1000, description="How often a run whose worker was lost is launched again without new progress.")
    stall_after_s: float = Field(900.0, gt=0, description="Seconds without a word from a worker after which its run counts as stalled.")
    on_stall: Literal["warn", "restart"] = Field("warn", description="What happens to a stalled run: only a warning, or a new worker.")
    job_stall_after_s: float = Field(3600.0, gt=0, description="Seconds without a word from a job after which it is ended.")
    wandb: Literal["auto", "offline", "off"] = Field(
        "auto", description="The most that is done for Weights & Biases: what each run asks for, only files, or nothing."
    )
    shutdown_grace_s: float = Field(60.0, ge=0, description="Seconds given to running workers to save before a shutdown kills them.")

    @property
    def database(self) -> Path:
        return self.home / "cognate.db"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def has_data(self) -> bool:
        """Whether there may be any real dataset: a data folder is named, or something was fetched."""
        fetched = Places(None, self.cache).fetched
        return self.data_dir is not None or (fetched is not None and any(fetched.glob("*/*.parquet")))

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
