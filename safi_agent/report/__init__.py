"""What people look at: a page of a log, and a monitor for W&B. The only place that knows plotly or wandb."""
