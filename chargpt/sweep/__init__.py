"""Several runs by one command: running them (`run`), and comparing them (`compare`)."""
