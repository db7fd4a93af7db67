"""`ExportTask`: one document to be made."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ExportTask"]


class ExportTask(BaseModel):
    """An export task as it travels: flat JSON.

    ``version`` may be missing and unknown fields are ignored, so that older and newer senders are understood.
    """

    model_config = ConfigDict(extra="ignore")

    #: Made by the sender; also the name of the finished document.
    task_id: str = Field(default_factory=lambda: uuid.uuid4().hex, min_length=1)
    #: Which template renders the document.
    template_id: str = Field(min_length=1)
    #: What the template shows.
    data: dict[str, Any] = Field(default_factory=dict)
    #: For example docx, pdf, xlsx, csv or html.
    output_format: str = Field(min_length=1)
    priority: int = Field(default=0, ge=0, le=9)
    version: str = "1.0"
