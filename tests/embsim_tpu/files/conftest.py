"""The scripts need TensorFlow and TorchRec: pytest's search for doctests must not import them."""

collect_ignore_glob = ["make_*.py"]
