"""Which class each image is of: by its folder, or by the labels in a ``dataset.json``, as EDM and StyleGAN have it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from facm.core.component import shown
from facm.core.untrusted.door import parse_json
from facm.data.places import Place

LABELS, NAMES = "dataset.json", "classes.txt"
MOST_CLASSES = 2**24
"""Of a label in dataset.json."""


@dataclass(frozen=True, eq=False)
class Classes:
    """Of N images.

    labels: (N,) int64 from 0; None without classes.
    names: of the classes by number; empty where only numbers are known.
    count: number of classes; None without.
    """

    labels: np.ndarray | None
    names: tuple[str, ...]
    count: int | None


NO_CLASSES = Classes(None, (), None)


def classes_of(owner: str, place: Place, remedy: str) -> Classes:
    """The labels in ``dataset.json`` where there is one, which may say that there are none; otherwise the first folder
    in each image's path.

    Folders are numbered in the order of ``classes.txt``, one name a line, where there is one; otherwise as numbers if
    all of them are, and by sorted name.
    Raises ValueError naming an image without a class, with ``remedy``, and an entry or a line that does not fit.
    """
    if (text := place.text(LABELS)) is not None:
        return _of_json(place, text)
    loose = next((file for file in place.files if "/" not in file), None)
    if loose is not None:
        raise ValueError(
            f"{owner}: {place.named(loose)} lies in no class folder, expected {place.where}/<class>/..., or labels in "
            f"{place.named(LABELS)}; {remedy}"
        )
    folders = [file.split("/", 1)[0] for file in place.files]
    names = in_order(set(folders))
    if (listed := place.text(NAMES)) is not None:
        names = _listed(listed, place, set(folders))
    numbers = {name: i for i, name in enumerate(names)}
    return Classes(np.array([numbers[name] for name in folders], np.int64), names, len(names))


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Names of classes in order: 2 before 10 where all of them are numbers, otherwise as text."""
    if all(name.isascii() and name.isdigit() and len(name) < 20 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _listed(text: str, place: Place, folders: set[str]) -> tuple[str, ...]:
    """The names in a classes.txt, of which some may have no images here."""
    names = [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    where = place.named(NAMES)
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            what = f"has {shown(name)} twice" if name else "is empty"
            raise ValueError(f"{where}: line {number} {what}, expected the names of the class folders, one a line")
    if missing := sorted(folders - set(names)):
        raise ValueError(f"{where} does not name the class folder {shown(missing[0])}, expected all of them")
    return tuple(names)


def _of_json(place: Place, text: str) -> Classes:
    where = place.named(LABELS)
    content = parse_json(text, where)
    if not isinstance(content, dict) or "labels" not in content:
        raise ValueError(
            f'{where} has no "labels", expected {{"labels": [["00000/img00000000.png", 3], ...]}} or null; '
            "rename it where it is of something else"
        )
    entries = content["labels"]
    if entries is None:
        return NO_CLASSES
    if not isinstance(entries, list):
        raise ValueError(f'{where}: "labels" is {shown(entries)}, expected a list of [file, label], or null')
    found = dict[str, int | None]()
    for number, entry in enumerate(entries):
        file, label = _entry(entry, number, where)
        if file in found:
            raise ValueError(f"{where}: entry {number} names {shown(file)} again, expected each file once")
        found[file] = label
    unlabelled = [file for file in place.files if found.get(file) is None]
    if len(unlabelled) == len(place.files) and found and all(label is None for label in found.values()):
        return NO_CLASSES
    if unlabelled:
        how = "labels it null" if unlabelled[0] in found else "has no entry for it"
        raise ValueError(f"{place.named(unlabelled[0])} has no label: {where} {how}, expected a number for each image")
    there = set(place.files)
    if gone := next((file for file in found if file not in there), None):
        raise ValueError(f"{where} names {shown(gone)}, which is not there, or no image")
    labels = np.array([found[file] for file in place.files], np.int64)
    return Classes(labels, (), int(labels.max()) + 1)


def _entry(entry: object, number: int, where: str) -> tuple[str, int | None]:
    expected = 'expected ["00000/img00000000.png", 3], or null for its label'
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise ValueError(f"{where}: entry {number} is {shown(entry)}, {expected}")
    file, label = entry
    if label is not None and (type(label) is not int or not 0 <= label < MOST_CLASSES):
        raise ValueError(f"{where}: entry {number}, {shown(file)}, has the label {shown(label)}, {expected}")
    return file.replace("\\", "/"), label
