"""Studies of embedding schedules, one file and one question each: python -m experiments.<name>."""
