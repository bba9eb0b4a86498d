"""One thread for every test: results and times do not depend on how many cores there are."""

import torch

torch.set_num_threads(1)
