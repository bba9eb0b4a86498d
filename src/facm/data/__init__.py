"""Data: configurations that open into data sets, and streams of batches indexed by images seen.

A data set of your own implements the protocol :class:`facm.core.types.Dataset`, or puts its arrays into
:class:`InMemory`."""

from facm.data.checked import read_checked
from facm.data.cifar10 import Cifar10
from facm.data.digits import Digits
from facm.data.folder import ImageFolder
from facm.data.given import GivenData, given_data
from facm.data.idx import Idx
from facm.data.in_memory import InMemory
from facm.data.loader import batches
from facm.data.noise import Noise
from facm.data.pictures import CroppedPictures, FolderPictures
from facm.data.stream import Stream
from facm.data.toys import Checkerboard, Gaussian, Moons, Ring
from facm.data.webdataset import TarPictures

__all__ = [
    "Checkerboard",
    "Cifar10",
    "CroppedPictures",
    "Digits",
    "FolderPictures",
    "Gaussian",
    "GivenData",
    "Idx",
    "ImageFolder",
    "InMemory",
    "Moons",
    "Noise",
    "Ring",
    "Stream",
    "TarPictures",
    "batches",
    "given_data",
    "read_checked",
]
