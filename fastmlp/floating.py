"""How fastmlp's own floating-point arithmetic goes on, whatever a program has asked of NumPy."""

import numpy as np

quiet = np.errstate(all="ignore")
"""Decorates what users call.  What underflows is 0, as it should be in an exponential; what overflows or is NaN is
looked for where it matters, and refused by name: ``np.seterr(all="raise")`` is for a program's own arithmetic."""
