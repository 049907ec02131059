"""Pictures, as matplotlib figures that need no display and read well in black and white.

Each function draws on axes that it is given, or on those of a new figure, and returns axes; `save` and `save_both`
write the figure that they are in.  matplotlib comes with ``pip install "fastmlp[plot]"`` and is imported when a picture
is asked for; pyplot, with its global state, never is.
"""

from fastmlp.plots.functions import approximation, regions
from fastmlp.plots.images import first_layer, mistakes, samples
from fastmlp.plots.pictures import (
    MAX_MARKERS,
    MissingGlyphsWarning,
    MissingMatplotlibError,
    Picture,
    panels,
    save,
    save_both,
)
from fastmlp.plots.runs import MAX_NUMBERED, confusion, curves, lines

__all__ = [
    "MAX_MARKERS",
    "MAX_NUMBERED",
    "MissingGlyphsWarning",
    "MissingMatplotlibError",
    "Picture",
    "approximation",
    "confusion",
    "curves",
    "first_layer",
    "lines",
    "mistakes",
    "panels",
    "regions",
    "samples",
    "save",
    "save_both",
]
