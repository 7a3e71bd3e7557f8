"""What the kernels do on a real TPU: `python -m embsim_tpu.hardware`, or `make tpu-check`."""
