"""The console command `embsim`."""


def main() -> int:
    raise SystemExit("embsim: no command is there yet")
