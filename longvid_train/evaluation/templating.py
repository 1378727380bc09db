"""Pages from the package's templates: every text from data is escaped by the template engine, nothing is fetched."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_QUALITY = 88

Filter = Callable[..., str]


def page_environment(filters: Sequence[Filter]) -> Environment:
    """The templates of ``evaluation/templates`` with filters under their own names."""
    environment = Environment(
        loader=PackageLoader("longvid_train.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in filters})
    return environment


def read_template(name: str) -> str:
    """A style sheet or script beside the templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def data_uri(frame: NDArray[np.uint8]) -> str:
    """A frame ``(h, w, 3)`` uint8 as a JPEG data URI without colour subsampling."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, format="JPEG", quality=THUMBNAIL_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
