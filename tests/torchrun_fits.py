"""What torchrun runs in test_distributed.py: both extractors, shared by all processes."""

import sys

import torch
from safetensors.torch import save_file

from conceptlens import NMF, SparseAutoencoder, distributed

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
a = torch.rand(400, 4, generator=generator) @ torch.rand(4, 20, generator=generator)
a = (a + 0.1 * torch.rand(400, 20, generator=generator)).double()
with distributed.together(timeout=60):
    nmf = NMF(4).fit(distributed.share_of(a))
    sae = SparseAutoencoder(32, sparsity=4, n_epochs=3, batch_size=99).fit(a)
    fits = {"nmf": nmf.components_.contiguous(), **sae.weights_}
    save_file(fits, f"{sys.argv[1]}-{distributed.rank()}-of-{distributed.world_size()}")
