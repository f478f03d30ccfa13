"""What people look at: panels of a logger while training runs, and a page of a run that is over."""
