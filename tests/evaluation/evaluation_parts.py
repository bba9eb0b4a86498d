"""What the evaluation's tests share: torch-fidelity whole, and Inception weights that are random."""

import contextlib
import importlib.machinery
import importlib.util
import io
import sys
import types

import torch


@contextlib.contextmanager
def torchvision_or_nothing():
    """While torch-fidelity is imported: empty modules where torchvision is not installed; nothing here needs it."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = ("", ".datasets", ".models", ".transforms", ".transforms.functional")
    for name in names:
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__path__ = []
        module.CIFAR10 = module.CIFAR100 = module.STL10 = object
        sys.modules[module.__name__] = module
    try:
        yield
    finally:
        for name in names:
            del sys.modules[f"torchvision{name}"]


def torchmetrics_image():
    """torchmetrics.image, which imports torch-fidelity where that is installed."""
    torch_fidelity()
    import torchmetrics.image.fid
    import torchmetrics.image.inception
    import torchmetrics.image.kid

    return torchmetrics.image


def torch_fidelity():
    """The whole package."""
    with torchvision_or_nothing():
        import torch_fidelity
        import torch_fidelity.metrics
    return torch_fidelity


def random_inception(path, seed=0):
    """A file of random weights for torch-fidelity's Inception, whose features tell images apart."""
    from facm.evaluation.inception import _port

    class Blank(_port().FeatureExtractorInceptionV3):
        def load_state_dict(self, weights):
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Blank("random", ["2048"], feature_extractor_weights_path=nothing)
    rng = torch.Generator().manual_seed(seed)
    weights = network.state_dict()
    for name, value in weights.items():
        if value.ndim > 1:
            gain = 40.0 if name == "fc.weight" else 2.0
            value.copy_(torch.randn(value.shape, generator=rng) * (gain / value[0].numel()) ** 0.5)
    torch.save(weights, path)
    return path
