"""Studies of embedding schedules: one file, one question. Run one with `python -m experiments.<name>`."""
