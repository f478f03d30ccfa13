"""Reports: an HTML page of a log, and a monitor for W&B. The only modules that import plotly or wandb."""
