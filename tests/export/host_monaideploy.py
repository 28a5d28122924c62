# SPDX-License-Identifier: Apache-2.0
"""`python host_monaideploy.py BUNDLE MASKS SCAN...`: masks by MONAI Deploy's operator in an application of Holoscan."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from holoscan.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator
from monai.deploy.operators import monai_bundle_inference_operator as bundles

run_bundle = getattr(bundles, bundles.__all__[0])  # the operator; the module's other names are its arguments
sys.modules["pipeline"] = None  # a bundle runs without this project


class Source(Operator):
    """Emits a scan, once, as `DICOMSeriesToVolumeOperator` does: (z, y, x), with spacing and affine of RAS."""

    def __init__(self, *arguments, scan, **options):
        self.scan = scan
        super().__init__(*arguments, **options)

    def setup(self, spec):
        spec.output("image")

    def compute(self, op_input, op_output, context):
        spacing = dict(zip(("row", "col", "depth"), self.scan.header.get_zooms(), strict=True))
        told = {f"{axis}_pixel_spacing": side for axis, side in spacing.items()}
        voxels = np.asarray(self.scan.dataobj).swapaxes(0, 2).copy()
        op_output.emit(Image(voxels, {**told, "nifti_affine_transform": self.scan.affine}), "image")


class Sink(Operator):
    """Keeps the mask (z, y, x)."""

    def setup(self, spec):
        spec.input("pred")

    def compute(self, op_input, op_output, context):
        self.mask = op_input.receive("pred").asnumpy()


class Segmentation(Application):
    """A scan, the bundle's operator, and what it gives."""

    def __init__(self, bundle, scan):
        self.bundle, self.scan = bundle, scan
        super().__init__()

    def compose(self):
        source = Source(self, CountCondition(self, 1), scan=self.scan, name="source")
        operator = run_bundle(
            self,
            app_context=AppContext({}),
            input_mapping=[bundles.IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[bundles.IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.bundle,
            bundle_config_names=bundles.BundleConfigNames(config_names=["inference"]),
            name="bundle",
        )
        self.sink = Sink(self, name="sink")
        self.add_flow(source, operator, {("image", "image")})
        self.add_flow(operator, self.sink, {("pred", "pred")})


bundle, masks, *scans = sys.argv[1:]
for path in scans:
    scan = nib.load(path)
    application = Segmentation(bundle, scan)
    application.run()
    nib.save(nib.Nifti1Image(application.sink.mask.swapaxes(0, 2), scan.affine), Path(masks, Path(path).name))
