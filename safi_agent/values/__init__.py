"""Value sets: the model, loading from YAML, and linting of value-set files."""

from safi_agent.values.loading import load_values, shipped, text_of
from safi_agent.values.model import MOST_VALUES, Value, ValueSet, label

__all__ = ["MOST_VALUES", "Value", "ValueSet", "label", "load_values", "shipped", "text_of"]
