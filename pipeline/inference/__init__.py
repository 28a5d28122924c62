# SPDX-License-Identifier: Apache-2.0
"""Trained networks on whole scans and slides, in bounded memory and with the image's geometry kept."""

from pipeline.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "backends": ("BACKENDS", "backend_of", "network_on", "told_backend"),
        "case_writer": ("FAILURES_FILE",),
        "inputs": ("Failure",),
        "logits": ("AMP_DTYPES",),
        "manifest": ("MANIFEST_FILE", "ManifestRow"),
        "scans.label_map_writer": ("LabelMapWriter",),
        "scans.labelled_scans": ("LabelledScanDataset",),
        "scans.patches": ("PatchInferer",),
        "scans.scan_dataset": ("ScanDataset", "as_loaded", "scan_loader"),
        "scans.scan_files": ("Scan", "find_scans"),
        "scans.slicewise": ("SliceWiseInferer",),
        "segmentation": ("inferer_of", "segment", "segment_files", "segment_slides"),
        "slides.centre_crops": ("CentreCropInferer",),
        "slides.label_pyramid": ("write_label_pyramid",),
        "slides.slide_dataset": ("SlideDataset", "SlideFile", "find_slides", "slide_batch", "slide_loader"),
        "slides.slide_writer": ("SlideLabelWriter",),
        "slides.tiles": ("LabelBands", "TileInferer", "tile_inferer_of"),
    },
)
