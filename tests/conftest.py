from __future__ import annotations

import torch

# Networks in tests are small: threads would only wait for each other, and for whatever else is running.
torch.set_num_threads(1)
