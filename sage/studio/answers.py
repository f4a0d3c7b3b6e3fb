"""What the API answers: pictures, jobs, results and methods as JSON values."""

import io
from typing import Any

from fastapi import Response
from PIL import Image

from sage.method import Method
from sage.pictures.metadata import settings_in
from sage.pictures.originals import pastes_in
from sage.studio import form
from sage.studio.album import Picture
from sage.studio.jobs import Job
from sage.studio.service import Studio
from sage.studio.visit import Entry


def picture_as(picture: Picture) -> dict[str, Any]:
    """A picture."""
    key = picture.identity["sha256"]
    return {"picture": key, "name": picture.identity["name"], "width": picture.image.width,
            "height": picture.image.height, "scaled": picture.identity.get("scaled", ""),
            "url": f"api/pictures/{key}"}


def png_of(image: Image.Image) -> Response:
    """A PNG, which its visitor may keep for a while."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def job_as(studio: Studio, job: Job[Any]) -> dict[str, Any]:
    """A job as JSON values."""
    found: dict[str, Any] = {"job": job.id, "kind": job.kind, "state": job.state, "error": job.error,
                             "ahead": studio.jobs.ahead(job) if job.state == "waiting" else 0,
                             "glimpses": job.glimpses, "part": job.part, "parts": job.parts,
                             "results": [], **job.clock.as_dict()}
    if job.state == "done" and job.kind in ("edit", "live", "generate", "variants"):
        came = job.result()
        found["results"] = [result_as(entry) for entry in (came if isinstance(came, list) else [came])]
    return found


def result_as(entry: Entry) -> dict[str, Any]:
    """A result as JSON values."""
    record, url = entry.record, f"api/results/{entry.key}"
    return {"result": entry.key, "name": entry.path.name, "url": url, "after": f"{url}/after.png",
            "before": f"{url}/before.png" if "picture" in record else "", "source": record.get("source", ""),
            "target": record["target"], "method": record["method"], "model": record["model"],
            "settings": record["settings"], "took": round(entry.took, 2),
            "saved": None if entry.saved is None else round(entry.saved, 2), "notes": list(entry.notes),
            "begins": round(entry.begins, 3), "task": record.get("task", "edit"),
            "picture": record.get("picture", {}).get("sha256", "")}


def record_as(studio: Studio, who: str, record: dict[str, Any]) -> dict[str, Any]:
    """What a page needs of a record to show its settings again."""
    task, picture = record.get("task", "edit"), studio.visit(who).picture
    pictured = "picture" in record and picture is not None and picture.is_of(record)
    return {"task": task, "source": record.get("source", ""), "target": record["target"],
            "negative": record.get("negative", ""), "model": record["model"], "truncate": record["truncate"],
            "here": record["model"] in studio.places, "prediction": record.get("prediction_type") or "",
            "picture": record.get("picture"), "pictured": pictured, "size": record.get("size"),
            "references": [paste.reference["name"] for paste in pastes_in(record)],
            "mask": studio.album.mask_in(who, record), "moves": studio.album.moves_in(who, record),
            "paste": "paste" in record,
            "edits": record.get("edits", []),
            "form": form.shown(settings_in(record), task)}


def method_as(method: Method[Any]) -> dict[str, Any]:
    """A method as JSON values."""
    return {"name": method.name, "title": method.title, "paper": method.paper, "calls": method.calls,
            "about": form.sentence(method.about), "reads": sorted(method.reads), "strength": method.strength,
            "keep": method.keep}
