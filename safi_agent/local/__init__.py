"""A judge of one's own: a small encoder with one head per value, trained from audits and human labels.

Needs ``pip install "sal-lightning[local]"``. Nothing outside this package imports torch.
"""

from importlib.util import find_spec

REQUIRED = ("lightning", "safetensors", "torch", "transformers")
if _missing := [name for name in REQUIRED if find_spec(name) is None]:
    raise ImportError(f'{", ".join(_missing)} not installed: pip install "sal-lightning[local]"', name=__name__)
