"""How well the judges agree with people: the Will and the Conscience on answers that people have labelled."""
