# SPDX-License-Identifier: Apache-2.0
"""Valid tiny scans of every format, hypothesis strategies that spoil them, and what their headers promise."""

from __future__ import annotations

import gzip
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from hypothesis import strategies as st

SHAPE = (5, 4, 3)
FORMATS = ("nii", "nii.gz", "packed nii", "nrrd", "packed nrrd", "mha", "packed mha", "mhd", "dicom")
_NUMBERS = [struct.pack(f"<{kind}", value) for kind in "hiq" for value in (0, 1, -1, 2, 3, 127, 255, 32767)]
_NUMBERS += [struct.pack("<i", value) for value in (-(2**31), 2**31 - 1, 2**30, 65536)]
_NUMBERS += [struct.pack(f"<{kind}", value) for kind in "fd" for value in (0, -0.0, 1, -1, 1e-30, 1e30, 352, 0.5)]
_NUMBERS += [struct.pack(f"<{kind}", value) for kind in "fd" for value in (math.nan, math.inf, -math.inf)]
_NUMBERS += [number[::-1] for number in _NUMBERS]
_WORDS = [
    *(b"0", b"1", b"-1", b"2", b"3", b"4", b"5", b"65536", b"2147483647", b"4294967296", b"18446744073709551615"),
    *(b"99999999999999999999999", b"nan", b"inf", b"-inf", b"1e308", b"1e-308", b"none", b"(1,0,0)", b"(nan,0,0)"),
    *(b"", b"\x00", b"%s%n", b"True", b"False", b"gzip", b"bzip2", b"raw", b"ascii", b"hex", b"zrl", b"float"),
    *(b"double", b"short", b"uchar", b"block", b"MET_FLOAT", b"MET_DOUBLE", b"MET_UCHAR", b"MET_OTHER", b"LOCAL"),
    *(b"LIST", b"/etc/passwd", b"../../../../etc/passwd", b"a%03d.raw 1 3 1", b"/dev/zero", b"left-posterior-superior"),
    *(b"scanner-xyz", b"RAS", b"big", b"little", b"domain", b"x" * 5000),
]


@dataclass(frozen=True)
class Scan:
    """Files of one scan by name, in the order written; the first is what is mutated, `read` what is read."""

    files: tuple[tuple[str, bytes], ...]
    read: str
    header: int  # bytes of header: more mutations go there
    packed: bool = False  # compressed when it is written, so that mutations reach the content

    def write(self, folder: Path) -> Path:
        """Write the files below a folder and return the path to read."""
        for name, content in self.files:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(content, 1) if self.packed else content)
        return folder / self.read


def seeds(folder: Path) -> dict[str, Scan]:
    """Return a valid scan of every format; `folder` is where libraries may write."""
    array = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE, order="F") - 20
    image = nib.Nifti1Image(array, np.diag([0.8, 0.9, 2.0, 1.0]))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    plain = image.to_bytes()
    scans = {
        "nii": Scan((("scan.nii", plain),), "scan.nii", 352),
        "nii.gz": Scan((("scan.nii.gz", gzip.compress(plain, 1)),), "scan.nii.gz", 30),
        "packed nii": Scan((("scan.nii.gz", plain),), "scan.nii.gz", 352, packed=True),
    }
    made = sitk.GetImageFromArray(array.T.copy())
    made.SetSpacing((0.8, 0.9, 2.0))
    for suffix in ("nrrd", "mha", "mhd"):
        for packed in (False, True):
            name = f"scan.{suffix}"
            sitk.WriteImage(made, str(folder / name), packed)
            content = (folder / name).read_bytes()
            files = [(name, content)]
            if suffix == "mhd":
                body = folder / ("scan.zraw" if packed else "scan.raw")
                files.append((body.name, body.read_bytes()))
            header = content.rfind(b"\n\n") if suffix == "nrrd" else len(content.rpartition(b"\n")[0])
            header = content.find(b"LOCAL\n") + 6 if suffix == "mha" else header
            scans[f"packed {suffix}" if packed else suffix] = Scan(tuple(files), name, header)
    return {**scans, "dicom": _series(made, folder)}


def _series(image: sitk.Image, folder: Path) -> Scan:
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    files = []
    for index in range(image.GetDepth()):
        slice_ = sitk.GetImageFromArray(sitk.GetArrayFromImage(image[:, :, index]))
        slice_.SetSpacing((0.8, 0.9))
        tags = {"0008|0018": f"1.2.3.{index}", "0020|000e": "1.2.3", "0020|000d": "1.2", "0008|0060": "CT"}
        tags |= {"0020|0032": f"0\\0\\{2 * index}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        tags |= {"0028|1052": "-10", "0028|1053": "1"}
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        path = folder / f"{index}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(slice_)
        files.append((f"series/{path.name}", path.read_bytes()))
    return Scan(tuple(files[1:] + files[:1]), "series", len(files[0][1]) - 2 * SHAPE[0] * SHAPE[1])


@st.composite
def spoiled(draw: st.DrawFn, scan: Scan) -> Scan:
    """Return a scan, one of its files with bytes changed, put in, taken out, repeated or cut off."""
    which = draw(st.integers(0, len(scan.files) - 1)) if draw(st.booleans()) else 0
    name, content = scan.files[which]
    for _ in range(draw(st.integers(1, 4))):
        content = draw(_changed(content, scan.header, text=name.endswith((".nrrd", ".mha", ".mhd"))))
    files = (*scan.files[:which], (name, content), *scan.files[which + 1 :])
    return Scan(files, scan.read, scan.header, scan.packed)


@st.composite
def _changed(draw: st.DrawFn, content: bytes, header: int, text: bool) -> bytes:
    end = min(header, len(content)) if draw(st.integers(0, 3)) else len(content)
    place = draw(st.integers(0, max(0, end - 1)))
    kinds = ["byte", "number", "bytes", "cut", "out", "twice", "splice"] + ["word", "line", "word", "word"] * text
    kind = draw(st.sampled_from(kinds))
    if kind in ("word", "line"):
        return draw(_reworded(content, end, whole=kind == "line"))
    if kind == "cut":
        return content[:place]
    length = draw(st.integers(1, 64))
    if kind == "out":
        return content[:place] + content[place + length :]
    if kind in ("twice", "splice"):
        other = draw(st.integers(0, max(0, len(content) - 1))) if kind == "splice" else place
        return content[:place] + content[other : other + length] + content[place:]
    new = {
        "byte": st.binary(min_size=1, max_size=1),
        "number": st.sampled_from(_NUMBERS),
        "bytes": st.binary(min_size=1, max_size=8),
    }[kind]
    value = draw(new)
    return content[:place] + value + content[place + len(value) :]


@st.composite
def _reworded(draw: st.DrawFn, content: bytes, end: int, whole: bool) -> bytes:
    """Replace one word of a text header, or leave out or repeat one of its lines."""
    pieces = list(re.finditer(rb"[^\n]*\n" if whole else rb"[^\s=:]+", content[:end]))
    if not pieces:
        return content
    piece = draw(st.sampled_from(range(len(pieces))))
    start, stop = pieces[piece].span()
    new = b"" if whole and draw(st.booleans()) else content[start:stop] * 2 if whole else draw(st.sampled_from(_WORDS))
    return content[:start] + new + content[stop:]


def nibabel_sum(path: Path) -> float | None:
    """Return the sum of a NIfTI file's values as NiBabel reads them, None where it cannot."""
    try:
        return float(np.asarray(nib.load(path).dataobj, dtype=np.float64).sum())
    except Exception:  # whatever it raises on spoiled files: then it is no judge
        return None


def promised_shape(scan: Scan) -> tuple[int, ...] | None:
    """Return the shape by the header's own numbers, read without the libraries that are tested; None: cannot tell."""
    content = dict(scan.files).get(scan.read, scan.files[0][1])
    if scan.read.endswith(("nii", "nii.gz")):
        if scan.read.endswith(".gz") and not scan.packed:
            content = gzip.decompress(content)  # zlib itself also refuses flags that mean nothing
        return _nifti_shape(content)
    if scan.read == "series":
        return _series_shape([file for _, file in scan.files])
    pattern = rb"(?im)^\s*sizes\s*:(.*)$" if scan.read.endswith("nrrd") else rb"(?im)^\s*DimSize\s*=(.*)$"
    lines = re.findall(pattern, content)
    try:
        sizes = [int(float(word)) for word in lines[-1].split()] if lines else []
    except ValueError:
        return None
    return tuple(sizes[:3]) if len(lines) == 1 else None


def _nifti_shape(content: bytes) -> tuple[int, ...]:
    size = struct.unpack("<i", content[:4])[0]
    order = "<" if size in (348, 540) else ">"
    version_2 = 540 in (size, struct.unpack(">i", content[:4])[0])
    dim = struct.unpack(f"{order}8q", content[16:80]) if version_2 else struct.unpack(f"{order}8h", content[40:56])
    return tuple(dim[1:4])


def _series_shape(files: list[bytes]) -> tuple[int, ...] | None:
    """Return columns, rows and slices where each file says the first two once, as implicit elements of two bytes."""
    found = []
    for element in (b"\x11", b"\x10"):
        said = [re.findall(rb"\x28\x00" + element + rb"\x00\x02\x00\x00\x00(..)", file, re.DOTALL) for file in files]
        if any(len(values) != 1 for values in said):
            return None
        found.append({struct.unpack("<H", values[0])[0] for values in said})
    return (*found[0], *found[1], len(files))
