"""What a job costs before it runs: operations, bytes moved, memory and time by roofline, from shapes alone."""
