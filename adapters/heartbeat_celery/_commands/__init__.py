"""What the command ``heartbeat`` does for ``send``, ``watch`` and ``status``."""
