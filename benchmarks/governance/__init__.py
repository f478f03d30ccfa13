"""What governing adds to an answer, beside what others add: real HTTP, and as many turns at once as asked."""
