# SPDX-License-Identifier: Apache-2.0
"""Trained networks on whole scans and slides, in bounded memory and with the image's geometry kept."""

from pipeline.inference.case_writer import FAILURES_FILE
from pipeline.inference.inputs import Failure
from pipeline.inference.logits import AMP_DTYPES
from pipeline.inference.manifest import MANIFEST_FILE, ManifestRow
from pipeline.inference.scans.label_map_writer import LabelMapWriter
from pipeline.inference.scans.labelled_scans import LabelledScanDataset
from pipeline.inference.scans.patches import PatchInferer
from pipeline.inference.scans.scan_dataset import Scan, ScanDataset, as_loaded, find_scans, scan_loader
from pipeline.inference.scans.slicewise import SliceWiseInferer
from pipeline.inference.segmentation import inferer_of, segment, segment_files, segment_slides
from pipeline.inference.slides.centre_crops import CentreCropInferer
from pipeline.inference.slides.label_pyramid import write_label_pyramid
from pipeline.inference.slides.slide_dataset import SlideDataset, SlideFile, find_slides, slide_batch, slide_loader
from pipeline.inference.slides.slide_writer import SlideLabelWriter
from pipeline.inference.slides.tiles import LabelBands, TileInferer, tile_inferer_of

__all__ = [
    "AMP_DTYPES",
    "FAILURES_FILE",
    "MANIFEST_FILE",
    "CentreCropInferer",
    "Failure",
    "LabelBands",
    "LabelMapWriter",
    "LabelledScanDataset",
    "ManifestRow",
    "PatchInferer",
    "Scan",
    "ScanDataset",
    "SliceWiseInferer",
    "SlideDataset",
    "SlideFile",
    "SlideLabelWriter",
    "TileInferer",
    "as_loaded",
    "find_scans",
    "find_slides",
    "inferer_of",
    "scan_loader",
    "segment",
    "segment_files",
    "segment_slides",
    "slide_batch",
    "slide_loader",
    "tile_inferer_of",
    "write_label_pyramid",
]
