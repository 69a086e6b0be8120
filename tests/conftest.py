from __future__ import annotations

import signal

import torch

# Whoever starts the tests may ignore signals (nohup, a shell's background); the tests send them.
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    if hasattr(signal, name):
        usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(getattr(signal, name), usual)

# Networks in tests are small: threads would only wait for each other, and for whatever else is running.
torch.set_num_threads(1)
