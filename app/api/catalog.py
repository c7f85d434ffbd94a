"""What can be asked for: presets, parameters, metrics, problems."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from app.api.errors import PROBLEMS, NoSuchThing
from cognate.config import PRESETS, RECIPES, SPECIALISTS, json_schema, resolve
from cognate.metrics import METRICS

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/presets", summary="Presets with their whole configuration, by recipe")
def list_presets() -> dict[str, Any]:
    return {"data": [_preset(name) for name in PRESETS]}


def _preset(name: str) -> dict[str, Any]:
    names = RECIPES if name in SPECIALISTS else RECIPES[:1]
    recipes = {recipe: resolve(name, {"recipe": recipe}).model_dump(mode="json") for recipe in names}
    return {"name": name, "config": recipes["report"], "recipes": recipes}


@router.get("/config/schema", summary="JSON Schema of a run's configuration")
def get_config_schema() -> dict[str, Any]:
    return json_schema()


@router.get("/metrics", summary="The 37 metrics")
def list_metrics() -> dict[str, Any]:
    return {"data": [asdict(metric) for metric in METRICS]}


@router.get("/problems/{name}", summary="What an error means")
def get_problem(name: str) -> dict[str, Any]:
    if name not in PROBLEMS:
        raise NoSuchThing(f"no problem {name!r}; have {', '.join(PROBLEMS)}")
    status, meaning = PROBLEMS[name]
    return {"type": f"/v1/problems/{name}", "status": status, "meaning": meaning}
