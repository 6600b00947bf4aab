"""SCALE and the systems that it is compared with, how they are trained and evaluated."""

import os

# Intel's BLAS, which torch uses, splits long sums between threads where the processor is Intel's, so that their number
# would change the last bits of a result. So told before its first product, it does not, and is as fast.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
