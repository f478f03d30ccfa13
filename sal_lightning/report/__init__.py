"""Reports: panels for loggers during training, and an HTML page of a finished run."""
